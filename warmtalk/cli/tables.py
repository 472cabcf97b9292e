"""Tables of a finished utterance and of a prepared avatar, for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from deployments.stitch.metrics import CALL_PARTS

STAGES = ("TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch")  # in the order of the data
RANGES = {"face_px": "min / median / max", "crop_px": "min / median / max", "bbox_shift_range": "from / to"}


def stage_table(title: str, *columns: str) -> Table:
    """A table with one row per stage and right-aligned columns."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The stages of one utterance, from the summary in the answer of /speak."""
    title = f"{summary['frames']} frames, TTFF {summary['ttff_ms']:.0f} ms, RTF {summary['rtf']:.2f}"
    table = stage_table(title, "calls", "frames", "queue ms", "transfer ms", "compute ms", "frames/s")
    for stage in STAGES:
        if stage not in summary["stages"]:
            continue
        row = summary["stages"][stage]
        speed = row["frames"] / (row["busy_ms"] / 1e3) if row["frames"] and row["busy_ms"] else None
        parts = [f"{row[part]:.0f}" for part in CALL_PARTS[:3]]
        table.add_row(stage, f"{row['calls']:.0f}", f"{row['frames']:.0f}", *parts, f"{speed:.0f}" if speed else "–")
    return table


def report_table(report: dict[str, Any]) -> Table:
    """A preparation's report as label and value; its contact sheet's path and its warnings are printed separately."""
    table = Table(title=f"avatar {report.get('avatar_id', '')}", show_header=False)
    for key, value in report.items():
        if key not in ("contact_sheet", "warnings"):
            table.add_row(*report_row(key, value))
    return table


def report_row(key: str, value: Any) -> tuple[str, str]:
    """Label and text of one value: `face_px`, (131, 133, 136) → `face px (min / median / max)`, `131 / 133 / 136`."""
    label = key.replace("_", " ")
    if key in RANGES:
        return f"{label} ({RANGES[key]})", " / ".join(_text(part) for part in value)
    if key == "tracked":
        return f"{label} frames", f"{value:.0%}"
    if key == "seconds":
        return "prepared in", f"{value:.1f} s"
    if isinstance(value, (list, tuple)):
        return label, ", ".join(_text(part) for part in value) or "none"
    return label, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
