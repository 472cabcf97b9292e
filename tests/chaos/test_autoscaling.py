"""Enhance scales alone, from zero and back, while sessions speak with and without it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from ray import serve

from configs.serve_file import deployment_of, load_serve_config
from tests.chaos.checks import finished, record
from tests.chaos.harness import STAGES, ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience
from tests.graph.requests import wait_until
from tests.support.paths import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.soak]

PLAIN, ENHANCED = 1, 2
LONG, TEXT = "This session speaks without enhancement. " * 14, "This session speaks with enhancement. " * 8  # 46, 24 s
SLOW_MS = 25  # per face: two sessions need 1.25 replicas
IDLE_S = 4.0  # after which Enhance is scaled down
PLOT = ROOT / "out" / "enhance_alone.png"


class ReplicaCounts(threading.Thread):
    """Notes the number of running replicas of every stage, four times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[float, dict[str, int]]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.25):
            deployments = serve.status().applications["warmtalk"].deployments
            counts = {stage: int(deployments[stage].replica_states.get("RUNNING", 0)) for stage in STAGES}
            self.rows.append((time.monotonic(), counts))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def of(self, stage: str) -> list[int]:
        return [counts[stage] for _, counts in self.rows]


def scale_enhance_by_work(config: dict[str, Any]) -> None:
    """Enhance from zero to three replicas, by the policy of configs/cluster.yaml."""
    deployment = deployment_of(config, "Enhance")
    del deployment["num_replicas"]
    given = deployment_of(load_serve_config("cluster"), "Enhance")["autoscaling_config"]
    quick = {"min_replicas": 0, "max_replicas": 3, "downscale_delay_s": IDLE_S, "downscale_to_zero_delay_s": 3 * IDLE_S}
    deployment["autoscaling_config"] = given | quick


@pytest.mark.promise(
    "Enhance scaled alone, from zero: one session without enhancement, then two with it, each watched",
    "only Enhance grows and shrinks; nobody pauses > 1 s; enhanced speech begins without it and gains it",
)
def test_enhance_grows_alone_and_shrinks_again(graph: ChaosGraph, audience: Audience, row: Row, name: str) -> None:
    graph.deploy(scale_enhance_by_work)
    wait_until(lambda: graph.running_replicas("Enhance") == 0, "Enhance has no replica", 60)
    graph.inject("Enhance", kind="slow", ms_per_item=SLOW_MS)
    plain = [f"{name}-plain-{k}" for k in range(PLAIN)]
    enhanced = [f"{name}-enhanced-{k}" for k in range(ENHANCED)]
    audience.open(*plain, *enhanced)
    counts = ReplicaCounts()
    counts.start()
    began_s = time.monotonic()
    asked = {session_id: audience.speak(session_id, LONG) for session_id in plain}
    time.sleep(4.0)
    assert set(counts.of("Enhance")) == {0}, "speech without enhancement starts no replica"
    first_s = time.monotonic()
    asked |= {session_id: audience.speak(session_id, TEXT, enhance=True) for session_id in enhanced}
    answers = finished(asked)
    ended_s = time.monotonic()
    wait_until(lambda: graph.running_replicas("Enhance") == 0, "Enhance is given up again", 60)
    gone_s = time.monotonic()
    counts.stop()
    record(row, audience, answers, began_s, ended_s)
    row.saw(
        most_replicas=max(counts.of("Enhance")),
        first_replica_s=next(at_s for at_s, given in counts.rows if given["Enhance"]) - first_s,
        given_up_s=gone_s - ended_s,
    )
    plot(counts, began_s, first_s)
    for stage in STAGES:
        if stage != "Enhance":
            assert set(counts.of(stage)) == {1}, stage
    assert row.seen["failed_utterances"] == row.seen["lost_frames"] == 0, row.notes
    assert row.seen["longest_gap_s"] <= 1 and row.seen["longest_pause_s"] <= 1, row.seen
    assert row.seen["most_replicas"] >= 2, row.seen
    for session_id in enhanced:
        made = answers[session_id].body["stages"].get("Enhance", {"frames": 0})["frames"]
        assert 0 < made < answers[session_id].frames, "it began without enhancement and gained it"


def plot(counts: ReplicaCounts, began_s: float, first_s: float) -> None:
    """Replicas of all stages over time, for the documentation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    times_s = [at_s - began_s for at_s, _ in counts.rows]
    axes.step(times_s, counts.of("Enhance"), where="post", label="Enhance", linewidth=2.5)
    for stage in ("LipSync", "Stitch", "TTS"):
        axes.step(times_s, counts.of(stage), where="post", label=stage, linestyle=":")
    axes.axvline(first_s - began_s, color="grey", linewidth=0.8)
    axes.text(first_s - began_s, 3.05, " two enhanced sessions begin", fontsize=8)
    axes.set(xlabel="seconds", ylabel="replicas", ylim=(-0.1, 3.3), yticks=range(4))
    axes.legend(loc="upper right", ncols=4, fontsize=8)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)
