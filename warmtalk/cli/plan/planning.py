"""What a number of sessions needs: replicas and GPUs per stage, memory, network, disk and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from models.errors import InputError
from warmtalk.cli.plan.simulation import FPS, Load, Outcome, Stage, most_sessions, simulate
from warmtalk.cli.profile.roofline import CallCost
from warmtalk.cli.yaml_files import read_model

T = TypeVar("T", bound=BaseModel)

HERE = Path(__file__).parent
PRICES, MEASURED = HERE / "prices.yaml", HERE / "measured.yaml"
FULL = 0.75  # of a pool's time at most, where its size is chosen; bursts need the rest
HEADROOM = 0.85  # of the sessions at which fragments begin to be late
CELL_GPUS = (1, 2)  # sizes of a simulated cell; a larger installation repeats the last
CROP_MB = 256 * 256 * 3 / 1e6  # a face crop of LipSync; four times as much from Enhance
STITCH_CORES = 1  # num_cpus of a replica in configs/node.yaml
NODE_GPUS = 8
SESSIONS_PER_DIRECTORY = 3000  # measured: its one actor takes three quarters of a core then, and seven at 10,000
WRITES_PER_S, MANY_WRITES = FPS / 16, 1000  # one fragment of 16 frames is one durable write; what is worth a check


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Gpu(_Strict):
    memory_gb: float = Field(gt=0)
    tflops: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    cores: int = Field(ge=1)
    per_hour: float = Field(ge=0)


class Prices(_Strict):
    currency: str
    cpu_core_per_hour: float = Field(ge=0)
    storage_gb_per_month: float = Field(ge=0)
    traffic_gb: float = Field(ge=0)
    gpus: dict[str, Gpu]

    def gpu(self, name: str) -> Gpu:
        """The GPU of that name, in any case. Raises InputError."""
        for known, gpu in self.gpus.items():
            if known.lower() == name.lower():
                return gpu
        known = ", ".join(self.gpus)
        raise InputError(
            f"Unknown GPU {name!r}. Known: {known}.", "Add it to a copy of the prices; pass it with --prices."
        )


class StageTimes(_Strict):
    pool: str
    fixed_ms: float = Field(ge=0)
    ms_per_frame: float = Field(ge=0)
    batch_frames: int = Field(1, ge=1)
    gpu_gb: float = Field(0.0, ge=0)
    num_gpus: float = Field(0.0, ge=0, le=1)
    memory_bound: float = Field(0.0, ge=0, le=1)


class SessionCosts(_Strict):
    viewer_cores: float = Field(ge=0)
    other_cores: float = Field(ge=0)
    video_mbit_s: float = Field(gt=0)


class Point(_Strict):
    """A measurement of the whole graph, with which the simulation is compared."""

    gpus: int
    stitch_cores: int
    sessions: int
    frames_per_s: float


class Measured(_Strict):
    gpu: str
    stages: dict[str, StageTimes]
    decoders: dict[str, float] = {}
    session: SessionCosts
    points: list[Point] = []

    def with_decoder(self, decoder: str) -> Measured:
        """cropped: as measured; full and tiny: with LipSync's time of that decoder."""
        if decoder == "cropped":
            return self
        if decoder not in self.decoders:
            raise InputError(f"Unknown decoder {decoder!r}.", f"Use cropped, {' or '.join(self.decoders)}.")
        lipsync = self.stages["LipSync"].model_copy(update={"ms_per_frame": self.decoders[decoder]})
        return self.model_copy(update={"stages": {**self.stages, "LipSync": lipsync}})

    def with_profile(self, profile: dict[str, Any], gpu: str, known: Iterable[str]) -> Measured:
        """The stages' times and memory replaced by those of `warmtalk profile --json`, of the stages it drove alone.

        gpu: taken as the GPU of the profile unless that names one of `known`. Raises InputError if it drove none
        or had no GPU.
        """
        stages = dict(self.stages)
        for name, row in profile.get("stages", {}).items():
            speeds = {int(size): speed for size, speed in (row.get("frames_per_s") or {}).items() if speed}
            if name in stages and speeds:
                cost = CallCost.fit(speeds)
                found = {"fixed_ms": 1e3 * cost.fixed_s, "ms_per_frame": 1e3 * cost.frame_s}
                if used_mb := row.get("memory", {}).get("gpu_mb"):
                    found["gpu_gb"] = used_mb / 1e3
                stages[name] = stages[name].model_copy(update=found)
        if stages == self.stages:
            raise InputError(
                "The profile drove no stage alone.", "Make it with `warmtalk profile --json profile.json`."
            )
        device = str(profile.get("device", {}).get("gpu", ""))
        if profile.get("device") and not device:
            raise InputError("The profile was measured without a GPU.", "Profile on the GPU that you plan for.")
        named = [name for name in known if name.lower() in device.lower().replace(" ", "")]
        return self.model_copy(update={"stages": stages, "gpu": max(named, key=len) if named else gpu})

    def on(self, own: Gpu, other: Gpu) -> tuple[Stage, ...]:
        """The stages for the simulation, with the times of the networks scaled from GPU `own` to `other`."""
        stages = []
        for name, times in self.stages.items():
            slower = 1.0
            if times.pool == "gpu":  # others spend their time on the CPU
                bound = times.memory_bound
                slower = (1 - bound) * own.tflops / other.tflops + bound * own.bandwidth_gb_s / other.bandwidth_gb_s
            seconds = times.fixed_ms / 1e3 * slower, times.ms_per_frame / 1e3 * slower
            stages.append(Stage(name, times.pool, *seconds, times.batch_frames))
        return tuple(stages)


def read(path: Path, kind: type[T]) -> T:
    """A YAML file as `kind`, Prices or Measured. Raises ConfigError with the key that is wrong."""
    return read_model(path, kind, ("File", "Check the path."), "Correct it, or start from the shipped file.")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """replicas and their GPU shares; busy: share of the resource's time that the stage uses."""

    name: str
    replicas: int
    num_gpus: float
    num_cpus: float
    busy: float
    frames_per_call: float


@dataclass(frozen=True, slots=True)
class Plan:
    """For `sessions`. sessions_per_gpu: at which fragments begin to be late. ttff_p95_ms: without HTTP.

    cores: kept busy, or reserved by the replicas, whichever is more. Bytes are decimal. cost: per hour, of GPUs with
    their cores, further cores, traffic, and the disk for a month.
    """

    sessions: int
    gpu: str
    gpus: int
    sessions_per_gpu: float
    cores: int
    stages: tuple[StagePlan, ...]
    ttff_p95_ms: float
    bottleneck: str
    next_bottleneck: str
    gpu_memory_gb: float
    viewers_mbit_s: float
    internal_mb_s: float
    disk_gb_per_hour: float
    cost_per_hour: float
    cost_per_session_hour: float
    currency: str
    measured_on: str
    notes: tuple[str, ...] = field(default=())


def plan(
    sessions: int, gpu_name: str, load: Load, measured: Measured, prices: Prices, viewers: float = 1.0, spare: int = 0
) -> Plan:
    """What `sessions` sessions need on GPUs of that name.

    viewers: per session. spare: GPUs beyond what the sessions need, for failures. Raises InputError where one GPU does
    not keep up with one session, or its memory does not hold the models.
    """
    gpu = prices.gpu(gpu_name)
    used = {name: times for name, times in measured.stages.items() if load.enhance or name != "Enhance"}
    memory_gb = sum(times.gpu_gb for times in used.values())
    if memory_gb > gpu.memory_gb:
        raise InputError(
            f"The models need {memory_gb:.1f} GB of GPU memory together; a {gpu_name} has {gpu.memory_gb:g} GB.",
            "Use a smaller batch_size in the config, or another GPU.",
        )
    stages = tuple(stage for stage in measured.on(prices.gpu(measured.gpu), gpu) if stage.name in used)
    cell = _cell(sessions, load, stages)
    if not cell.most:
        raise InputError(
            f"One {gpu_name} does not keep up with one session: LipSync makes {1 / stages[2].frame_s:.0f} frames/s.",
            "Use a faster GPU, the tiny decoder, or less enhancement.",
        )
    cells = max(1.0, sessions / cell.sessions)
    gpus = math.ceil(cells * cell.servers["gpu"])
    session_cores = viewers * measured.session.viewer_cores + measured.session.other_cores
    cores = math.ceil(cells * cell.servers["cpu"] + sessions * session_cores)
    rows = tuple(_stage_plan(stage, stages, measured, gpus, cells, cell) for stage in stages)
    rows += (_ingress(sessions * viewers, measured),)
    cores = max(cores, math.ceil(sum(row.replicas * row.num_cpus for row in rows)))  # what Ray reserves
    gpus += spare
    spoken = sessions * load.speaking
    mbit_s = sessions * viewers * measured.session.video_mbit_s
    disk_gb = spoken * measured.session.video_mbit_s / 8 * 3600 / 1e3
    cost = gpus * gpu.per_hour + max(0, cores - gpus * gpu.cores) * prices.cpu_core_per_hour
    cost += mbit_s / 8 * 3600 / 1e3 * prices.traffic_gb + disk_gb * prices.storage_gb_per_month
    limits = bottlenecks(cell.outcome, stages)
    return Plan(
        sessions,
        gpu_name,
        gpus,
        cell.most / cell.servers["gpu"],
        cores,
        rows,
        1e3 * cell.outcome.ttff_s[int(0.95 * (len(cell.outcome.ttff_s) - 1))],
        limits[0],
        limits[1],
        memory_gb,
        mbit_s,
        spoken * FPS * CROP_MB * (1 + 4 * load.enhance),
        disk_gb,
        cost,
        cost / sessions,
        prices.currency,
        measured.gpu,
        tuple(notes(sessions, gpus, load, viewers, rows[-1].replicas)),
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    """Some GPUs and what they share; a larger installation repeats it. sessions: that it shall serve. most: it can."""

    sessions: int
    most: int
    servers: dict[str, int]
    outcome: Outcome


def _cell(sessions: int, load: Load, stages: tuple[Stage, ...]) -> _Cell:
    """The smallest cell for the sessions, or the largest one: GPUs first, then the least of the other pools."""
    most = 0
    for gpus in CELL_GPUS:
        least = most * gpus // max(1, gpus // 2)  # twice as many GPUs serve at least twice as many sessions
        plenty = {stage.pool: 64 * gpus for stage in stages} | {"gpu": gpus}
        most = most_sessions(load, stages, plenty, 400 * gpus, least)
        if HEADROOM * most >= sessions or not most:
            break
    served = min(sessions, max(min(most, 1), math.floor(HEADROOM * most)))
    load = replace(load, sessions=served)
    servers = {pool: max(1, math.ceil(need / FULL)) for pool, need in offered(load, stages).items()} | {"gpu": gpus}
    outcome = simulate(load, stages, servers)
    while served and not outcome.held:  # bursts need more than the average
        busy = _busy(outcome, stages)
        pool = max((pool for pool in servers if pool != "gpu"), key=lambda pool: busy[pool])
        servers[pool] += max(1, servers[pool] // 8)
        outcome = simulate(load, stages, servers)
    return _Cell(served, most, servers, outcome)


def offered(load: Load, stages: tuple[Stage, ...]) -> dict[str, float]:
    """Seconds of work per second that the sessions bring to each pool, where each chunk is a call of its own."""
    needed: dict[str, float] = {}
    for stage in stages:
        frames_per_s = load.sessions * FPS * load.speaking * (load.enhance if stage.name == "Enhance" else 1.0)
        spent = frames_per_s * (stage.fixed_s / load.chunk_frames + stage.frame_s)
        needed[stage.pool] = needed.get(stage.pool, 0.0) + spent
    return needed


def _busy(outcome: Outcome, stages: tuple[Stage, ...]) -> dict[str, float]:
    """Share of each pool's time that all its stages use together."""
    busy: dict[str, float] = {}
    for stage in stages:
        busy[stage.pool] = busy.get(stage.pool, 0.0) + outcome.busy[stage.name]
    return busy


def _stage_plan(
    stage: Stage, stages: tuple[Stage, ...], measured: Measured, gpus: int, cells: float, cell: _Cell
) -> StagePlan:
    times = measured.stages[stage.name]
    busy, frames = cell.outcome.busy[stage.name], cell.outcome.frames_per_call.get(stage.name, 0.0)
    if stage.pool == "gpu":
        total = sum(other.gpu_gb for other in measured.stages.values() if other.pool == "gpu")
        rest = 1.0 - sum(other.num_gpus for other in measured.stages.values())
        return StagePlan(stage.name, gpus, math.floor(100 * rest * times.gpu_gb / total) / 100, 1, busy, frames)
    if stage.pool != "cpu":
        return StagePlan(stage.name, math.ceil(cells * cell.servers[stage.pool]), times.num_gpus, 1, busy, frames)
    per_replica = STITCH_CORES if stage.name == "Stitch" else 1
    share = busy / _busy(cell.outcome, stages)[stage.pool] if busy else 0.0
    replicas = max(1, math.ceil(cells * cell.servers["cpu"] * share / per_replica))
    return StagePlan(stage.name, replicas, 0.0, per_replica, busy, frames)


def _ingress(viewers: float, measured: Measured) -> StagePlan:
    cores = viewers * measured.session.viewer_cores
    replicas = max(1, math.ceil(cores / FULL))
    return StagePlan("Ingress", replicas, 0.0, 1, cores / replicas, 0.0)


def bottlenecks(outcome: Outcome, stages: tuple[Stage, ...]) -> list[str]:
    """The pools from the busiest on, with their stages."""
    busy, texts = _busy(outcome, stages), []
    for pool in sorted(busy, key=lambda pool: -busy[pool]):
        members = " and ".join(stage.name for stage in stages if stage.pool == pool)
        kind = {"gpu": "GPUs", "cpu": "CPU cores"}.get(pool, "replicas")
        texts.append(f"{kind} of {members}, {busy[pool]:.0%} busy")
    return [*texts, "none"]


def notes(sessions: int, gpus: int, load: Load, viewers: float, ingresses: int) -> list[str]:
    """What changes at this size, beyond more replicas."""
    found = []
    writes = sessions * load.speaking * WRITES_PER_S
    if gpus > NODE_GPUS:
        found.append("Several nodes: sessions and avatars must be on storage that all nodes share.")
    if sessions > SESSIONS_PER_DIRECTORY:
        count = math.ceil(sessions / SESSIONS_PER_DIRECTORY)
        found.append(
            f"Session directory: one actor holds about {SESSIONS_PER_DIRECTORY} sessions; run {count} applications "
            "(clusters) behind one load balancer that keeps a session's requests together."
        )
    if writes > MANY_WRITES:
        found.append(f"Storage: {writes:,.0f} writes with fsync per second. Check that the shared file system can.")
    if ingresses > 1:
        found.append("Ingress: several replicas and one proxy per node (configs/cluster.yaml), behind a load balancer.")
    if viewers > 20:
        found.append(
            f"WebRTC: {viewers:.0f} viewers per session; a replica sends to 30 WebRTC viewers by default. Publish each "
            "session once to an SFU, or let viewers use live.mp4 behind a cache."
        )
    return found
