"""The rows of benchmarks/targets.py: their targets, what was measured, and the table."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CROPPED = {"decoder": "vae", "decode": "cropped"}
FULL = {"decoder": "vae", "decode": "full"}
TINY = {"decoder": "tiny", "decode": "cropped"}
CROWD = 20  # sessions whose TTFF is measured at once


@dataclass(frozen=True, slots=True)
class Row:
    """One target. at_least: a larger value is better. lipsync: what its user_config must be."""

    key: str
    what: str
    target: float
    unit: str
    at_least: bool = True
    lipsync: dict[str, str] = field(default_factory=lambda: CROPPED)

    def line(self, value: float | None, manual: float | None, note: str) -> str:
        sign = "≥" if self.at_least else "≤"
        target = f"{sign} {self.target:g} {self.unit}"
        if value is None:
            return f"| {self.what} | {target} | {note} | | |"
        met = value >= self.target if self.at_least else value <= self.target
        ratio = f"{value / self.target:.2f} {'ok' if met else 'MISSED'}"
        return f"| {self.what} | {target} | {value:.4g}{f' ({note})' if note else ''} | {ratio} | {_number(manual)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


ROWS = (
    Row("lipsync-cropped", "LipSync stage, cropped sd-vae decoder", 750, "frames/s"),
    Row("enhance", "Enhance (GFPGAN)", 600, "faces/s"),
    Row("ttff", "TTFF of a streamed /speak, one session, p50", 120, "ms", False),
    Row("ttff-p95", "the same, p95", 250, "ms", False),
    Row("ttff-20", f"TTFF at {CROWD} sessions, p95", 500, "ms", False),
    Row("sessions-cropped", "watched sessions, 1280 × 720 px, cropped decoder", 24, "sessions"),
    Row("sessions-gfpgan", "the same with GFPGAN", 10, "sessions"),
    Row("lipsync-full", "LipSync stage, full sd-vae decoder", 520, "frames/s", True, FULL),
    Row("lipsync-tiny", "LipSync stage, tiny decoder, cropped", 1650, "frames/s", True, TINY),
    Row("sessions-tiny", "watched sessions, 1280 × 720 px, tiny decoder", 40, "sessions", True, TINY),
    Row("two-gpus", "frames/s of sessions that stream on two GPUs, as a multiple of one", 1.8, "×"),
)

BY_KEY = {row.key: row for row in ROWS}


@dataclass(slots=True)
class Results:
    """Measured values by row, notes, and all details for the JSON file."""

    values: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    manual: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def attempt(self, *keys: str) -> Iterator[None]:
        """An error is the note of these rows, and the other rows go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - reported in the table
            traceback.print_exc()
            for key in keys:
                self.notes.setdefault(
                    key, f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
                )


def table(rows: tuple[Row, ...], results: Results) -> str:
    """Markdown: what, target, measured, ratio, MuseTalk's way."""
    lines = ["| what | target | measured | of the target | MuseTalk's way |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        found = results.values.get(row.key), results.manual.get(row.key)
        lines.append(row.line(*found, results.notes.get(row.key, "")))
    return "\n".join(lines)


def missed(rows: tuple[Row, ...], results: Results) -> list[str]:
    """The keys of the measured rows that miss their targets."""
    found = [(row, results.values[row.key]) for row in rows if row.key in results.values]
    return [row.key for row, value in found if (value < row.target if row.at_least else value > row.target)]
