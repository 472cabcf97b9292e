"""The autoscaling policy of LipSync, Enhance and Stitch: replicas follow the work that is due.

It runs in Serve's controller.

Serve's own policy counts ongoing calls. A call may be one frame or sixteen, wait for its time or be late already, and a
watched session is an ongoing call of Stitch for as long as it is watched. Here each replica reports how busy live
speech keeps it, what waits, and by how much the most urgent work is late; see ReplicaLoad.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

LOAD, WAITING_S, LATE_S, FILES, START_S = "load", "waiting_s", "late_s", "files", "start_s"  # metrics of each replica


@dataclass(slots=True)
class ReplicaLoad:
    """What one replica reports. Not thread-safe: one event loop. threads: that compute at a time."""

    threads: int = 1
    _live_s: float = 0.0  # computed for live speech since `_since_s`
    _since_s: float = field(default_factory=lambda: time.monotonic())

    def add(self, compute_s: float) -> None:
        """Count compute time of live speech."""
        self._live_s += compute_s

    def metrics(self, waiting_s: float, late_s: float, files: int, start_s: float) -> dict[str, float]:
        """For `record_autoscaling_stats`, which Serve calls at intervals of metrics_interval_s.

        waiting_s: seconds of work of live speech that wait. late_s: by which the most overdue of it is late. files:
        utterances that nobody watches and that have work here. start_s: how long this replica took to start.
        """
        now_s = time.monotonic()
        share = self._live_s / (max(now_s - self._since_s, 1e-3) * self.threads)
        self._live_s, self._since_s = 0.0, now_s
        values = (min(1.0, share), waiting_s, max(0.0, late_s), float(files), start_s)
        return dict(zip((LOAD, WAITING_S, LATE_S, FILES, START_S), values, strict=True))


class ByDeadline:
    """Enough replicas that live speech keeps each of them `busy` (0 to 1) of its time, and that nothing is late.

    Work that waits is to be done within reserve_s, the part of a viewer's reserve that may be used up. Where load
    grows, replicas are asked for as early as they take to start. Utterances that nobody watches add one replica per
    `target_ongoing_requests`, however fast they are made. A replica is given up when the others would be less than
    `keep` × `busy` busy, so that the number does not go up and down; downscale_delay_s applies as well.
    """

    def __init__(self, busy: float = 0.7, reserve_s: float = 2.0, keep: float = 0.8) -> None:
        self._busy, self._reserve_s, self._keep = busy, reserve_s, keep

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """context: Serve's AutoscalingContext. Without metrics the number of replicas stays as it is."""
        series = context.raw_metrics or {}
        if not any((series.get(LOAD) or {}).values()):
            return context.target_num_replicas, {}
        now, target = context.current_num_replicas, context.target_num_replicas
        first, last = (self._demand(series, half) for half in (0, 1))
        start_s = max(_values(series, START_S, 1), default=0.0)
        growth = 2 * (last - first) / max(1.0, _span_s(series))  # from the middle of one half to that of the other
        demand = (first + last) / 2
        if late_s := max(_values(series, LATE_S, 1), default=0.0):
            demand = max(demand, self._busy * (now + min(1.0, late_s / self._reserve_s + 0.5)))
        demand += min(max(0.0, growth) * start_s, demand / 2)  # at most half as much again
        files = sum(_values(series, FILES, 1)) / context.config.get_target_ongoing_requests()
        if (needed := demand / self._busy + files) >= target:
            return needed, {}
        return float(min(target, math.ceil(needed / self._keep))), {}

    def _demand(self, series: dict[str, dict[Any, Any]], half: int) -> float:
        """Replicas' worth of live work, in the first (0) or second (1) half of the reports."""
        return sum(_values(series, LOAD, half)) + sum(_values(series, WAITING_S, half)) / self._reserve_s


def _values(series: dict[str, dict[Any, Any]], name: str, half: int) -> list[float]:
    """The mean of a metric per replica, over the first (0) or second (1) half of its reports."""
    means = []
    for reports in series.get(name, {}).values():
        if reports:
            middle = (len(reports) + 1) // 2
            part = reports[:middle] if half == 0 else reports[len(reports) - middle :]
            means.append(sum(float(report.value) for report in part) / len(part))
    return means


def _span_s(series: dict[str, dict[Any, Any]]) -> float:
    """Seconds from the first to the latest report, of the replica that has reported for the longest time."""
    return max(reports[-1].timestamp - reports[0].timestamp for reports in series[LOAD].values() if reports)
