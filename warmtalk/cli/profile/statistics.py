"""Medians with their uncertainty, and the comparison of two profiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

TOLERANCE = 0.05  # smaller differences of two medians count as the same
LEAST_CHANGE = {"MB": 20.0, "s": 1.0, "ms": 0.5}  # by unit; below, too

Word = Literal["better", "worse", "same", "new", "gone"]


@dataclass(frozen=True, slots=True)
class Measure:
    """The median of n samples. low, high: the range in which it lies with 95 % confidence, by order statistics."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Measure:
        """values: at least one. Fewer than six do not suffice for 95 %: low and high are the extremes."""
        ordered, n = sorted(values), len(values)
        # the number of samples below the median is binomial: n/2 ± 1.96 · √n/2
        first = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
        return cls(float(np.median(ordered)), float(ordered[first]), float(ordered[n - 1 - first]), n)

    def to_dict(self) -> dict[str, float]:
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a profile: `LipSync`, `compute`, its measure, its unit, and whether more is better."""

    stage: str
    name: str
    measure: Measure
    unit: str
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure of two profiles. change: relative, of the medians; None where there is only one."""

    stage: str
    name: str
    unit: str
    before: float | None
    now: float | None
    change: float | None
    word: Word


def compare(before: dict[str, Any], now: dict[str, Any]) -> list[Verdict]:
    """A verdict per figure of two profiles as JSON. A difference that noise explains is `same`."""
    old, new = ({(row.stage, row.name): row for row in rows(profile)} for profile in (before, now))
    verdicts = []
    for key in [*new, *(key for key in old if key not in new)]:
        if key not in old or key not in new:
            row = new.get(key) or old[key]
            median = row.measure.median
            earlier, later = (None, median) if key in new else (median, None)
            verdicts.append(Verdict(*key, row.unit, earlier, later, None, "new" if key in new else "gone"))
        else:
            verdicts.append(_verdict(old[key], new[key]))
    return verdicts


def _verdict(before: Row, now: Row) -> Verdict:
    a, b = before.measure, now.measure
    change = (b.median - a.median) / a.median if a.median else (0.0 if not b.median else math.inf)
    apart = a.high < b.low or b.high < a.low
    small = abs(change) <= TOLERANCE or abs(b.median - a.median) < LEAST_CHANGE.get(now.unit, 0.0)
    word: Word = "same"
    if apart and not small:
        word = "better" if (b.median > a.median) == now.more_is_better else "worse"
    return Verdict(now.stage, now.name, now.unit, a.median, b.median, change, word)


def rows(profile: dict[str, Any]) -> Iterator[Row]:
    """The figures of a profile that are compared."""
    for stage, facts in profile.get("stages", {}).items():
        for part, measure in facts.get("medians", {}).items():
            yield Row(stage, part.removesuffix("_ms"), Measure(**measure), "ms")
        for frames, measure in facts.get("speed", {}).items():
            yield Row(stage, f"speed at {frames}", Measure(**measure), "frames/s", True)
        for key, name in (("rss_mb", "memory"), ("gpu_mb", "GPU memory")):
            if value := facts.get("memory", {}).get(key):
                yield Row(stage, name, Measure(value, value, value, 1), "MB")
        if value := facts.get("start_s"):
            yield Row(stage, "start", Measure(value, value, value, 1), "s")
    for count, facts in profile.get("sessions", {}).items():
        yield Row(f"{count} sessions", "TTFF", Measure(**facts["ttff"]), "ms")
        yield Row(f"{count} sessions", "speed", Measure(**facts["speed"]), "frames/s", True)
