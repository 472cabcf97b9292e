"""A discrete-event simulation of the graph: sessions that speak, stages with batches, GPUs and CPU cores they share.

It counts what a formula cannot: how full batches are, how sessions that begin at once wait for one another, and from
which number of sessions on fragments are late. Times are virtual; a minute of 40 sessions takes about a second.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

FPS = 25
BUFFER_S = 1.0  # the playout of slow sessions begins later by about this time (deployments/stitch/live/pacing.py)
HOP_S = 0.003  # a call from one replica to another; measured: 2 to 5 ms
LATE_SHARE = 0.001  # of the fragments, at most, where a number of sessions counts as held
DROPPED_S = 2.0  # a simulation ends early when a fragment is so late


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. A call takes fixed_s + frame_s × frames. pool: the name of the resource that it occupies meanwhile.

    batch_frames: frames per call at most, from chunks of all sessions. A single chunk may be larger.
    """

    name: str
    pool: str
    fixed_s: float
    frame_s: float
    batch_frames: int = 1

    def seconds(self, frames: int) -> float:
        return self.fixed_s + self.frame_s * frames


@dataclass(frozen=True, slots=True)
class Load:
    """Sessions, and how they speak. The defaults are those of configs/gpu.yaml.

    speaking: share of the time in which a session speaks, in utterances of utterance_s on average. enhance: share of
    the sessions whose faces are enhanced. start_s: sessions begin one after another within it, or, if they pause,
    within an utterance and a pause.
    """

    sessions: int
    seconds: float = 40.0
    speaking: float = 1.0
    utterance_s: float = 8.0
    enhance: float = 0.0
    start_s: float = 4.0
    chunk_frames: int = 16
    first_chunk_frames: int = 2
    window_chunks: int = 4
    ahead_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """late_share: of all fragments. ttff_s: per utterance, sorted. busy: share of each stage's pool that it uses.

    frames_per_call: mean per stage. frames_per_s: of all sessions, until the last fragment.
    """

    late_share: float
    ttff_s: tuple[float, ...]
    busy: dict[str, float]
    frames_per_call: dict[str, float]
    frames_per_s: float

    @property
    def held(self) -> bool:
        return self.late_share <= LATE_SHARE


@dataclass(slots=True)
class _Job:
    frames: int
    due_s: float
    done: Callable[[], None]


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._number), action))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._events)
            action()


class _Pool:
    """`servers` GPUs or cores. Each serves one call at a time, of the stage whose oldest deadline comes first."""

    def __init__(self, clock: _Clock, servers: int) -> None:
        self._clock, self._free = clock, servers
        self._queues: dict[Stage, list[tuple[float, int, _Job]]] = {}
        self._number = count()
        self.busy_s: dict[str, float] = {}
        self.calls: dict[str, list[int]] = {}

    def add(self, stage: Stage, job: _Job) -> None:
        heapq.heappush(self._queues.setdefault(stage, []), (job.due_s, next(self._number), job))
        self._serve()

    def _serve(self) -> None:
        while self._free and (waiting := [stage for stage, queue in self._queues.items() if queue]):
            stage = min(waiting, key=lambda stage: self._queues[stage][0][:2])
            queue, frames = self._queues[stage], 0
            jobs: list[_Job] = []
            while queue and (not jobs or frames + queue[0][2].frames <= stage.batch_frames):
                jobs.append(heapq.heappop(queue)[2])
                frames += jobs[-1].frames
            spent_s = stage.seconds(frames)
            self.busy_s[stage.name] = self.busy_s.get(stage.name, 0.0) + spent_s
            self.calls.setdefault(stage.name, []).append(frames)
            self._free -= 1
            self._clock.after(spent_s, lambda jobs=jobs: self._finish(jobs))  # type: ignore[misc]

    def _finish(self, jobs: list[_Job]) -> None:
        self._free += 1
        for job in jobs:
            self._clock.after(HOP_S, job.done)
        self._serve()


@dataclass(slots=True)
class _Session:
    """Speaks utterances: keeps window_chunks chunks in flight, and no more than ahead_s ahead of the playout."""

    clock: _Clock
    pools: dict[str, _Pool]
    stages: tuple[Stage, ...]
    load: Load
    chance: random.Random
    lateness_s: list[float]
    ttff_s: list[float]
    shown_frames: int = 0  # of all utterances
    ended_s: float = 0.0  # the latest fragment
    _frames: int = 0  # of the utterance
    _asked: int = 0  # frames whose chunks were requested
    _chunks: int = 0
    _made: int = 0
    _in_flight: deque[int] = field(default_factory=deque)
    _arrived: set[int] = field(default_factory=set)  # first frames of chunks that wait for an earlier one
    _begun_s: float = 0.0
    _shown_s: float | None = None  # when the player started

    def speak(self) -> None:
        length_s = self.load.seconds
        if self.load.speaking < 1:
            length_s = max(1.0, self.chance.expovariate(1 / self.load.utterance_s))
        self._frames, self._asked, self._made = max(1, round(length_s * FPS)), 0, 0
        self._chunks = 0
        self._begun_s, self._shown_s = self.clock.now_s, None
        self._request()

    def _request(self) -> None:
        """Request chunks while the window and the reserve allow it."""
        while self._asked < self._frames and len(self._in_flight) < self.load.window_chunks:
            shown_s = self.clock.now_s - self._shown_s if self._shown_s is not None else 0.0
            wait_s = self._asked / FPS - shown_s - self.load.ahead_s
            if wait_s > 1e-9:
                if not self._in_flight:
                    self.clock.after(wait_s, self._request)
                return
            # chunks grow by the first one's size, as in deployments/stitch/pipeline.py
            self._chunks += 1
            size = min(self.load.first_chunk_frames * self._chunks, self.load.chunk_frames)
            frames = min(size, self._frames - self._asked)
            first, self._asked = self._asked, self._asked + frames
            self._in_flight.append(first)
            self._pass_on(first, frames, 0)

    def _pass_on(self, first: int, frames: int, index: int) -> None:
        if index == len(self.stages) - 1 and self._in_flight[0] != first:  # Stitch takes chunks in order
            self._arrived.add(first)
            return
        begun_s = self._shown_s if self._shown_s is not None else self._begun_s
        last = index == len(self.stages) - 1
        done = (lambda: self._finish(first, frames)) if last else (lambda: self._pass_on(first, frames, index + 1))
        self.pools[self.stages[index].pool].add(self.stages[index], _Job(frames, begun_s + first / FPS, done))

    def _finish(self, first: int, frames: int) -> None:
        now_s = self.ended_s = self.clock.now_s
        self.shown_frames += frames
        if self._shown_s is None:
            self._shown_s = now_s
            self.ttff_s.append(now_s - self._begun_s)
        self.lateness_s.append(now_s - self._shown_s - first / FPS - BUFFER_S)
        self._in_flight.popleft()
        self._made = first + frames
        if self._in_flight and self._in_flight[0] in self._arrived:
            following = self._in_flight[0]
            self._arrived.remove(following)
            end = self._in_flight[1] if len(self._in_flight) > 1 else self._asked
            self._pass_on(following, end - following, len(self.stages) - 1)
        if self._made < self._frames:
            self._request()
        elif self.load.speaking < 1:
            pause_s = self.load.utterance_s * (1 - self.load.speaking) / self.load.speaking
            rest_s = self._shown_s + self._frames / FPS - now_s
            self.clock.after(max(0.0, rest_s) + self.chance.expovariate(1 / pause_s), self.speak)


def simulate(load: Load, stages: tuple[Stage, ...], servers: dict[str, int], seed: int = 0) -> Outcome:
    """Run `load` for its seconds. stages: in the order of the data. servers: per pool. Enhance is passed over by the
    sessions that do not enhance."""
    clock, chance = _Clock(), random.Random(seed)
    pools = {name: _Pool(clock, number) for name, number in servers.items()}
    lateness_s: list[float] = []
    ttff_s: list[float] = []
    sessions: list[_Session] = []
    start_s = load.start_s if load.speaking == 1 else load.utterance_s / load.speaking
    for index in range(load.sessions):
        enhanced = math.ceil((index + 1) * load.enhance) > math.ceil(index * load.enhance)  # spread evenly
        route = tuple(stage for stage in stages if stage.name != "Enhance" or enhanced)
        session = _Session(clock, pools, route, load, random.Random(chance.random()), lateness_s, ttff_s)
        sessions.append(session)
        clock.after(start_s * index / load.sessions, session.speak)
    second = 0
    while second < load.seconds + start_s and (not lateness_s or lateness_s[-1] < DROPPED_S):
        second += 1
        clock.run(second)
    busy = {
        stage.name: pools[stage.pool].busy_s.get(stage.name, 0.0) / second / servers[stage.pool] for stage in stages
    }
    calls = {name: sum(sizes) / len(sizes) for pool in pools.values() for name, sizes in pool.calls.items()}
    late_share = sum(value > 0 for value in lateness_s) / len(lateness_s) if lateness_s else 1.0
    frames = sum(session.shown_frames for session in sessions)
    ended_s = max((session.ended_s for session in sessions), default=0.0)
    return Outcome(late_share, tuple(sorted(ttff_s)), busy, calls, frames / ended_s if ended_s else 0.0)


def most_sessions(load: Load, stages: tuple[Stage, ...], servers: dict[str, int], limit: int, least: int = 0) -> int:
    """The largest number of sessions, up to `limit`, without late fragments; 0 where not even one keeps up.

    least: a number that is known to hold.
    """
    held, failed, trial = least, limit + 1, max(1, least + 1)
    while held < trial < failed:
        if simulate(replace(load, sessions=trial), stages, servers).held:
            held = trial
        else:
            failed = trial
        trial = min(2 * held, limit) if failed > limit else (held + failed) // 2
    return held
