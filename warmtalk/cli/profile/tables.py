"""The tables of a profile, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from warmtalk.cli.profile.statistics import Verdict
from warmtalk.cli.tables import stage_table

PARTS = ("queue_ms", "transfer_ms", "compute_ms")
COLOURS = {"better": "green", "worse": "red", "same": "", "new": "dim", "gone": "dim"}


def tables(profile: dict[str, Any], verdicts: Sequence[Verdict] = ()) -> Iterator[Table]:
    """What was measured of the stages, what bounds them, the sessions, and the comparison."""
    stages = profile["stages"]
    if any(part in row for row in stages.values() for part in PARTS):
        yield _times(stages)
    yield _speeds(stages)
    if any(row.get("network") for row in stages.values()):
        yield _bounds(stages)
    if profile.get("sessions"):
        yield _sessions(profile["sessions"])
    if verdicts:
        yield comparison(verdicts)


def _times(stages: dict[str, Any]) -> Table:
    table = stage_table("Milliseconds per call, p50 / p95 / p99", "replicas", "calls", "queue", "transfer", "compute")
    for stage, row in stages.items():
        parts = [
            " / ".join(f"{row[part][p]:.0f}" for p in ("p50", "p95", "p99")) if part in row else "–" for part in PARTS
        ]
        table.add_row(stage, str(row.get("replicas", 1)), str(row.get("calls", 0)), *parts)
    return table


def _speeds(stages: dict[str, Any]) -> Table:
    sizes = sorted({int(size) for stage, row in stages.items() if stage != "TTS" for size in row["frames_per_s"]})
    title = "Frames/s by frames per call; memory in MB; start in s"
    table = stage_table(title, *map(str, sizes), "memory", "GPU reserved", "GPU peak", "start")
    for stage, row in stages.items():
        speeds = [row["frames_per_s"].get(str(size)) for size in sizes]
        memory, name = row["memory"], stage
        if stage == "TTS" and row["frames_per_s"]:
            name = f"{stage} ({next(iter(row['frames_per_s'].values())):.0f} frames/s)"
        elif encoder := row.get("encoder"):
            name = f"{stage} ({encoder})"
        megabytes = [f"{memory[key]:.0f}" for key in ("rss_mb", "gpu_mb", "gpu_peak_mb")]
        table.add_row(
            name, *("–" if speed is None else f"{speed:.0f}" for speed in speeds), *megabytes, f"{row['start_s']:.1f}"
        )
    return table


def _bounds(stages: dict[str, Any]) -> Table:
    columns = ("GFLOP/frame", "MB/frame", "FLOP/byte", "GFLOP/s", "of ceiling")
    table = stage_table("The network, counted; and what bounds the stage", *columns)
    table.add_column("bound by")
    for stage, row in stages.items():
        network, roofline = row.get("network"), row["roofline"]
        if not network:
            continue
        figures = [f"{network['gflop']:.3g}", f"{network['mb']:.3g}", f"{roofline['flop_per_byte']:.0f}"]
        reached = [f"{roofline['gflop_s']:.0f}", f"{roofline['share']:.0%}"]
        table.add_row(stage, *figures, *reached, f"[bold]{roofline['bound']}[/]: {roofline['why']}")
    return table


def _sessions(sessions: dict[str, Any]) -> Table:
    table = Table(title="Sessions that speak at the same time", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("sessions", "TTFF p50 / p95 / p99, ms", "frames/s", "RTF"):
        table.add_column(name, justify="right")
    for count, row in sessions.items():
        ttff = " / ".join(f"{row['ttff_ms'][p]:.0f}" for p in ("p50", "p95", "p99"))
        table.add_row(count, ttff, f"{row['frames_per_s']:.0f}", f"{row['rtf']:.2f}")
    return table


def comparison(verdicts: Sequence[Verdict]) -> Table:
    """A verdict per figure."""
    table = stage_table("Compared with the baseline")
    for name in ("figure", "before", "now", "change", "verdict"):
        table.add_column(name, justify="left" if name in ("figure", "verdict") else "right")
    for verdict in verdicts:
        before, now = (("–" if v is None else f"{v:,.1f} {verdict.unit}") for v in (verdict.before, verdict.now))
        change = "–" if verdict.change is None else f"{verdict.change:+.0%}"
        table.add_row(verdict.stage, verdict.name, before, now, change, verdict.word, style=COLOURS[verdict.word])
    return table
