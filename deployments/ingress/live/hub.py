"""One session, shown to all its viewers: a hub paced by the session's clock, however many watch.

Belongs to the ingress. A hub holds the avatar's idle motion, coded once, and plays it by itself; from Stitch comes a
stream that is silent while nobody speaks. Viewers get the same pieces, each on a timeline of its own. Knows nothing of
HTTP; codes no pictures.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from deployments.common.clocks import HostClocks
from deployments.common.errors import replica_lost_error, is_own_cancellation
from deployments.common.messages import Ending, LiveStart
from deployments.common.patience import within
from deployments.ingress.send_queues import Client
from models.errors import StageError
from models.live.timeline import LIVE_FRAMES, IdleLoop, LiveClock, LiveFragment, ViewerTimeline
from models.media.emsg import event_box

log = logging.getLogger("ray.serve")

JOIN_PIECES = 2  # that a viewer is given at once: 320 ms at 25 fps, its buffer from then on
KEPT_PIECES = 4  # behind the live edge: one in two begins with a key frame
VIEWER_PIECES = 8  # 1.3 s: a viewer who lags further drops to the live edge
GRACE_S = 0.25  # speech may come so late without the viewers' buffers, JOIN_PIECES, running dry
LINGER_S = 10.0  # a hub stays so long after its last viewer
RETRY_S = 1.0  # before a lost stream from Stitch is asked for again
LOOPS = 16  # avatars' idle loops kept in memory, some 2 MB each

Subscribe = Callable[[str, int | None], Any]  # session id, position → a streaming response of LiveEvents


class Viewer:
    """One viewer's pieces, from the live edge on. Iterate for bytes of MP4; `close` when it has gone."""

    def __init__(self, hub: "Hub", client: Client | None) -> None:
        self.hub, self.client = hub, client
        self.timeline = ViewerTimeline(hub.spec)
        self.dropped = 0  # pieces that were left out because the viewer is slow
        self.congested_since_s: float | None = None
        self.joined_s, self.begun = time.monotonic(), False  # when it was given out, whether anything was taken
        self._queue: deque[LiveFragment] = deque()
        self._ready = asyncio.Event()
        self._skipping = True  # until a piece that begins with a key frame
        self._making: dict[str, Any] | None = None
        self._events = 0
        self._ended = False
        self.why: Ending | None = None  # it has ended; None: it goes on, or the viewer has left

    def offer(self, piece: LiveFragment) -> None:
        """Give the viewer a piece, or leave it out where the viewer does not keep up."""
        if len(self._queue) >= VIEWER_PIECES or self.congested_since_s is not None:
            self.dropped += len(self._queue) + 1
            self._queue.clear()
            self._skipping = True
        elif piece.key or not self._skipping:
            self._queue.append(piece)
            self._ready.set()
        else:
            self.dropped += 1

    def make(self, facts: dict[str, Any]) -> None:
        """Let the viewer know how far what is made has come; of several the latest counts."""
        self._making = facts

    def end(self, why: Ending | None = None) -> None:
        self.why = why if not self._ended else self.why
        self._ended = True
        self._ready.set()

    def news(self) -> list[tuple[str, dict[str, Any]]]:
        """(kind, message) of what became known with the last piece; to be asked once a piece."""
        making, self._making = self._making, None
        told = [("caption", caption.as_json()) for caption in self.timeline.captions]
        return [*told, *([("making", making)] if making is not None else [])]

    def to_edge(self) -> None:
        """Leave out what has come already, but for the last piece that begins with a key frame and what follows it."""
        while any(piece.key for piece in itertools.islice(self._queue, 1, None)):
            self._queue.popleft()

    async def pieces(self) -> AsyncGenerator[tuple[LiveFragment, bytes], None]:
        """Each piece with its bytes for this viewer; ends when the session does, or the viewer is stuck."""
        async with aclosing(self.taken()) as taken:
            async for piece, begins in taken:
                yield piece, self.timeline.put(piece, begins)

    async def taken(self) -> AsyncGenerator[tuple[LiveFragment, bool], None]:
        """The pieces as they come, and whether some were left out before one: for `timeline`, to put or to lay."""
        self.begun = True
        while True:
            while self._queue:
                piece = self._queue.popleft()
                begins, self._skipping = self._skipping, False
                yield piece, begins
            if self._ended:
                return
            self._ready.clear()
            await self._ready.wait()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._bytes()

    async def _bytes(self) -> AsyncIterator[bytes]:
        """What live.mp4 is: fragments, and between them, as boxes that players pass over, what is to be known."""
        yield self.timeline.init
        async for _, data in self.pieces():
            yield b"".join([*(self._box(kind, message) for kind, message in self.news()), data])
        if self.why is not None:
            yield self._box("ended", {"reason": self.why})

    def _box(self, kind: str, message: dict[str, Any]) -> bytes:
        self._events += 1
        start_s = message.get("start_s", self.timeline.duration_s)
        return event_box(kind, message, self._events, start_s, message.get("end_s", start_s) - start_s)

    def close(self) -> None:
        self.hub.leave(self)


class Hub:
    """One session, shown to all its viewers. `start` before use; ends by itself when nobody has watched for a while."""

    def __init__(self, session_id: str, subscribe: Subscribe, loops: "Loops", clocks: HostClocks | None = None) -> None:
        self.session_id = session_id
        self.viewers: set[Viewer] = set()
        self.late = 0  # pieces that came too late to be shown when they were due
        self._subscribe, self._loops, self._clocks = subscribe, loops, clocks or HostClocks()
        self.host, self._now = "", time.time  # that has the session, and what time it is there
        self._speech: deque[tuple[LiveClock, LiveFragment]] = deque()
        self._recent: deque[LiveFragment] = deque(maxlen=KEPT_PIECES)
        self._arrived = asyncio.Event()
        self._position = 0
        self._speaking = False
        self._expected: set[int] = set()  # where speech is going to begin
        self._events: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._left_s = time.monotonic()
        self.ended = False

    async def start(self) -> None:
        """Ask Stitch for the session. Raises what it raises: SessionNotFound and others."""
        self._events = self._subscribe(self.session_id, None)
        try:
            event = await _first(self._events)
            assert event.start is not None, event
            self.spec, self._picture = event.start.spec, event.start.picture
            self._loop = await self._loops.load(Path(event.start.idle_path))
            await self._follow(event.start)
        except BaseException:
            self._events.cancel()
            raise
        self._clock: LiveClock = event.clock
        self._position = self._loop.grid.ceil(max(0, self._clock.position(self._now())))
        start = self._position
        for _ in range(JOIN_PIECES):  # as if it had been watched already
            start = self._loop.grid.floor(start - 1)
            self._recent.appendleft(self._loop.fragment_at(start))
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._play())]
        for task in self._tasks:
            task.add_done_callback(self._broken)

    def join(self, client: Client | None = None) -> Viewer:
        """A viewer at the live edge: with the last pieces that begin with a key frame, so that it has a buffer."""
        viewer = Viewer(self, client)
        keys = [k for k, piece in enumerate(self._recent) if piece.key]
        first = max((k for k in keys if k <= len(self._recent) - JOIN_PIECES), default=keys[-1] if keys else 0)
        for piece in list(self._recent)[first:]:
            viewer.offer(piece)
        self.viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        viewer.end()
        self.viewers.discard(viewer)
        self._left_s = time.monotonic()

    def forgotten(self) -> bool:
        """Whether nobody has watched for a while."""
        return not self.viewers and time.monotonic() - self._left_s > LINGER_S

    async def stop(self) -> None:
        self._end("stopped")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._events is not None:
            self._events.cancel()

    def _end(self, why: Ending) -> None:
        self.ended = True
        for viewer in self.viewers:
            viewer.end(why)

    def _broken(self, task: asyncio.Task[None]) -> None:
        """End with a task that failed: viewers of half a hub would see the avatar stand still, or never speak."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("live: the hub of session %s broke", self.session_id, exc_info=error)
            self._end("stopped")

    # --- what comes from Stitch

    async def _listen(self) -> None:
        """Take what Stitch sends; ask again when its stream breaks off, and end with the session."""
        while True:
            try:
                async for event in self._events:
                    if event.expect is not None:
                        ahead = {position for position in self._expected if position > self._position}
                        self._expected = set() if event.expect < 0 else {*ahead, event.expect}
                    if event.piece is not None:
                        self._speech.append((event.clock, event.piece))
                        self._arrived.set()
                    if event.making is not None:
                        for viewer in self.viewers:
                            viewer.make(event.making)
                    if event.ended is not None:
                        return self._end(event.ended)
            except (Exception, asyncio.CancelledError) as error:  # a replica died, or is being replaced: not to be seen
                if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                    raise
                log.warning("live: the stream of session %s broke off: %s", self.session_id, type(error).__name__)
            self._events.cancel()
            self._speech.clear()
            self._expected.clear()
            await asyncio.sleep(RETRY_S)
            if why := await self._resume():
                return self._end(why)

    async def _resume(self) -> Ending | None:
        """Subscribe again where the head is now; why not, where the session is gone or shows something else."""
        while True:
            self._events = self._subscribe(self.session_id, self._position)
            try:
                event = await _first(self._events)
            except Exception as error:  # noqa: BLE001 - as above
                self._events.cancel()
                status = getattr(getattr(error, "cause", error), "status", 503)
                if status in (404, 409):
                    return "removed" if status == 404 else "closed"
                await asyncio.sleep(RETRY_S)
                continue
            if event.start is None or event.start.picture != self._picture:
                self._events.cancel()
                return "replaced"
            await self._follow(event.start)
            self._clock = event.clock
            return None

    async def _follow(self, start: LiveStart) -> None:
        """Go by the clock of the process that has the session now."""
        self.host, self._now = (
            start.host,
            await self._clocks.clock_of(start.host, self.session_id, start.clock_offset_s),
        )

    # --- what viewers see

    async def _play(self) -> None:
        """Give all viewers a piece when it is due, until the session ends."""
        while not self.ended:
            wait_s = self._clock.time_of(self._position) - self._now()
            if wait_s > 4 * GRACE_S + LIVE_FRAMES / self.spec.fps or wait_s < -5.0:  # a clock that was set anew
                self._position = self._loop.grid.ceil(max(0, self._clock.position(self._now())))
                continue
            await asyncio.sleep(max(0.0, wait_s))
            piece = await self._next()
            self._speaking = piece.utterance != 0
            self._recent.append(piece)
            for viewer in self.viewers:
                viewer.offer(piece)
            self._position = piece.next_position

    async def _next(self) -> LiveFragment:
        """What stands at the position: speech where there is any, else idle motion."""
        if not self._speech and (self._speaking or self._position in self._expected):  # it is on its way
            self._arrived.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(GRACE_S, self._arrived.wait())
        while self._speech and self._speech[0][1].position <= self._position:
            self._clock, piece = self._speech.popleft()
            late = piece.position < self._position
            self.late += late
            if piece.utterance or not late:  # a way to rest that idle motion has overtaken is of no use any more
                return piece
        grid = self._loop.grid
        return self._loop.fragment_at(grid.floor(self._position))


async def _first(events: Any) -> Any:
    """What a stream begins with. Raises StageError where its replica goes away: Ray then cancels what waits for it."""
    try:
        return await anext(events)
    except asyncio.CancelledError as error:
        if is_own_cancellation():
            raise
        raise replica_lost_error() from error


class Loops:
    """Idle loops by file, the latest ones in memory."""

    def __init__(self) -> None:
        self._loops: OrderedDict[Path, IdleLoop] = OrderedDict()

    async def load(self, path: Path) -> IdleLoop:
        """Raises StageError where the file cannot be read."""
        if path not in self._loops:
            try:
                self._loops[path] = IdleLoop(await asyncio.to_thread(path.read_bytes))
            except (OSError, ValueError, KeyError, AssertionError) as error:
                raise StageError(
                    f"The idle motion {path.name} cannot be read: {error}.",
                    "Share the sessions' folder between all nodes, or remove the file: it is made again.",
                ) from error
            while len(self._loops) > LOOPS:
                self._loops.popitem(last=False)
        self._loops.move_to_end(path)
        return self._loops[path]
