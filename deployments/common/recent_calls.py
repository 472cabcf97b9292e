"""The latest calls of a replica, for profiles and the page of the operator."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

KEPT_CALLS = 2048
KEPT_S = 60.0
PERCENTILES = (50, 95, 99)


class RecentCalls:
    """Frames and times of the calls of the last KEPT_S seconds. Append from one thread."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, int, dict[str, float]]] = deque(maxlen=KEPT_CALLS)

    def add(self, frames: int, **parts_ms: float) -> None:
        """A call that ends now. parts_ms: the same names in every call."""
        self._calls.append((time.monotonic(), frames, parts_ms))

    def summary(self) -> dict[str, Any]:
        """Calls, frames, the seconds that they span up to now, and per part p50, p95, p99 and sum in milliseconds."""
        now_s = time.monotonic()
        calls = [call for call in tuple(self._calls) if now_s - call[0] <= KEPT_S]
        span_s = now_s - calls[0][0] if len(calls) == KEPT_CALLS else KEPT_S
        names = calls[-1][2] if calls else ()
        parts = {name: percentiles([parts_ms[name] for _, _, parts_ms in calls]) for name in names}
        return {"calls": len(calls), "frames": sum(call[1] for call in calls), "span_s": round(span_s, 1), **parts}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the sum of at least one value."""
    found = np.percentile(values, PERCENTILES)
    return {**{f"p{p}": round(float(v), 2) for p, v in zip(PERCENTILES, found, strict=True)}, "sum": float(sum(values))}
