"""The base class of all stages: a strict config, a supervised compute thread, and metrics of every call."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import ValidationError

from configs.schema import STAGES, Strict
from configs.strict import Accelerated, Supervised
from deployments.common.clocks import own_host
from deployments.common.errors import ReplicaFailedError
from deployments.common.metrics import increment, observe, repeat_gauges, set_gauge
from deployments.common.recent_calls import RecentCalls
from deployments.common.requests import RECENT_ERRORS
from deployments.common.supervision import Supervision, replica_resources
from deployments.common.worker import LOAD_LIMIT_S, Worker
from models.errors import ConfigError
from models.runtime.gpu_memory import limit_gpu_memory

if TYPE_CHECKING:
    from deployments.batching import FrameBatcher

T = TypeVar("T")
C = TypeVar("C", bound=Strict)

FOOTPRINT_KEYS = ("pid", "rss_mb", "shared_mb", "open_files", "threads", "tasks")


@dataclass(frozen=True, slots=True)
class StageTiming:
    """Where the time of one call went, in seconds.

    `received_s` and `done_s` are wall-clock times of the replica's host. The rest of the call's duration is transfer:
    routing, serialisation, and waiting for a free replica. Between hosts whose clocks differ, the computed transfer
    time is wrong by that difference; `queue_s` and `compute_s` are not affected.
    """

    stage: str
    frames: int
    received_s: float
    done_s: float
    queue_s: float  # waiting in the replica for its compute thread or its batch
    compute_s: float  # the computation itself
    busy_s: float  # this call's share of compute_s, where one batch served several calls
    engine: str = ""  # the engine that served the call
    replica: str = ""  # Serve's id of the replica; "" outside Serve


@dataclass(frozen=True, slots=True)
class Stamped(Generic[T]):
    """A stage's result with the timings of the calls that produced it, the latest last."""

    value: T
    timings: tuple[StageTiming, ...]


class StageMeter:
    """Records the calls of a stage, as metrics and for `Stage.stats`."""

    def __init__(self, stage: str) -> None:
        self.stage, self.engine, self.replica = stage, "", replica_id()
        self.recent = RecentCalls()
        self.recent_transfer: dict[str, RecentCalls] = {}  # by stage that was called

    def record_call(
        self, frames: int, received_s: float, queue_s: float, compute_s: float, busy_s: float | None = None
    ) -> StageTiming:
        """Count a call that ends now, and return its timing. busy_s: None means compute_s (no shared batch)."""
        increment("warmtalk_stage_calls_total", stage=self.stage)
        increment("warmtalk_stage_frames_total", frames, stage=self.stage)
        observe("warmtalk_stage_queue_ms", queue_s * 1e3, stage=self.stage)
        observe("warmtalk_stage_compute_ms", compute_s * 1e3, stage=self.stage)
        busy_s = compute_s if busy_s is None else busy_s
        self.recent.add(frames, queue_ms=queue_s * 1e3, compute_ms=compute_s * 1e3, busy_ms=busy_s * 1e3)
        parts_s = (received_s, time.time(), queue_s, compute_s, busy_s)
        return StageTiming(self.stage, frames, *parts_s, self.engine, self.replica)

    def record_batch_limit(self, limit: int) -> None:
        """Count a batch that did not fit into memory. limit: the most items of the batches after it."""
        increment("warmtalk_out_of_memory_total", stage=self.stage)
        set_gauge("warmtalk_batch_limit", limit, stage=self.stage)

    def record_cache(self, hit: bool) -> None:
        """Count an avatar that was in memory (`hit`), or had to be loaded."""
        increment(f"warmtalk_cache_{'hits' if hit else 'misses'}_total", stage=self.stage)

    def record_utterance(self, ttff_ms: float, rtf: float) -> None:
        """Record one utterance: the time to its first fragment, and the seconds to make one second of its video."""
        observe("warmtalk_ttff_ms", ttff_ms)
        observe("warmtalk_rtf", rtf)

    def record_transfer(self, stage: str, transfer_s: float) -> None:
        """Record the transfer time of a call to `stage`. Only the caller can measure it."""
        observe("warmtalk_stage_transfer_ms", max(0.0, transfer_s) * 1e3, stage=stage)
        self.recent_transfer.setdefault(stage, RecentCalls()).add(0, transfer_ms=max(0.0, transfer_s) * 1e3)


class Queue(Protocol):
    """Where calls wait: a Worker or a FrameBatcher."""

    def waiting(self) -> int: ...

    def oldest_s(self) -> float: ...


class Stage(Generic[C]):
    """Base of the stage classes: a strict config that `reconfigure` applies without a restart.

    A subclass sets `stage`, a key of configs.schema.STAGES, and implements `apply`.
    """

    stage: str
    _batcher: FrameBatcher[Any, Any] | None = None

    def __init__(self) -> None:
        self._began_s, self._start_s = time.monotonic(), 0.0
        self.meter = StageMeter(self.stage)
        self.worker = Worker(self.stage)
        self.config: C = STAGES[self.stage]()  # type: ignore[assignment]
        self._counted = 0, 0  # batches and their frames that are in the metrics
        self._configured = False  # a config has been applied
        self._half_applied = False  # the latest config failed, and some of it may be in place
        self._config_lock = asyncio.Lock()
        self._supervision = Supervision(self.stage, self._report_and_check)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a config. Serve calls this before the first request and whenever `user_config` changes.

        After a config that failed, the next one is applied in full, because parts of the failed one may be in place.
        Raises ConfigError.
        """
        config = parse_config(self.stage, user_config)
        async with self._config_lock:
            await self._change(config)

    async def ready(self) -> None:
        """Apply the default config if Serve has given this stage no user_config."""
        if not self._configured:
            async with self._config_lock:
                if not self._configured:  # another call may have applied one in the meantime
                    await self._change(parse_config(self.stage, {}))

    async def _change(self, config: C) -> None:
        changed = {key for key in type(config).model_fields if getattr(config, key) != getattr(self.config, key)}
        in_full = self._half_applied or not self._configured
        if not in_full and not changed:
            return
        self._half_applied = True
        load_limit_s = self._apply_limits(config)
        with self._supervision.loading(load_limit_s):
            loaded = await self.worker.run_long(load_limit_s, self._load, config, None if in_full else changed)
        self._apply_limits(config, loaded.compute_s)  # again: `apply` may have made new workers
        self._start_s = self._start_s or time.monotonic() - self._began_s
        set_gauge("warmtalk_start_s", self._start_s, stage=self.stage)
        self.config, self._configured, self._half_applied = config, True, False
        self.meter.engine = str(getattr(config, "engine", getattr(config, "weights", "")))

    def _load(self, config: C, changed: set[str] | None) -> None:
        """On the compute thread: limit the GPU memory, then `apply`."""
        share = (replica_resources() or {}).get("GPU", 0.0)
        if share and isinstance(config, Accelerated) and (changed is None or "limit_gpu_memory" in changed):
            limit_gpu_memory(share if config.limit_gpu_memory else 1.0)
        self.apply(config, changed)

    def apply(self, config: Any, changed: set[str] | None) -> None:
        """Load or adapt the engine, on the compute thread. changed: the keys that differ; None: all."""
        raise NotImplementedError

    # --- health

    async def check_health(self) -> None:
        """Called by Serve, before the first request as well. A replica is healthy when its engine is loaded.

        Raises ReplicaFailedError when it must be replaced, and what `apply` raises.
        """
        await self.ready()
        if reason := self.fault():
            raise ReplicaFailedError.of(reason)

    def report(self) -> None:
        """Set the gauges of this replica. Called every CHECK_S (supervision.py)."""
        repeat_gauges()
        queues = self._queues()
        set_gauge("warmtalk_queued_calls", sum(queue.waiting() for queue in queues), stage=self.stage)
        set_gauge("warmtalk_oldest_queued_s", max(queue.oldest_s() for queue in queues), stage=self.stage)
        longest_s = max(worker.longest_s() for worker in self.workers())
        set_gauge("warmtalk_longest_job_s", longest_s, stage=self.stage)
        set_gauge("warmtalk_gpu_memory_mb", gpu_memory()["gpu_reserved_mb"], stage=self.stage)
        if (batcher := self._batcher) is not None:
            batches, frames = self._counted
            self._counted = batcher.batches, batcher.batched_items
            increment("warmtalk_batched_frames_total", batcher.batched_items - frames, stage=self.stage)
            places = (batcher.batches - batches) * batcher.batch_size
            increment("warmtalk_batch_places_total", places, stage=self.stage)

    def _queues(self) -> tuple[Queue, ...]:
        """Where calls wait: for a batch, else for a compute thread."""
        return tuple(self.workers()) if self._batcher is None else (self._batcher,)

    def _report_and_check(self) -> str:
        self.report()
        return self.fault()

    def fault(self) -> str:
        """Why this replica can serve no longer, or ""."""
        return next(filter(None, (worker.fault() for worker in self.workers())), "")

    def workers(self) -> Iterable[Worker]:
        """The compute threads without which this replica cannot serve."""
        return (self.worker,)

    def _apply_limits(self, config: C, loading_s: float = 0.0) -> float:
        """Set the limits of calls; return the most seconds that `apply` may take. loading_s: what it has taken."""
        if not isinstance(config, Supervised):
            return LOAD_LIMIT_S
        for worker in self.workers():
            worker.set_limits(config.hung_after_s, config.load_limit_s)
            worker.loading_s = max(worker.loading_s, loading_s)
        return config.load_limit_s

    async def stats(self) -> dict[str, Any]:
        """The footprint of this replica's process, its GPU memory, its latest calls, and the config in use.

        start_s: seconds from the constructor to the end of the first config. recent: see RecentCalls.summary.
        transfer: the same for the calls to other stages. queued: calls, or frames of a batching stage, that wait.
        errors: the latest ones of this process, see requests.record_error.
        """
        return {
            "stage": self.stage,
            "replica": self.meter.replica,
            "host": own_host(),
            **footprint(),
            **gpu_memory(),
            "start_s": round(self._start_s, 4),
            "queued": sum(queue.waiting() for queue in self._queues()),
            "recent": self.meter.recent.summary(),
            "transfer": {stage: calls.summary() for stage, calls in list(self.meter.recent_transfer.items())},
            "errors": list(RECENT_ERRORS),
            "config": self.config.model_dump(),
        }


def parse_config(stage: str, user_config: dict[str, Any]) -> Any:
    """`user_config` as the strict model of the stage. Raises ConfigError, which names the key and its alternatives."""
    try:
        return STAGES[stage].model_validate(user_config)
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg']}".strip() for item in error.errors())
        raise ConfigError(
            f"{stage}.user_config: {details}.", "Correct the value in the config file and deploy it again."
        ) from error


def footprint() -> dict[str, Any]:
    """FOOTPRINT_KEYS of this process: id, memory, open files (sockets included), threads, and tasks of its event loop.

    Compare two samples, taken before and after some work, to find leaks. shared_mb is the part of rss_mb that lies in
    files and in Ray's object store. It grows with every page of the store that this process has read, up to all of it.
    """
    import psutil

    process = psutil.Process()
    memory = process.memory_info()
    return {
        "pid": os.getpid(),
        "rss_mb": round(memory.rss / 1e6, 1),
        "shared_mb": round(getattr(memory, "shared", 0) / 1e6, 1),  # not on macOS
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": len(asyncio.all_tasks()),
    }


def gpu_memory() -> dict[str, float]:
    """MB of GPU memory: most reserved by torch (gpu_mb), reserved now, most in use. Without CUDA 0."""
    torch = sys.modules.get("torch")  # do not import torch only to find that it is not used
    names = {
        "gpu_mb": "max_memory_reserved",
        "gpu_reserved_mb": "memory_reserved",
        "gpu_peak_mb": "max_memory_allocated",
    }
    if torch is None or not hasattr(torch, "compile"):  # another thread imports it: that name comes after `cuda`
        return dict.fromkeys(names, 0.0)
    if not torch.cuda.is_available():
        return dict.fromkeys(names, 0.0)
    return {name: getattr(torch.cuda, read)() / 1e6 for name, read in names.items()}


def replica_id() -> str:
    """Serve's id of this replica; "" outside Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:
        return ""
