"""Profiles the stages of a running graph: where the time of each call goes, frames per second by batch size, memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from deployments.common.messages import SpeakRequest
from deployments.common.stage import Stamped
from deployments.stitch.metrics import CALL_PARTS
from models.types import FaceCrops, FeatureWindows, Speech
from warmtalk.cli.tables import STAGES, stage_table

APP = "warmtalk"
BATCH_SIZES = (1, 4, 8)
DRIVE_S = 1.5  # how long a stage is driven alone per batch size
SENTENCES = (
    "Welcome to the profile of this graph.",
    "Every stage reports how long it waited, how long it computed, and how long its data travelled.",
    "The table below shows the result.",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """stages: per stage p50, p95 of queue, transfer, compute and wall in ms, frames/s by batch size, memory in MB."""

    stages: dict[str, dict[str, Any]]
    ttff_ms: list[float]
    rtf: list[float]
    tree_mb: float

    def to_dict(self) -> dict[str, Any]:
        return {"stages": self.stages, "ttff_ms": self.ttff_ms, "rtf": self.rtf, "tree_mb": round(self.tree_mb)}


async def profile_graph(
    repeats: int = 2, enhance: bool = True, step: Callable[[str], None] = lambda name: None, drive_alone: bool = True
) -> Profile:
    """Speak SENTENCES `repeats` times, then drive each stage alone. Needs a running graph in this process's Ray.

    step: called with a description of each step. Raises RayError, or the error of a stage.
    """
    summaries = []
    for index in range(repeats * len(SENTENCES)):
        step(f"speaking {index + 1} of {repeats * len(SENTENCES)}")
        summaries.append(await _speak(SENTENCES[index % len(SENTENCES)], f"profile-{index}", enhance))
    calls = [call for summary in summaries for call in summary["calls"]]
    stages: dict[str, dict[str, Any]] = {}
    avatar_id = summaries[0]["avatar_id"]
    for stage in STAGES:
        own = [call for call in calls if call["stage"] == stage]
        if not own:
            continue
        row: dict[str, Any] = {"calls": len(own), "frames": sum(call["frames"] for call in own)}
        for part in CALL_PARTS:
            values = [call[part] for call in own]
            row[part] = {"p50": round(_percentile(values, 0.5), 2), "p95": round(_percentile(values, 0.95), 2)}
        step(f"driving {stage} alone")
        row["frames_per_s"] = await _throughput(stage, avatar_id) if drive_alone else {}
        row["memory"] = await _handle(stage).stats.remote()
        stages[stage] = row
    ttff = [summary["ttff_ms"] for summary in summaries]
    return Profile(stages, ttff, [summary["rtf"] for summary in summaries], tree_megabytes())


def _percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie; 0 without values."""
    return float(np.quantile(values, share)) if values else 0.0


def tree_megabytes() -> float:
    """Memory of this process and its descendants, MB. Shared pages count once (proportional set size)."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def profile_tables(profile: Profile) -> tuple[Table, Table]:
    """Two tables for the terminal: the time of a call, and each stage's speed and memory."""
    times = stage_table("Milliseconds per call, p50/p95", "calls", "frames", "queue", "transfer", "compute", "wall")
    sizes = stage_table(
        "Frames/s driven alone, by frames per call; memory", *(f"@{size}" for size in BATCH_SIZES), "MB", "GPU MB"
    )
    for stage, row in profile.stages.items():
        parts = [f"{row[part]['p50']:.0f}/{row[part]['p95']:.0f}" for part in CALL_PARTS[:4]]
        times.add_row(stage, str(row["calls"]), str(row["frames"]), *parts)
        speeds = [f"{row['frames_per_s'][str(size)]:.0f}" if row["frames_per_s"] else "–" for size in BATCH_SIZES]
        memory, name = row["memory"], stage
        if encoder := memory.get("encoder"):
            name = f"{stage} ({encoder})"
        sizes.add_row(name, *speeds, f"{memory['rss_mb']:.0f}", f"{memory['gpu_mb']:.0f}")
    return times, sizes


def _handle(stage: str) -> Any:
    from ray import serve

    return serve.get_deployment_handle(stage, APP)


async def _speak(text: str, session_id: str, enhance: bool) -> dict[str, Any]:
    handle = _handle("Stitch").options(stream=True, session_id=session_id)
    await _handle("Stitch").options(session_id=session_id).remove.remote(session_id)
    request = SpeakRequest(session_id, text, enhance=enhance, deliver=False, calls=True)
    async for event in handle.speak.remote(request):
        if event.summary is not None:
            await _handle("Stitch").options(session_id=session_id).remove.remote(session_id)
            return dict(event.summary)
    raise RuntimeError("the utterance ended without a summary")


async def _throughput(stage: str, avatar_id: str) -> dict[str, float]:
    """Frames per second of a stage driven alone, by frames per call; empty for stages without frames."""
    drive = {"AudioFeatures": _drive_features, "LipSync": _drive_lipsync, "Enhance": _drive_enhance}.get(stage)
    if drive is None:
        return {}
    speeds = {}
    for batch in BATCH_SIZES:
        await drive(batch, avatar_id)  # warm-up
        count, begin_s = 0, time.perf_counter()
        while time.perf_counter() - begin_s < DRIVE_S:
            await drive(batch, avatar_id)
            count += batch
        speeds[str(batch)] = round(count / (time.perf_counter() - begin_s), 1)
    return speeds


async def _drive_features(batch: int, avatar_id: str) -> None:
    speech = Speech(np.zeros(batch * 640, np.float32), 16_000)  # 640 samples per frame at 25 fps
    await _handle("AudioFeatures").windows.remote(speech, 25)


async def _drive_lipsync(batch: int, avatar_id: str) -> None:
    windows = FeatureWindows(np.zeros((batch, 50, 384), np.float16), 25)
    await _handle("LipSync").generate.remote(Stamped(windows, ()), 0, batch, avatar_id, 0, 0)


async def _drive_enhance(batch: int, avatar_id: str) -> None:
    crops = FaceCrops(np.zeros((batch, 256, 256, 3), np.uint8), 0, avatar_id)
    await _handle("Enhance").restore.remote(Stamped(crops, ()))


def run(awaitable: Awaitable[Profile]) -> Profile:
    """Run the coroutine of `profile_graph` and return its profile."""

    async def wait() -> Profile:
        return await awaitable

    return asyncio.run(wait())
