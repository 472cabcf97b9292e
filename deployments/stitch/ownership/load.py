"""Measures what a Stitch replica renders. The directory places new sessions by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deployments.common.autoscaling import FILES, LOAD, START_S

if TYPE_CHECKING:  # a Renderer counts into a RenderLoad
    from deployments.stitch.rendering import Renderer

FIRST_FRAME_S = 0.02  # time to render a frame, until it is measured
SMOOTHING = 0.2  # weight of the latest chunk in the time per frame
IDLE_SESSIONS = 800  # watched sessions that do not speak keep a replica busy with heartbeats and little else
BUSY_SMOOTHING = 0.5  # weight of the latest interval in the busy share: live speech is rendered in bursts


@dataclass(slots=True)
class RenderLoad:
    """Of all render threads of this process. Not thread-safe: one event loop."""

    threads: int = 1
    frame_s: float = FIRST_FRAME_S
    _busy_s: float = 0.0  # since `_since_s`
    _since_s: float = field(default_factory=lambda: time.monotonic())
    _busy: float = 0.0
    _by_id: dict[int, Renderer] = field(default_factory=dict)

    @contextmanager
    def rendering(self, renderer: Renderer) -> Iterator[None]:
        """Count the work of an utterance that waits while the block runs."""
        self._by_id[id(renderer)] = renderer
        try:
            yield
        finally:
            del self._by_id[id(renderer)]

    def add(self, compute_s: float, frames: int = 0) -> None:
        """Count work of a render thread; with frames, it was a chunk."""
        self._busy_s += compute_s
        if frames:
            self.frame_s += SMOOTHING * (compute_s / frames - self.frame_s)

    def busy(self) -> float:
        """The share of the threads' time that rendering takes, 0 to 1. Call it at intervals of about a second."""
        now_s = time.monotonic()
        interval_s = now_s - self._since_s
        if interval_s >= 0.5:
            share = min(1.0, self._busy_s / (interval_s * self.threads))
            self._busy += BUSY_SMOOTHING * (share - self._busy)
            self._busy_s, self._since_s = 0.0, now_s
        return self._busy

    def backlog_s(self) -> float:
        """How long all threads need for the speech that has been synthesised and not rendered yet."""
        frames = sum(max(0, renderer.pending_frames) for renderer in self._by_id.values())
        return frames * self.frame_s / self.threads

    def scaling_metrics(self, idle_sessions: int, start_s: float) -> dict[str, float]:
        """For `record_autoscaling_stats`. idle_sessions: watched sessions that do not speak; the ingress plays them.

        Nothing counts as late here: what is late may wait for the stages before.
        """
        live = [renderer.making.fps for renderer in self._by_id.values() if renderer.making.live]
        load = sum(live) * self.frame_s / self.threads + idle_sessions / IDLE_SESSIONS
        return {LOAD: load, FILES: float(len(self._by_id) - len(live)), START_S: start_s}

    def begun(self) -> int:
        """Utterances of which a frame has been rendered."""
        return sum(renderer.writer.frames > 0 for renderer in self._by_id.values())
