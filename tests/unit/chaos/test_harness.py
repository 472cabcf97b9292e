"""The chaos harness notices what it is for: another session's speech, a pause, a gap, a fault that is taken once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.chaos import faults, results
from tests.chaos.engines import LOUDNESS, RATE_HZ, Tone, expected_frames
from tests.chaos.results import Row
from tests.chaos.viewers import Connection, Viewer, heard


@pytest.fixture(autouse=True)
def _faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path))
    monkeypatch.setattr(faults, "_poisoned", False)


def tone(pitch_hz: float, seconds: float) -> np.ndarray:
    return (LOUDNESS * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def test_speech_of_another_session_is_found() -> None:
    own, silence, other = tone(400, 2.0), np.zeros(RATE_HZ, np.float32), tone(460, 1.0)
    assert heard([(np.concatenate([silence, own]), RATE_HZ)], 400).foreign_s == 0
    found = heard([(np.concatenate([own, silence, other]), RATE_HZ)], 400)
    assert found.foreign_s == pytest.approx(1.0) and found.own_s == pytest.approx(3.0, abs=0.1)


def test_a_pause_within_speech_is_measured_and_silence_around_it_is_not() -> None:
    silence = np.zeros(3 * RATE_HZ, np.float32)
    track = np.concatenate([silence, tone(400, 1.0), silence[: RATE_HZ // 2], tone(400, 1.0), silence])
    assert heard([(track, RATE_HZ)], 400).longest_pause_s == pytest.approx(0.5, abs=0.05)


def test_the_gap_of_a_viewer_reaches_to_the_ends_of_the_span() -> None:
    viewer = Viewer.__new__(Viewer)
    viewer.connections = [Connection(arrivals=[(1.0, 4), (1.2, 4)]), Connection(arrivals=[(3.2, 4), (3.4, 4)])]
    assert viewer.longest_gap_s(1.1, 3.5) == pytest.approx(2.0)
    assert viewer.longest_gap_s(3.1, 9.4) == pytest.approx(6.0)
    assert viewer.longest_gap_s(20.0, 24.0) == pytest.approx(4.0)


def test_the_frames_of_a_text_are_those_of_its_speech() -> None:
    text = "One sentence. And another one, which is longer!"
    spoken = sum(speech.duration_s for speech in Tone.load().speak(text, "500"))
    assert expected_frames(text) == round(spoken * 25) > 80


def test_one_call_takes_a_cuda_error_and_its_process_stays_poisoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.put(tmp_path, "LipSync", kind="cuda")
    faults.strike("Enhance", 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="device-side assert"):
            faults.strike("LipSync", 1)
    assert faults.taken(tmp_path, "LipSync")
    monkeypatch.setattr(faults, "_poisoned", False)  # as in another process
    faults.strike("LipSync", 1)


def test_memory_suffices_for_small_calls_only(tmp_path: Path) -> None:
    faults.put(tmp_path, "LipSync", kind="oom", above=3)
    faults.strike("LipSync", 3)
    with pytest.raises(torch.OutOfMemoryError):
        faults.strike("LipSync", 4)
    faults.clear(tmp_path)
    faults.strike("LipSync", 4)


def test_a_case_that_runs_again_replaces_its_row(tmp_path: Path) -> None:
    path, first = tmp_path / "out" / "chaos.json", Row("a", "nothing is lost")
    first.most(longest_gap_s=1.0)
    first.most(longest_gap_s=0.5)
    results.save([first, Row("b", "…")], path)
    results.save([Row("a", "nothing is lost", failure="")], path)
    rows = json.loads(path.read_text())["rows"]
    assert first.seen == {"longest_gap_s": 1.0}
    assert [(row["case"], not row["failure"]) for row in rows] == [("a", True), ("b", False)]
