"""Profiles a running graph: speaks in one session and in several, then drives each stage with calls of all sizes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from deployments.common.messages import SpeakRequest
from deployments.common.recent_calls import PERCENTILES
from deployments.stitch.metrics import CALL_PARTS
from warmtalk.cli.profile.alone import row_of
from warmtalk.cli.profile.driving import DRIVEN, InGraph, drive, handle
from warmtalk.cli.profile.driving import call as call_stage
from warmtalk.cli.profile.statistics import Measure
from warmtalk.cli.tables import STAGES

BATCH_SIZES = (1, 4, 16, 64)
SESSIONS = (1, 4)
SENTENCES = (
    "Welcome to the profile of this graph.",
    "Every stage reports how long it waited, how long it computed, and how long its data travelled.",
    "The table below shows the result.",
)
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """repeats: how often each sentence is spoken. stage: drive this one alone; None: all."""

    repeats: int = 2
    enhance: bool = True
    sizes: Sequence[int] = BATCH_SIZES
    sessions: Sequence[int] = SESSIONS
    stage: str | None = None
    drive_alone: bool = True


@dataclass(slots=True)
class GraphProfile:
    """What was measured in a graph. stages: rows by stage. trace: the calls of one utterance, with its request id."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    ttff_ms: list[float] = field(default_factory=list)
    rtf: list[float] = field(default_factory=list)
    tree_mb: float = 0.0
    trace: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        facts = {"stages": self.stages, "sessions": self.sessions, "ttff_ms": self.ttff_ms, "rtf": self.rtf}
        return {**facts, "tree_mb": round(self.tree_mb)}


async def profile_graph(options: Options | None = None, step: Step = lambda name: None) -> GraphProfile:
    """Speak SENTENCES, then drive the stages. Needs a running graph in this process's Ray.

    step: called with a description of each step. Raises RayError, or the error of a stage.
    """
    options, profile = options or Options(), GraphProfile()
    # 1. one session after another
    summaries = []
    for index in range(options.repeats * len(SENTENCES)):
        step(f"speaking {index + 1} of {options.repeats * len(SENTENCES)}")
        summaries.append(await _speak(SENTENCES[index % len(SENTENCES)], f"profile-{index}", options.enhance))
    profile.ttff_ms = [summary["ttff_ms"] for summary in summaries]
    profile.rtf = [summary["rtf"] for summary in summaries]
    calls = [call for summary in summaries for call in summary["calls"]]
    profile.trace = summaries[1 % len(summaries)]
    # 2. several at a time
    under_load = calls
    for count in options.sessions:
        step(f"speaking in {count} sessions at a time")
        profile.sessions[str(count)], under_load = await _speak_at_once(count, options.enhance)
    # 3. each stage
    for stage in STAGES:
        own = [call for call in calls if call["stage"] == stage]
        if own:
            profile.stages[stage] = await _stage_row(stage, own, under_load, summaries[0]["avatar_id"], options, step)
    profile.tree_mb = tree_megabytes()
    return profile


async def _stage_row(
    stage: str,
    calls: list[dict[str, Any]],
    under_load: list[dict[str, Any]],
    avatar_id: str,
    options: Options,
    step: Step,
) -> dict[str, Any]:
    row: dict[str, Any] = {"calls": len(calls), "frames": sum(call["frames"] for call in calls)}
    row |= {part: _percentiles([call[part] for call in calls]) for part in CALL_PARTS}
    row["medians"] = {part: Measure.of([call[part] for call in calls]).to_dict() for part in CALL_PARTS[:4]}
    loaded = [call for call in under_load if call["stage"] == stage]
    if loaded:
        row["under_load"] = {part: _percentiles([call[part] for call in loaded]) for part in CALL_PARTS[:4]}
        busy_ms = sum(call["busy_ms"] for call in loaded)
        row["under_load"]["busy_ms_per_frame"] = busy_ms / max(1, sum(call["frames"] for call in loaded))
    replicas = await every_stats(stage)
    if not replicas:  # autoscaling has stopped the last one meanwhile
        await call_stage(stage, InGraph(stage), 1, avatar_id)
        replicas = await every_stats(stage)
    batch_size = int(replicas[0]["config"].get("batch_size", 0))
    row |= {"replicas": len(replicas), **row_of(replicas[0], batch_size)}
    if stage in DRIVEN and options.drive_alone and options.stage in (None, stage):
        speeds = await drive(stage, InGraph(stage), options.sizes, avatar_id, batch_size, step)
        row["speed"] = {size: speed.to_dict() for size, speed in speeds.items()}
        row |= row_of((await every_stats(stage))[0], batch_size)
    return row


async def every_stats(stage: str) -> list[dict[str, Any]]:
    """The statistics of every replica of a stage."""
    replies: list[dict[str, Any]] = await handle(stage).broadcast("stats").results_async()
    return replies


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 2) for p in PERCENTILES}


async def _speak(text: str, session_id: str, enhance: bool) -> dict[str, Any]:
    """The summary of an utterance with its calls. The session is removed before and after."""
    stitch = handle("Stitch").options(session_id=session_id)
    await stitch.remove.remote(session_id)
    request = SpeakRequest(session_id, text, enhance=enhance, deliver=False, calls=True)
    async for event in stitch.options(stream=True).speak.remote(request):
        if event.summary is not None:
            await stitch.remove.remote(session_id)
            return dict(event.summary)
    raise RuntimeError("the utterance ended without a summary")


async def _speak_at_once(count: int, enhance: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """TTFF and speed of `count` sessions that speak at the same time, three sentences each, and all their calls."""

    async def session(number: int) -> list[tuple[float, float, dict[str, Any]]]:
        done = []
        for k in range(len(SENTENCES)):
            begin_s = time.perf_counter()
            summary = await _speak(SENTENCES[(number + k) % len(SENTENCES)], f"profile-load-{number}", enhance)
            done.append((begin_s, time.perf_counter(), summary))
        return done

    begin_s = time.perf_counter()
    spoken = [entry for done in await asyncio.gather(*(session(k) for k in range(count))) for entry in done]
    wall_s = time.perf_counter() - begin_s
    summaries = [summary for *_, summary in spoken]
    ttff_ms = [summary["ttff_ms"] for summary in summaries]
    rates = [summary["frames"] * count / (end_s - start_s) for start_s, end_s, summary in spoken]
    facts = {
        "ttff_ms": _percentiles(ttff_ms),
        "ttff": Measure.of(ttff_ms).to_dict(),
        "frames_per_s": round(sum(summary["frames"] for summary in summaries) / wall_s, 1),
        "speed": Measure.of(rates).to_dict(),
        "rtf": round(float(np.median([summary["rtf"] for summary in summaries])), 3),
    }
    return facts, [call for summary in summaries for call in summary["calls"]]


def tree_megabytes() -> float:
    """Memory of this process and its descendants, MB. Shared pages count once (proportional set size)."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
