"""What a gate is: a number, the bar that it is held against, and where it is worst. Knows no videos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A measure over time: `made` at frames `at`, and what the source has there, where it is known."""

    at: npt.NDArray[np.int64]
    made: Float64
    source: Float64 | None = None
    unit: str = ""
    made_label: str = "video"
    source_label: str = "source"


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """One question to a video.

    name: as in JSON. title, about: for people. value: None where it was not measured; `why` then says why. low, high:
    the bar's sides; a gate with neither is told and never broken. numbers: more of the same. worst: the frame that is
    worst. marks: frames to mark on the curve.
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
    def has_bar(self) -> bool:
        return self.low is not None or self.high is not None

    @property
    def broken(self) -> bool:
        if self.value is None or not self.has_bar:
            return False
        below = self.low is not None and self.value < self.low
        above = self.high is not None and self.value > self.high
        return below or above or bool(np.isnan(self.value))

    @property
    def verdict(self) -> str:
        """pass, broken, told (no bar), or skipped (not measured)."""
        if self.value is None:
            return "skipped"
        return "broken" if self.broken else "pass" if self.has_bar else "told"

    @property
    def bar(self) -> str:
        """The bar in words, such as ≤ 1.05."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} … {self.high:g}"
        return f"≥ {self.low:g}" if self.low is not None else f"≤ {self.high:g}" if self.high is not None else ""

    def to_dict(self, fps: float) -> dict[str, Any]:
        """For JSON: numbers are rounded to 5 digits behind the point."""
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
    """A gate that could not be measured."""
    return Gate(name, title, about, None, why=why)
