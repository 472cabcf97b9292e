"""Suggests settings of the stages for a number of sessions, with the measurement that each follows from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from configs.serve_file import deployment_of
from warmtalk.cli.profile.driving import FPS

FULL = 0.75  # of a replica's measured speed at most, so that bursts find room
ALMOST = 0.95  # of the best speed: a smaller batch that reaches it has first frames wait less
SPARE_MEMORY = 1.2  # times the most that torch has reserved
GPU_STEP = 0.05  # of num_gpus
SCALED = ("LipSync", "Enhance", "TTS", "AudioFeatures", "Stitch")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A key of a stage's section, `user_config.batch_size`, its value now and the suggested one."""

    stage: str
    key: str
    now: Any
    value: Any
    reason: str


def suggest(profile: dict[str, Any], config: dict[str, Any], sessions: int, enhanced: float = 1.0) -> list[Suggestion]:
    """Changes only: what fits already is not named. enhanced: share of the sessions whose faces are restored.

    sessions: that speak at the same time, at 25 frames per second.
    """
    found: list[Suggestion] = []
    for stage, row in profile["stages"].items():
        entry = deployment_of(config, stage)
        found += _batch_size(stage, row, entry)
        found += _gpu_share(stage, row, entry, profile.get("device", {}))
        share = enhanced if stage == "Enhance" else 1.0
        found += _replicas(stage, row, entry, sessions * share, config)
    return found


def cores_needed(profile: dict[str, Any], config: dict[str, Any], sessions: float) -> float:
    """CPU cores that the stages without a share of a GPU keep busy, at most: a call uses all threads of its engine."""
    cores = 0.0
    for stage, row in profile["stages"].items():
        options = {**row.get("config", {}), **(row.get("config", {}).get("options") or {})}
        speed, _ = speed_of(row)
        if speed and not (deployment_of(config, stage).get("ray_actor_options") or {}).get("num_gpus"):
            cores += sessions * FPS / speed * int(options.get("threads") or 1)
    return cores


def speed_of(row: dict[str, Any]) -> tuple[float, str]:
    """Frames per second that one replica makes, and how that was measured. 0 where it was not."""
    speeds = {int(size): speed["median"] for size, speed in row.get("speed", {}).items()}
    if speeds:
        size = max(speeds, key=lambda n: speeds[n])
        return speeds[size], f"{speeds[size]:.0f} frames/s at {size} per call"
    if busy_ms := row.get("under_load", {}).get("busy_ms_per_frame"):
        threads = int(row.get("config", {}).get("threads") or 1)
        return threads * 1e3 / busy_ms, f"{busy_ms:.1f} ms per frame on {threads} thread{'s' * (threads > 1)}"
    return 0.0, ""


def _batch_size(stage: str, row: dict[str, Any], entry: dict[str, Any]) -> Iterator[Suggestion]:
    speeds = {int(size): speed["median"] for size, speed in row.get("speed", {}).items()}
    now = row.get("batch_size") or 0
    if not now or len(speeds) < 2:
        return
    best = max(speeds, key=lambda n: speeds[n])
    value = min(size for size in speeds if speeds[size] >= ALMOST * speeds[best])
    at_now = speeds.get(now) or speeds[min(speeds, key=lambda n: abs(n - now))]
    gain = speeds[value] / at_now - 1
    if value > now and gain > 1 - ALMOST:
        reason = f"{speeds[value]:.0f} frames/s at {value} per call, {at_now:.0f} near {now}: {gain:+.0%}"
    elif value < now and speeds[value] >= ALMOST * at_now:
        reason = f"{value} per call reach {speeds[value]:.0f} of {speeds[best]:.0f} frames/s; first frames wait less"
    else:
        return
    yield Suggestion(stage, "user_config.batch_size", now, value, reason)


def _gpu_share(stage: str, row: dict[str, Any], entry: dict[str, Any], device: dict[str, Any]) -> Iterator[Suggestion]:
    now, total_mb = float((entry.get("ray_actor_options") or {}).get("num_gpus") or 0), device.get("gpu_memory_mb")
    used_mb = row.get("memory", {}).get("gpu_mb")
    if not now or not used_mb or not total_mb:
        return
    value = round(math.ceil(round(SPARE_MEMORY * used_mb / total_mb / GPU_STEP, 6)) * GPU_STEP, 2)
    if value > now:
        reason = f"torch reserves {used_mb:,.0f} of {total_mb:,.0f} MB, and a fifth more is needed as room"
        yield Suggestion(stage, "ray_actor_options.num_gpus", now, value, reason)


def _replicas(
    stage: str, row: dict[str, Any], entry: dict[str, Any], sessions: float, config: dict[str, Any]
) -> Iterator[Suggestion]:
    """Replicas by speed, and the calls that one of them has at a time then, by Little's law: L = λ · W."""
    speed, measured = speed_of(row)
    scaling = entry.get("autoscaling_config") or {}
    if not speed or stage not in SCALED:
        return
    needed = sessions * FPS
    count = max(1, math.ceil(needed / (FULL * speed)))
    reason = f"{sessions:g} sessions need {needed:.0f} frames/s; a replica makes {measured}, of which {FULL:.0%} count"
    most = int(scaling.get("max_replicas") or entry.get("num_replicas") or 1)
    if count > most:
        key = "autoscaling_config.max_replicas" if scaling else "num_replicas"
        yield Suggestion(stage, key, most, count, reason)
    if scaling:
        yield from _scaling_target(stage, row, scaling, speed, config)
    in_flight = math.ceil(sessions / count) * _calls_per_session(stage, config)
    allowed = int(entry.get("max_ongoing_requests") or 5)
    if in_flight > allowed:
        reason = f"{sessions:g} sessions have up to {in_flight} calls in each of {count} replicas"
        yield Suggestion(stage, "max_ongoing_requests", allowed, 2 ** math.ceil(math.log2(in_flight)), reason)


def _scaling_target(
    stage: str, row: dict[str, Any], scaling: dict[str, Any], speed: float, config: dict[str, Any]
) -> Iterator[Suggestion]:
    load, wall_ms = row.get("under_load") or {}, 0.0
    if load:
        wall_ms = load["compute_ms"]["p50"] + load["transfer_ms"]["p50"]
    calls, frames = row.get("calls") or 0, row.get("frames") or 0
    if not wall_ms or not frames or stage == "Stitch" or scaling.get("policy"):  # a policy has a target of its own kind
        return
    calls_per_s = FULL * speed * calls / frames
    value, now = max(1, round(calls_per_s * wall_ms / 1e3)), scaling.get("target_ongoing_requests", 2)
    if max(value, now) / min(value, now) >= 1.5:
        reason = f"at {FULL:.0%} of its speed a replica gets {calls_per_s:.1f} calls/s of {wall_ms:.0f} ms"
        yield Suggestion(stage, "autoscaling_config.target_ongoing_requests", now, value, reason)


def _calls_per_session(stage: str, config: dict[str, Any]) -> int:
    """Calls that Stitch has in flight for one utterance."""
    if stage in ("LipSync", "Enhance"):
        return int((deployment_of(config, "Stitch").get("user_config") or {}).get("window_chunks", 3))
    return 1
