"""The autoscaling policy of LipSync, Enhance and Stitch: replicas follow the work that is due.

It runs in Serve's controller. Serve's own policy counts ongoing calls. A call may be one frame or sixteen, wait for its
time or be late already; a session makes seconds of reserve as fast as it can when it begins to speak, and needs little
afterwards; and a watched session is an ongoing call of Stitch for as long as it is watched. Here each replica reports
what its live sessions need at the pace at which they are played, and what is late; see ReplicaLoad.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# metrics of each replica
LOAD = "load"  # share of its time that live speech takes; frames that are made ahead of their pace do not count
NEED = "need"  # share of one replica's time that all live sessions seen here need, wherever they are served
OVERDUE_S, LATE_S = "overdue_s", "late_s"  # seconds of work that is overdue; by which the most overdue is late
FILES, START_S = "files", "start_s"  # utterances that nobody watches; what the replica took to start
SEEN_S = 2.0  # after which a live session that sends nothing counts no more
KEPT_S = 60.0  # after which it is forgotten where Serve asks for no reports: in a stage that is not scaled
AHEAD = 1.1  # times its pace, of which a session's frames count
HISTORY_S, GROWTH_SHARE = 8.0, 0.1  # over which demand must have grown, and by which share, to be expected to grow on


@dataclass(slots=True)
class _Session:
    fps: float
    seen_s: float
    frames: int = 0  # made for it since the latest report


@dataclass(slots=True)
class ReplicaLoad:
    """What one replica reports. Not thread-safe: one event loop."""

    _sessions: dict[str, _Session] = field(default_factory=dict)
    _since_s: float = field(default_factory=lambda: time.monotonic())

    def seen(self, session: str, fps: float, made: int = 0) -> None:
        """A live session has asked for frames, or `made` frames have been made for it. fps: at which it is played."""
        now_s = time.monotonic()
        if session not in self._sessions:
            self._sessions = {name: s for name, s in self._sessions.items() if now_s - s.seen_s <= KEPT_S}
        entry = self._sessions.setdefault(session, _Session(fps, now_s))
        entry.seen_s, entry.fps = now_s, fps
        entry.frames += made

    def metrics(
        self, frame_s: float, overdue_frames: int, late_s: float, files: int, start_s: float
    ) -> dict[str, float]:
        """For `record_autoscaling_stats`, which Serve calls at intervals of metrics_interval_s.

        frame_s: compute time per frame. late_s: by which the most overdue live frame is late. files: utterances that
        nobody watches and that have work here. start_s: how long this replica took to start.
        """
        now_s = time.monotonic()
        interval_s, self._since_s = max(now_s - self._since_s, 1e-3), now_s
        sessions = self._sessions.values()
        frames = sum(min(session.frames, AHEAD * session.fps * interval_s) for session in sessions)
        self._sessions = {name: s for name, s in self._sessions.items() if now_s - s.seen_s <= SEEN_S}
        need = sum(session.fps for session in self._sessions.values()) * frame_s
        for session in self._sessions.values():
            session.frames = 0
        values = (
            min(1.0, frames * frame_s / interval_s),
            need,
            overdue_frames * frame_s,
            max(0.0, late_s),
            files,
            start_s,
        )
        return dict(zip((LOAD, NEED, OVERDUE_S, LATE_S, FILES, START_S), map(float, values), strict=True))


class ByDeadline:
    """Enough replicas that live speech keeps each of them `busy` (0 to 1) of its time, and that nothing is late.

    Overdue work is to be made up for within reserve_s. Where demand has grown for seconds, replicas are asked for as
    early as they take to start. Utterances that nobody watches add one replica per `target_ongoing_requests`, however
    fast they are made. A replica is given up when the others would be less than `keep` × `busy` busy, so that the
    number does not go up and down; downscale_delay_s applies as well.
    """

    def __init__(self, busy: float = 0.7, reserve_s: float = 2.0, keep: float = 0.85) -> None:
        self._busy, self._reserve_s, self._keep = busy, reserve_s, keep

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """context: Serve's AutoscalingContext. Without metrics the number of replicas stays as it is."""
        series = context.raw_metrics or {}
        if not any((series.get(LOAD) or {}).values()):
            return context.target_num_replicas, {}
        now, target = context.current_num_replicas, context.target_num_replicas
        demand = max(sum(_means(series, LOAD)), *_latest(series, NEED))
        at_s = max(reports[-1].timestamp for reports in series[LOAD].values() if reports)
        history = [(t, value) for t, value in (context.policy_state or {}).get("history", []) if at_s - t < HISTORY_S]
        if not history or at_s > history[-1][0]:
            history.append((at_s, demand))
        soon = demand + min(_growth(history) * max(_latest(series, START_S)), demand / 2)  # at most half as much again
        soon += sum(_latest(series, OVERDUE_S)) / self._reserve_s
        if any(_latest(series, LATE_S)):
            soon = max(soon, self._busy * (now + 1))
        files = sum(_latest(series, FILES)) / context.config.get_target_ongoing_requests()
        needed = soon / self._busy + files
        if needed < target:
            steady = max(value for _, value in history)
            needed = min(target, math.ceil(max(needed, steady / self._busy + files) / self._keep))
        return needed, {"history": history}


def _latest(series: dict[str, dict[Any, Any]], name: str) -> list[float]:
    """The latest report of a metric, per replica; [0] without reports."""
    return [float(reports[-1].value) for reports in series.get(name, {}).values() if reports] or [0.0]


def _means(series: dict[str, dict[Any, Any]], name: str) -> list[float]:
    """The mean of a metric's reports in the look-back period, per replica."""
    found = [reports for reports in series.get(name, {}).values() if reports]
    return [sum(float(report.value) for report in reports) / len(reports) for reports in found]


def _growth(history: list[tuple[float, float]]) -> float:
    """By how much demand grows per second, by least squares; 0 if it has not grown for HISTORY_S / 2 or by little."""
    times_s, values = (np.array(column) for column in zip(*history, strict=True))
    if times_s[-1] - times_s[0] < HISTORY_S / 2:
        return 0.0
    slope = float(np.polyfit(times_s - times_s[0], values, 1)[0])
    return slope if slope * (times_s[-1] - times_s[0]) > GROWTH_SHARE * values.mean() else 0.0
