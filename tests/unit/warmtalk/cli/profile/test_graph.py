"""A graph of fakes: what is spoken, driven and reported."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.common.messages import SpeakEvent, SpeakRequest
from models.types import Speech
from warmtalk.cli.profile import driving, graph

CALL = {"queue_ms": 1.0, "transfer_ms": 2.0, "compute_ms": 16.0, "wall_ms": 19.0, "busy_ms": 8.0}
STAGES = ("TTS", "LipSync", "Stitch")


class FakeGraph:
    """Stages that answer at once. Calls of LipSync take 1 ms and 1 ms per frame of virtual time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.spoken: list[SpeakRequest] = []
        self.most_speaking = self.speaking = 0
        self.driven: list[int] = []
        for module in (graph, driving):
            monkeypatch.setattr(module, "handle", self.handle)
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def handle(self, stage: str) -> Any:
        methods = {"Stitch": {"remove": self._remove, "speak": self._speak}, "TTS": {"speak": self._voice},
                   "LipSync": {"generate": self._generate}}[stage]  # fmt: skip
        made = SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})
        made.options = lambda **options: made
        made.broadcast = lambda method: SimpleNamespace(results_async=lambda: self._stats(stage))
        return made

    async def _stats(self, stage: str) -> list[dict[str, Any]]:
        memory = {"rss_mb": 100.0, "gpu_mb": 0.0, "gpu_reserved_mb": 0.0, "gpu_peak_mb": 0.0}
        return [{"config": {"batch_size": 4} if stage == "LipSync" else {}, "start_s": 1.5, **memory}] * 2

    async def _remove(self, session_id: str) -> None: ...

    async def _speak(self, request: SpeakRequest):
        self.spoken.append(request)
        self.speaking += 1
        self.most_speaking = max(self.most_speaking, self.speaking)
        await asyncio.sleep(0)
        self.now_s += 1.0
        self.speaking -= 1
        calls = [{"stage": stage, "frames": 0 if stage == "TTS" else 8, **CALL} for stage in STAGES for _ in range(3)]
        yield SpeakEvent(b"video")
        yield SpeakEvent(summary={"avatar_id": "a", "ttff_ms": 100.0, "rtf": 0.5, "frames": 24, "calls": calls})

    async def _voice(self, text: str):
        self.now_s += 0.5
        yield SimpleNamespace(value=Speech(np.zeros(16_000, np.float32), 16_000))

    async def _generate(self, features: Any, start: int, count: int, *rest: Any) -> None:
        self.driven.append(count)
        self.now_s += 0.001 + 0.001 * count


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeGraph:
    return FakeGraph(monkeypatch)


def profiled(**options: Any) -> graph.GraphProfile:
    return asyncio.run(graph.profile_graph(graph.Options(**options)))


def test_every_stage_that_was_called_has_a_row_with_its_percentiles_and_replicas(fake: FakeGraph) -> None:
    found = profiled(repeats=1, sizes=(1,), sessions=())
    assert list(found.stages) == list(STAGES)
    row = found.stages["LipSync"]
    assert (row["calls"], row["frames"], row["replicas"], row["start_s"]) == (9, 72, 2, 1.5)
    assert row["compute_ms"] == {"p50": 16.0, "p95": 16.0, "p99": 16.0}
    assert found.ttff_ms == [100.0] * 3 and found.trace["calls"] and found.tree_mb > 0
    assert all(request.calls and not request.deliver and request.enhance for request in fake.spoken)


def test_sessions_speak_at_the_same_time_and_each_by_itself_in_order(fake: FakeGraph) -> None:
    found = profiled(repeats=1, enhance=False, sizes=(1,), sessions=(1, 3), drive_alone=False)
    assert fake.most_speaking == 3 and len(fake.spoken) == 3 + 3 + 9
    assert not any(request.enhance for request in fake.spoken)
    alone, three = found.sessions["1"], found.sessions["3"]
    assert alone["frames_per_s"] == 24.0 and three["ttff_ms"]["p50"] == 100.0  # 24 frames in a virtual second
    assert found.stages["LipSync"]["under_load"]["busy_ms_per_frame"] == 1.0
    assert not fake.driven and "speed" not in found.stages["LipSync"]


def test_stages_are_driven_with_every_size_and_full_batches_overlap(fake: FakeGraph) -> None:
    found = profiled(repeats=1, sizes=(1, 4), sessions=(), stage="LipSync")
    speed = found.stages["LipSync"]["speed"]
    assert speed["1"]["median"] == pytest.approx(1 / 0.002) and speed["4"]["median"] == pytest.approx(4 / 0.005)
    assert set(fake.driven) == {1, 4} and "speed" not in found.stages["TTS"]


def test_the_voice_is_driven_by_the_sentence(fake: FakeGraph) -> None:
    found = profiled(repeats=1, sizes=(1, 4), sessions=(), stage="TTS")
    assert list(found.stages["TTS"]["speed"]) == ["25"]  # one second of speech
    assert found.stages["TTS"]["speed"]["25"]["median"] == pytest.approx(50.0)
