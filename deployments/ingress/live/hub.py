"""A hub shows one session to all its viewers, at the pace of the session's clock.

It loads the avatar's idle motion once and plays it by itself. From Stitch it gets a stream of speech, which is silent
while nothing is spoken. All viewers get the same live fragments, each on its own timeline. A hub encodes nothing.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from ray.serve.handle import DeploymentResponseGenerator

from deployments.common.clocks import HostClocks, own_host
from deployments.common.errors import cancel_call, is_moved, is_own_cancellation, replica_lost_error
from deployments.common.messages import Ending, LiveEvent, LiveResume, LiveStart
from deployments.common.metrics import increment
from deployments.ingress.tcp_tables import Client
from models.errors import StageError
from models.live.timeline import LIVE_FRAMES, IdleLoop, LiveClock, LiveFragment, ViewerTimeline
from models.media.emsg import event_box

log = logging.getLogger("ray.serve")

JOIN_FRAGMENTS = 2  # a new viewer gets these at once, as its buffer: 320 ms at 25 fps
RECENT_FRAGMENTS = 4  # kept behind the live edge; one in two begins with a keyframe
VIEWER_FRAGMENTS = 8  # 1.3 s: a viewer that lags further jumps to the live edge
GRACE_S = 0.25  # how late speech may come without emptying the viewers' buffers of JOIN_FRAGMENTS
SILENT_S = 1.0  # a session that has not spoken for this long is silent
LINGER_S = 10.0  # a hub ends this long after its last viewer left
RETRY_S = 1.0  # between two attempts to subscribe again after the stream from Stitch was lost
MOVING_S, MAX_MOVES = 0.05, 200  # between two attempts while the session moves to another replica: ten seconds
MAX_LOOPS = 16  # idle loops in memory, about 2 MB each
CLOCK_STEP_S = 5.0  # if the playout is further behind its clock, the clock was changed

Subscribe = Callable[[str, LiveResume | None], DeploymentResponseGenerator[Any]]  # session id, … → LiveEvents
Message = tuple[str, dict[str, Any]]  # its kind, and its content as JSON


class Viewer:
    """The live fragments for one viewer, from the live edge on. Iterate it to get MP4; `close` it at the end."""

    def __init__(self, hub: "Hub", client: Client | None) -> None:
        self.hub, self.client = hub, client
        self.timeline = ViewerTimeline(hub.spec)
        self.dropped = 0  # fragments that were left out because the viewer is slow
        self.congested_since_s: float | None = None
        self.joined_s, self.started = time.monotonic(), False  # started: something was read
        self.is_busy: Callable[[], bool] = lambda: False  # whether its connection has more to do than to show
        self.ending: Ending | None = None  # why the stream ended; None: it has not, or the viewer has left
        self._queue: deque[LiveFragment] = deque()
        self._changed = asyncio.Event()
        self._skipping = True  # until the next keyframe
        self._making: dict[str, Any] | None = None
        self._boxes = 0
        self._ended = False

    # --- called by the hub

    def push(self, fragment: LiveFragment) -> None:
        """Queue a fragment, or drop it if the viewer does not keep up."""
        if len(self._queue) >= VIEWER_FRAGMENTS or self.congested_since_s is not None:
            self.dropped += len(self._queue) + 1
            self._queue.clear()
            self._skipping = True
        elif fragment.key or not self._skipping:
            self._queue.append(fragment)
            self._changed.set()
        else:
            self.dropped += 1

    def set_making(self, facts: dict[str, Any]) -> None:
        """Report the progress of the utterance that is being made; only the latest report is sent."""
        self._making = facts

    def end(self, ending: Ending | None = None) -> None:
        self.ending = ending if not self._ended else self.ending
        self._ended = True
        self._changed.set()

    # --- called by the connection

    def take_messages(self) -> list[Message]:
        """What became known with the latest fragment. Call it once per fragment."""
        making, self._making = self._making, None
        captions: list[Message] = [("caption", caption.as_json()) for caption in self.timeline.captions]
        return [*captions, *([("making", making)] if making is not None else [])]

    def skip_to_edge(self) -> None:
        """Drop the queued fragments before the latest keyframe."""
        while any(fragment.key for fragment in itertools.islice(self._queue, 1, None)):
            self._queue.popleft()

    async def muxed(self) -> AsyncGenerator[tuple[LiveFragment, bytes], None]:
        """Each fragment with its bytes for this viewer; ends when the session ends, or the viewer is too slow."""
        async with aclosing(self.fragments()) as fragments:
            async for fragment, begins in fragments:
                yield fragment, self.timeline.put(fragment, begins)

    async def fragments(self) -> AsyncGenerator[tuple[LiveFragment, bool], None]:
        """Each fragment, and whether fragments were left out before it, for `timeline.put` or `timeline.schedule`."""
        self.started = True
        while True:
            while self._queue:
                fragment = self._queue.popleft()
                begins, self._skipping = self._skipping, False
                yield fragment, begins
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._mp4()

    async def _mp4(self) -> AsyncIterator[bytes]:
        """live.mp4: fragments, with messages in `emsg` boxes between them, which players skip."""
        yield self.timeline.init
        async for _, data in self.muxed():
            yield b"".join([*(self._box(kind, message) for kind, message in self.take_messages()), data])
        if self.ending is not None:
            yield self._box("ended", {"reason": self.ending})

    def _box(self, kind: str, message: dict[str, Any]) -> bytes:
        self._boxes += 1
        start_s = message.get("start_s", self.timeline.duration_s)
        return event_box(kind, message, self._boxes, start_s, message.get("end_s", start_s) - start_s)

    def close(self) -> None:
        self.hub.leave(self)


class Hub:
    """One session for all its viewers. `start` it before use; Hubs stops it when nobody has watched for a while."""

    def __init__(
        self, session_id: str, subscribe: Subscribe, loops: "IdleLoops", clocks: HostClocks | None = None
    ) -> None:
        self.session_id = session_id
        self.viewers: set[Viewer] = set()
        self.late = 0  # fragments that arrived after they were due
        self.ended = False
        self.host, self._now = "", time.time  # the session's host, and the time there
        self._subscribe, self._loops, self._clocks = subscribe, loops, clocks or HostClocks()
        self._speech: deque[tuple[LiveClock, LiveFragment]] = deque()
        self._recent: deque[LiveFragment] = deque(maxlen=RECENT_FRAGMENTS)
        self._arrived = asyncio.Event()
        self._position = 0
        self._speaking, self._spoken_s = False, float("-inf")
        self._expected: set[int] = set()  # positions where speech will begin
        self._events: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._left_s = time.monotonic()

    async def start(self) -> None:
        """Subscribe to the session. Raises what Stitch raises, for instance SessionNotFound."""
        event = await self._open(None)
        try:
            assert event.start is not None, event
            self.spec, self._picture = event.start.spec, event.start.picture
            self._loop = await self._loops.load(Path(event.start.idle_path))
            await self._follow_clock(event.start)
        except BaseException:
            cancel_call(self._events)
            raise
        self._clock: LiveClock = event.clock
        self._position = self._position_now()
        start = self._position
        for _ in range(JOIN_FRAGMENTS):  # as if the session had been watched already
            start = self._loop.grid.floor(start - 1)
            self._recent.appendleft(self._loop.fragment_at(start))
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._play())]
        for task in self._tasks:
            task.add_done_callback(self._end_if_failed)

    def join(self, client: Client | None = None) -> Viewer:
        """Add a viewer at the live edge. It gets the latest fragments from a keyframe on, as its buffer."""
        viewer = Viewer(self, client)
        keys = [k for k, fragment in enumerate(self._recent) if fragment.key]
        first = max((k for k in keys if k <= len(self._recent) - JOIN_FRAGMENTS), default=keys[-1] if keys else 0)
        for fragment in list(self._recent)[first:]:
            viewer.push(fragment)
        self.viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        viewer.end()
        self.viewers.discard(viewer)
        self._left_s = time.monotonic()

    def is_unused(self) -> bool:
        """Whether nobody has watched for LINGER_S."""
        return not self.viewers and time.monotonic() - self._left_s > LINGER_S

    def end_idle_viewers(self) -> None:
        """End the viewers' streams, unless somebody speaks, has just spoken, or is about to."""
        if not self._speech and not self._expected and time.monotonic() - self._spoken_s > SILENT_S:
            for viewer in self.viewers:
                if not viewer.is_busy():
                    viewer.end("stopped")

    async def stop(self) -> None:
        self._end("stopped")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._events is not None:
            cancel_call(self._events)

    def _end(self, ending: Ending) -> None:
        self.ended = True
        for viewer in self.viewers:
            viewer.end(ending)

    def _end_if_failed(self, task: asyncio.Task[None]) -> None:
        """End the hub when one of its tasks fails. Otherwise viewers would see a frozen or a silent avatar."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("live: the hub of session %s failed", self.session_id, exc_info=error)
            self._end("stopped")

    # --- from Stitch

    async def _receive(self) -> None:
        """Receive Stitch's events. Subscribe again when the stream is lost or moves; end with the session."""
        while True:
            moved, began_s = False, time.monotonic()
            try:
                async for event in self._events:
                    if event.ended is not None:
                        return self._end(event.ended)
                    if moved := event.moved:
                        break
                    self._take(event)
            except (Exception, asyncio.CancelledError) as error:  # a replica died or is being replaced: try again
                if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                    raise
                log.warning("live: lost the stream of session %s: %s", self.session_id, type(error).__name__)
            cancel_call(self._events)
            self._expected.clear()
            if not moved:
                self._speech.clear()
                if time.monotonic() - began_s < RETRY_S:  # do not subscribe in a loop to one that is lost at once
                    await asyncio.sleep(RETRY_S)
            if ending := await self._subscribe_again():
                return self._end(ending)

    def _take(self, event: LiveEvent) -> None:
        if event.expect is not None:
            ahead = {position for position in self._expected if position > self._position}
            self._expected = set() if event.expect < 0 else {*ahead, event.expect}
        if event.piece is not None:
            self._speech.append((event.clock, event.piece))
            self._arrived.set()
        if event.making is not None:
            for viewer in self.viewers:
                viewer.set_making(event.making)

    async def _open(self, resume: LiveResume | None) -> LiveEvent:
        """Subscribe, and return the first event. While the session moves to another replica, try again.

        Raises what Stitch raises, and StageError when its replica is lost.
        """
        for attempt in itertools.count(1):
            self._events = self._subscribe(self.session_id, resume)
            try:
                return await _first(self._events)
            except BaseException as error:
                cancel_call(self._events)
                if not is_moved(error) or attempt == MAX_MOVES:
                    raise
            await asyncio.sleep(MOVING_S)
            resume = resume and replace(resume, moves=attempt)
        raise AssertionError

    async def _subscribe_again(self) -> Ending | None:
        """Subscribe at the current position. Return an ending if the session is removed or shows another picture."""
        while True:
            try:
                event = await self._open(self._here())
            except Exception as error:  # noqa: BLE001 - whatever it is, except the two below: try again
                status = getattr(getattr(error, "cause", error), "status", 503)
                if status in (404, 409):
                    return "removed" if status == 404 else "closed"
                await asyncio.sleep(RETRY_S)
                continue
            if event.start is None or event.start.picture != self._picture:
                cancel_call(self._events)
                return "replaced"
            await self._follow_clock(event.start)
            self._clock = event.clock
            self._speech = deque((event.clock, fragment) for _, fragment in self._speech)
            return None

    def _here(self) -> LiveResume:
        """The position that is shown next, and when it is due."""
        due_in_s = self._clock.time_of(self._position) - self._now()
        return LiveResume(self._position, due_in_s, own_host(), time.monotonic(), time.time())

    async def _follow_clock(self, start: LiveStart) -> None:
        """Use the clock of the process that owns the session now."""
        self._now = await self._clocks.clock_of(start.host, self.session_id, start.clock_offset_s)
        self.host = start.host

    # --- to the viewers

    def _position_now(self) -> int:
        return self._loop.grid.ceil(max(0, self._clock.position(self._now())))

    async def _play(self) -> None:
        """Push each fragment to all viewers when it is due, until the session ends."""
        max_wait_s = 4 * GRACE_S + LIVE_FRAMES / self.spec.fps
        while not self.ended:
            wait_s = self._clock.time_of(self._position) - self._now()
            if not -CLOCK_STEP_S <= wait_s <= max_wait_s:  # the clock was changed
                self._position = self._position_now()
                continue
            await asyncio.sleep(max(0.0, wait_s))
            fragment = await self._next()
            self._speaking = fragment.utterance != 0
            if self._speaking:
                self._spoken_s = time.monotonic()
                self._expected.discard(fragment.position)
            self._recent.append(fragment)
            for viewer in self.viewers:
                viewer.push(fragment)
            self._position = fragment.next_position

    async def _next(self) -> LiveFragment:
        """The fragment at the current position: speech if there is any, otherwise idle motion."""
        if not self._speech and (self._speaking or self._position in self._expected):  # speech is on its way
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await self._arrived.wait()
        while self._speech and self._speech[0][1].position <= self._position:
            clock, fragment = self._speech.popleft()
            late = fragment.position < self._position
            self.late += late
            increment("warmtalk_late_fragments_total", late)
            if fragment.utterance or not late:  # otherwise a late rest or hold: idle motion plays already, undelayed
                self._clock = clock
                return fragment
        return self._loop.fragment_at(self._loop.grid.floor(self._position))


async def _first(events: Any) -> LiveEvent:
    """The first item of a stream. Raises StageError if its replica goes away: Ray then cancels the waiting task."""
    try:
        event: LiveEvent = await anext(events)
        return event
    except asyncio.CancelledError as error:
        if is_own_cancellation():
            raise
        raise replica_lost_error() from error


class IdleLoops:
    """A cache of idle loops by file."""

    def __init__(self) -> None:
        self._loops: LRUCache[Path, IdleLoop] = LRUCache(MAX_LOOPS)

    async def load(self, path: Path) -> IdleLoop:
        """Raises StageError if the file cannot be read."""
        if (loop := self._loops.get(path)) is None:
            try:
                loop = self._loops[path] = IdleLoop(await asyncio.to_thread(path.read_bytes))
            except (OSError, ValueError, KeyError, AssertionError) as error:
                raise StageError(
                    f"The idle motion {path.name} cannot be read: {error}.",
                    "Share the sessions' folder between all nodes, or delete the file: it is made again.",
                ) from error
        return loop
