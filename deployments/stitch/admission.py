"""Admission of live speech by measured capacity. No Ray imports.

While utterances are made, the replica measures the frames per second of itself and the stages behind it. A session
that somebody watches may begin to speak while the frames that all of them need stay below a share of that capacity;
otherwise it is refused at once. Speech that nobody watches is never refused here: it waits for free capacity.

A refusal says when to try again: callers come back in turn, as the utterances that run are expected to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from configs.schema import StitchConfig
from models.errors import BusyError

WINDOW_S = 2.0  # of one measurement; of the capacity, also MIN_WINDOW_S with MIN_FRAMES
MIN_WINDOW_S, MIN_FRAMES = 0.5, 200
BEHIND_SHARE, LITTLE_SLACK_S = 0.95, 1.0  # an utterance is behind that is made without a pause, and has no reserve
STARTING_S = 3.0  # the longest time in which others wait for the first frame of an utterance
MAX_GIVEN_S = 1.0  # how long a file waits with each chunk while others are urgent
RETRY_S = (1.0, 60.0)  # least and most time after which a refused caller is told to try again
KEPT_DURATIONS = 20  # of the latest utterances
SMOOTHING = 0.3  # weight of a measurement that is larger than the capacity so far


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """See the fields of StitchConfig."""

    max_load: float | None = 0.9  # max_live_load
    min_live: int = 1
    assumed_live: int = 2
    max_utterances: int = 32
    max_waiting: int = 32
    max_waiting_session: int = 8

    @classmethod
    def of(cls, config: StitchConfig) -> AdmissionLimits:
        queues = (config.max_utterances, config.max_waiting, config.max_waiting_session)
        return cls(config.max_live_load, config.min_live, config.assumed_live, *queues)


class LoadMetrics(Protocol):
    """See deployments/stitch/metrics.py."""

    def record(self, live_sessions: int, capacity: float, reduced_frames: int) -> None: ...

    def record_refusal(self) -> None: ...


@dataclass(slots=True, eq=False)
class Making:
    """Measures how one utterance is made. `on_work` and `on_behind` belong to Admission."""

    fps: int = 25
    live: bool = False
    slack_s: float = math.inf  # how long before its time the latest chunk was made
    reduced_frames: int = 0  # made with less than the full enhancement, because that could not keep up
    rate: float = 0.0  # frames per second in the latest window
    on_work: Callable[[int, int, int], None] = lambda working, made, rendered: None
    on_behind: Callable[[], None] = lambda: None
    hurried: Callable[[], bool] = lambda: False  # whether other utterances need the machine more than a file does
    changed: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)  # waits until another utterance has advanced
    _admitted_s: float = field(default_factory=lambda: time.monotonic())
    _started_s: float = math.inf
    _working: int = 0  # calls
    _changed_s: float = 0.0
    _busy_s: float = 0.0  # in this window
    _frames: int = 0  # in this window
    _began_s: float | None = None  # the window

    @property
    def age_s(self) -> float:
        """How long ago it was admitted."""
        return time.monotonic() - self._admitted_s

    def start(self) -> None:
        """Its turn has come."""
        self._started_s = time.monotonic()

    @property
    def started(self) -> bool:
        return self._started_s < math.inf

    @property
    def begun(self) -> bool:
        """Whether a frame has been rendered."""
        return self._began_s is not None

    @property
    def urgent(self) -> bool:
        """Whether its first frame is being made, or it is live and will soon have nothing to show."""
        if not self.begun:
            return 0 <= time.monotonic() - self._started_s < STARTING_S
        return self.live and self._working > 0 and self.slack_s < LITTLE_SLACK_S

    async def give_way(self) -> None:
        """Wait with the next chunk of a file while others are urgent, for at most MAX_GIVEN_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_GIVEN_S):
                while self.hurried():
                    await self.changed()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs, frames of the utterance are being made. Blocks may overlap."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._add_time()
        was, self._working = self._working > 0, self._working + change
        self.on_work((self._working > 0) - was, 0, 0)

    def _add_time(self) -> None:
        now_s = time.monotonic()
        self._busy_s += (now_s - self._changed_s) * (self._working > 0)
        self._changed_s = now_s

    def made(self, frames: int) -> None:
        """The stages have made frames."""
        self.on_work(0, frames, 0)

    def rendered(self, frames: int) -> None:
        """Frames are ready to be shown."""
        self.on_work(0, 0, frames)
        self._frames += frames
        self.measure()

    def measure(self) -> None:
        """End the window if it is long enough. The first one begins with the first frame."""
        self._add_time()
        if self._began_s is None:
            self._begin_window()
        elif (took_s := self._changed_s - self._began_s) >= WINDOW_S:
            self.rate, share = self._frames / took_s, self._busy_s / took_s
            self._begin_window()
            if self.live and share > BEHIND_SHARE and self.rate < self.fps and self.slack_s < LITTLE_SLACK_S:
                self.on_behind()

    def _begin_window(self) -> None:
        self._began_s, self._busy_s, self._frames = self._changed_s, 0.0, 0


@dataclass(slots=True)
class Admission:
    """The utterances of a replica, waiting ones included. Not thread-safe: one event loop.

    capacity: frames per second, None until it is measured. It is the largest that was measured, since a measurement
    with little to do is too small. When a live utterance falls behind, it becomes what the live ones get then.
    """

    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    capacity: float | None = None
    metrics: LoadMetrics | None = None
    _sessions: dict[str, list[Making]] = field(default_factory=dict)
    _change: asyncio.Event = field(default_factory=asyncio.Event)
    _working: int = 0  # utterances that are being made
    _changed_s: float = 0.0
    _busy_s: float = 0.0
    _made: int = 0
    _rendered: int = 0
    _behind_s: float = -math.inf  # when an utterance was last behind
    _took_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_DURATIONS))
    _turned_away: int = 0  # callers that were refused and for whom no utterance has ended since

    @contextmanager
    def admit(self, session_id: str, live_fps: int | None, force: bool = False) -> Iterator[Making]:
        """Count an utterance while the block runs. Raises BusyError if it is refused.

        live_fps: of a session that somebody watches; None: nobody does. force: another replica has accepted it.
        """
        live = live_fps is not None
        if not force:
            self._check_queue(session_id, live)
            if live_fps is not None and session_id not in self.live_sessions():
                self._check_load(live_fps)
        making = Making(live_fps or 0, live, on_work=self._on_work, on_behind=self._on_behind)
        making.hurried = lambda: any(other.urgent for other in self._all() if other is not making)
        making.changed = lambda: self._change.wait()
        self._sessions.setdefault(session_id, []).append(making)
        self._report()
        try:
            yield making
        finally:
            self._sessions[session_id].remove(making)
            self._took_s.append(making.age_s)
            if not self._sessions[session_id]:
                del self._sessions[session_id]
            self._turned_away = max(0, self._turned_away - 1) if self._sessions else 0  # some never come back
            self._notify()
            self._report(making.reduced_frames)

    def _notify(self) -> None:
        """Let files that give way look again."""
        self._change.set()
        self._change = asyncio.Event()

    def _report(self, reduced_frames: int = 0) -> None:
        if self.metrics is not None:
            self.metrics.record(len(self.live_sessions()), self.capacity or 0.0, reduced_frames)

    def live_sessions(self) -> dict[str, int]:
        """Frames per second of the sessions with a live utterance."""
        return {name: making.fps for name, makings in self._sessions.items() for making in makings if making.live}

    def _all(self) -> list[Making]:
        return [making for makings in self._sessions.values() for making in makings]

    def _makings(self, live: bool) -> list[Making]:
        return [making for making in self._all() if making.live == live]

    def _check_queue(self, session_id: str, live: bool) -> None:
        limits = self.limits
        if len(self._sessions.get(session_id, ())) > limits.max_waiting_session:
            raise self._refusal(f"{limits.max_waiting_session} utterances of this session wait already")
        if len(self._makings(live)) >= limits.max_utterances + limits.max_waiting:
            raise self._refusal("The server makes as many utterances as it can, and its queue is full")

    def _check_load(self, fps: int) -> None:
        for making in self._makings(live=True):
            if making.begun:
                making.measure()
        limits, speaking = self.limits, self.live_sessions()
        if limits.max_load is None or len(speaking) < limits.min_live:
            return
        if self.capacity is None:
            if len(speaking) >= limits.assumed_live:
                most = f"at most {limits.assumed_live} live sessions speak until then"
                raise self._refusal(f"The server has not measured its speed yet, and {most}")
            return
        required = fps + sum(speaking.values())
        if required > limits.max_load * self.capacity:
            made = f"The server is overloaded: it makes {self.capacity:.0f} frames per second"
            raise self._refusal(f"{made}, and with this session {required} would be needed")

    def _refusal(self, reason: str) -> BusyError:
        if self.metrics is not None:
            self.metrics.record_refusal()
        wait_s = self._next_turn_s()
        error = BusyError(f"{reason}.", f"Try again in {wait_s:.0f} s.")
        error.retry_after_s = wait_s
        self._turned_away += 1
        return error

    def _next_turn_s(self) -> float:
        """When one more utterance than callers were turned away has probably ended.

        An utterance is expected to take as long as the latest ones did, from its admission on.
        """
        usual_s = statistics.median(self._took_s) if self._took_s else BusyError.retry_after_s
        left_s = sorted(max(0.0, usual_s - making.age_s) for making in self._all())
        rounds, place = divmod(self._turned_away, len(left_s)) if left_s else (0, 0)
        expected_s = rounds * usual_s + (left_s[place] if left_s else usual_s)
        return min(max(expected_s, RETRY_S[0]), RETRY_S[1])

    def _on_work(self, working: int, made: int, rendered: int) -> None:
        self._notify()
        now_s = time.monotonic()
        self._busy_s += (now_s - self._changed_s) * (self._working > 0)
        self._changed_s = now_s
        self._working, self._made, self._rendered = (
            self._working + working,
            self._made + made,
            self._rendered + rendered,
        )
        frames = min(self._made, self._rendered)
        if self._busy_s < (WINDOW_S if frames < MIN_FRAMES else MIN_WINDOW_S):
            return
        measured = frames / self._busy_s
        self._begin_window()
        if self.capacity is None:
            self.capacity = measured
        elif now_s - self._behind_s > 2 * WINDOW_S:  # else the frames of files would count as capacity for live speech
            self.capacity += SMOOTHING * max(0.0, measured - self.capacity)

    def _on_behind(self) -> None:
        speaking = [making for making in self._makings(live=True) if making.started]  # without the waiting ones
        self.capacity = sum(making.rate or making.fps for making in speaking)  # no rate: it has just begun
        self._behind_s = time.monotonic()
        self._begin_window()

    def _begin_window(self) -> None:
        self._busy_s, self._made, self._rendered = 0.0, 0, 0
