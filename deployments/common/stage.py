"""What all stages share: strict options, a compute thread, and stamps that say where the time went.

Knows Serve's metrics; knows nothing of what a stage computes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from pydantic import ValidationError

from configs.schema import STAGES, Strict
from deployments.common.footprint import footprint
from models.errors import ConfigError

log = logging.getLogger("ray.serve")

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Strict)

MILLISECONDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]  # histogram boundaries
REAL_TIME_FACTORS = [0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 4]


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Where one call's time went, seconds. `received_s` and `done_s` are wall-clock times of the replica's host.

    Between hosts whose clocks differ, transfer is wrong by that difference; queue and compute are not.

    `queue_s` is the wait in the replica for its compute thread or batch; `compute_s` is the work itself. What is left
    of the call's wall time is transfer: routing, serialisation, and the wait for a free replica.
    """

    stage: str
    frames: int
    received_s: float
    done_s: float
    queue_s: float
    compute_s: float
    busy_s: float  # this call's share of the compute time, where a batch served several calls at once
    engine: str = ""  # that did it


@dataclass(frozen=True, slots=True)
class Stamped(Generic[T]):
    """A stage's result with the timings of the calls that led to it, the latest last."""

    value: T
    timings: tuple[StageTiming, ...]


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What the worker computed, and when, by `time.perf_counter` of its process: asked for, begun and ended."""

    value: T
    asked_s: float
    started_s: float
    ended_s: float

    @property
    def queue_s(self) -> float:
        """The wait for the thread."""
        return self.started_s - self.asked_s

    @property
    def compute_s(self) -> float:
        """The work itself."""
        return self.ended_s - self.started_s


class Worker:
    """One thread that computes in order of arrival, so that the event loop stays free to answer health checks.

    More `threads` are for work that waits, for a server, and does not compute.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Done[T]:
        asked_s = time.perf_counter()

        def timed() -> Done[T]:
            started_s = time.perf_counter()
            value = function(*args, **kwargs)
            return Done(value, asked_s, started_s, time.perf_counter())

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)


class Workers:
    """Threads of which each job takes one for all that it computes, so that its own calls stay in order.

    Not thread-safe: one event loop.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers, self._jobs = tuple(workers), [0] * len(workers)

    @contextmanager
    def one(self) -> Iterator[Worker]:
        """The worker with the fewest jobs, for one more."""
        number = self._jobs.index(min(self._jobs))
        self._jobs[number] += 1
        try:
            yield self._workers[number]
        finally:
            self._jobs[number] -= 1


class StageMeter:
    """Counts the calls of a stage and exports them as `warmtalk_stage_*`, with Serve's tags of the replica."""

    def __init__(self, stage: str) -> None:
        from ray.serve.metrics import Counter, Histogram

        self.stage, self.engine = stage, ""
        tags: dict[str, Any] = {"tag_keys": ("stage",)}
        self._calls = Counter("warmtalk_stage_calls_total", description="Calls of a stage.", **tags)
        self._frames = Counter("warmtalk_stage_frames_total", description="Video frames through a stage.", **tags)
        self._parts = {
            part: Histogram(f"warmtalk_stage_{part}_ms", f"Milliseconds of {part} a call.", MILLISECONDS, **tags)
            for part in ("queue", "compute", "transfer")
        }
        self._ttff = Histogram("warmtalk_ttff_ms", "Milliseconds from a request to its first fragment.", MILLISECONDS)
        self._rtf = Histogram("warmtalk_rtf", "Seconds to make a second of video.", REAL_TIME_FACTORS)

    def stamp(
        self, frames: int, received_s: float, queue_s: float, compute_s: float, busy_s: float | None = None
    ) -> StageTiming:
        """The timing of a call that ends now; counted. `busy_s` is `compute_s` unless calls shared a batch."""
        tags = {"stage": self.stage}
        self._calls.inc(1, tags)
        if frames:
            self._frames.inc(frames, tags)
        self._parts["queue"].observe(queue_s * 1e3, tags)
        self._parts["compute"].observe(compute_s * 1e3, tags)
        busy_s = compute_s if busy_s is None else busy_s
        return StageTiming(self.stage, frames, received_s, time.time(), queue_s, compute_s, busy_s, self.engine)

    def utterance(self, ttff_ms: float, rtf: float) -> None:
        """Count an utterance: time to its first fragment, and compute over media seconds."""
        self._ttff.observe(ttff_ms)
        self._rtf.observe(rtf)

    def transferred(self, stage: str, transfer_s: float) -> None:
        """Count the transfer of a call of `stage`, which only its caller can see."""
        self._parts["transfer"].observe(max(0.0, transfer_s) * 1e3, {"stage": stage})


class Stage(Generic[C]):
    """Base of the stage classes: a strict config, applied by `reconfigure` without a restart.

    A subclass names its stage and says in `apply` what a change of options means.
    """

    stage: str

    def __init__(self) -> None:
        self.meter = StageMeter(self.stage)
        self.worker = Worker(self.stage)
        self.config: C = STAGES[self.stage]()  # type: ignore[assignment]
        self._applied = False  # whether a config has ever been applied
        self._torn = False  # whether the latest one broke off half-way
        self._turn = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve before the first request and at each change of `user_config`. Raises ConfigError.

        After a config that could not be applied, the next one is applied as a whole: half of it may be in place.
        """
        config = parse_config(self.stage, user_config)
        async with self._turn:
            await self._change(config)

    async def ready(self) -> None:
        """Apply the defaults where Serve was given no user_config."""
        if not self._applied:
            async with self._turn:
                if not self._applied:  # else somebody else did, meanwhile
                    await self._change(parse_config(self.stage, {}))

    async def _change(self, config: C) -> None:
        changed = {key for key in type(config).model_fields if getattr(config, key) != getattr(self.config, key)}
        whole = self._torn or not self._applied
        if not whole and not changed:
            return
        self._torn = True
        await self.worker.run(self.apply, config, None if whole else changed)
        self.config, self._applied, self._torn = config, True, False
        self.meter.engine = str(getattr(config, "engine", getattr(config, "weights", "")))

    def apply(self, config: Any, changed: set[str] | None) -> None:
        """Load or adapt the engine, on the compute thread. `changed` names the keys that differ; None: all may."""
        raise NotImplementedError

    async def stats(self) -> dict[str, Any]:
        """What this replica's process takes, in words of `footprint`, and its applied config."""
        return {"stage": self.stage, **footprint(), "gpu_mb": _gpu_megabytes(), "config": self.config.model_dump()}


def parse_config(stage: str, user_config: dict[str, Any]) -> Any:
    """`user_config` as the stage's strict model. Raises ConfigError naming the key and its alternatives."""
    try:
        return STAGES[stage].model_validate(user_config)
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors())
        raise ConfigError(f"{stage}.user_config: {details}.", "Mend the config file and deploy it again.") from error


def _gpu_megabytes() -> float:
    import sys

    torch = sys.modules.get("torch")  # never import it only to say that it is not used
    if torch is None or not torch.cuda.is_available():
        return 0.0
    return float(torch.cuda.max_memory_reserved() / 1e6)
