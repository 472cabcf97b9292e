"""A gate: a measured number, its limits, and the frame where it is worst."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A measure over time: `made` is the video's value at frames `at`, `source` that of the source if it is known."""

    at: npt.NDArray[np.int64]
    made: Float64
    source: Float64 | None = None
    unit: str = ""
    made_label: str = "video"
    source_label: str = "source"


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """One check of a video.

    name: in the JSON. title, about: for people. value: None if it was not measured, for the reason `why`. low, high:
    the limits; a gate without limits is for information only. numbers: further figures. worst: the worst frame. marks:
    frames to mark on the curve.
    """

    name: str
    title: str
    about: str
    value: float | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    why: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    curve: Curve | None = None
    worst: int | None = None
    marks: tuple[int, ...] = ()

    @property
    def has_limit(self) -> bool:
        return self.low is not None or self.high is not None

    @property
    def broken(self) -> bool:
        if self.value is None or not self.has_limit:
            return False
        below = self.low is not None and self.value < self.low
        above = self.high is not None and self.value > self.high
        return below or above or bool(np.isnan(self.value))

    @property
    def verdict(self) -> str:
        """pass, broken, info (no limit) or skipped (not measured)."""
        if self.value is None:
            return "skipped"
        return "broken" if self.broken else "pass" if self.has_limit else "info"

    @property
    def limit(self) -> str:
        """The limits as text, such as ≤ 1.05; empty without limits."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} … {self.high:g}"
        return f"≥ {self.low:g}" if self.low is not None else f"≤ {self.high:g}" if self.high is not None else ""

    def to_dict(self, fps: float) -> dict[str, Any]:
        """The gate as JSON values, rounded to 5 decimal places."""
        return {
            "verdict": self.verdict,
            "value": None if self.value is None else round(float(self.value), 5),
            "unit": self.unit,
            "low": self.low,
            "high": self.high,
            "why": self.why,
            "numbers": {key: round(float(number), 5) for key, number in self.numbers.items()},
            "worst_frame": self.worst,
            "worst_s": None if self.worst is None else round(self.worst / fps, 3),
        }


def skipped(name: str, title: str, about: str, why: str) -> Gate:
    """A gate that could not be measured, for the reason `why`."""
    return Gate(name, title, about, None, why=why)
