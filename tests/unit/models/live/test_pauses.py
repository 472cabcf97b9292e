"""The parts of a pause that a file keeps: whole live fragments, on the session's clock."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.avatar.playback import ping_pong
from models.live.cues import Cue
from models.live.pauses import Pause, PausePart, RestFragment
from models.live.timeline import IdleGrid, encode_closed_gop, encode_idle
from models.media.encode import AAC_FRAME, Clock, UtteranceEncoder
from models.stitch.session import SessionFile
from tests.support.live import RATE, SPEC, grey, heard, levels, shown

COUNT = 41  # frames of the avatar: greys 20, 24 … 180


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("idle") / "loop.mp4"
    path.write_bytes(encode_idle(levels(COUNT), SPEC))
    return path


def greys(start: int, count: int) -> list[int]:
    return [20 + 4 * int(k) for k in ping_pong(start, count, COUNT)]


def look(position: int) -> Any:
    return np.float32([greys(position, 1)[0]])


def kept(parts: list[PausePart]) -> list[int]:
    return [part.position + k for part in parts for k in range(part.fragment.frames)]


def rested(start: int, count: int = 3) -> dict[int, RestFragment]:
    video = encode_closed_gop(np.stack([grey(level) for level in greys(start, count)]), SPEC)
    return {start: RestFragment(video, (0.75, 0.25, 0.0)[:count])}


def test_a_short_pause_is_kept_completely(idle: Path) -> None:
    parts = list(Pause(idle, 25).parts(SPEC, Clock(), 100, 148, look))
    assert kept(parts) == list(range(100, 148))
    assert max(part.fragment.frames for part in parts) <= SPEC.fragment_frames


@pytest.mark.parametrize("until", range(204, 700, 44))
def test_a_long_pause_keeps_both_ends_and_a_detour(idle: Path, until: int) -> None:
    parts = list(Pause(idle, 25).parts(SPEC, Clock(), 100, until, look))
    positions = kept(parts)
    end = IdleGrid.of(COUNT, 25).floor(until)
    assert positions[:8] == list(range(100, 108)) and positions[-8:] == list(range(end - 8, end))
    assert 16 <= len(positions) <= min(until - 100, 6 * 25)
    seen = np.array([greys(position, 1)[0] for position in positions])
    assert np.abs(np.diff(seen)).max() <= 2 * 4  # the step between frames is 4
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize(("since", "until", "expected"), [(98, 108, range(100, 108)), (100, 103, ()), (108, 100, ())])
def test_only_whole_fragments_of_the_grid_are_kept(idle: Path, since: int, until: int, expected: range) -> None:
    assert kept(list(Pause(idle, 25).parts(SPEC, Clock(), since, until, look))) == list(expected)


def test_keep_zero_gives_no_parts(idle: Path) -> None:
    assert list(Pause(idle, 0).parts(SPEC, Clock(), 100, 148, look)) == []


def test_the_fade_to_rest_comes_first(idle: Path) -> None:
    parts = list(Pause(idle, 25, rested(97)).parts(SPEC, Clock(), 97, 112, look))
    assert kept(parts) == list(range(97, 112))
    weights = np.concatenate([part.weights for part in parts])
    assert weights.tolist() == [0.75, 0.25, 0.0, *[0.0] * 12]


def test_a_pause_joins_the_speech_before_and_after_it(idle: Path, tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    tone = 0.4 * np.sin(np.arange(30 * RATE // 25) / 10).astype(np.float32)

    def speak(position: int, samples: Any) -> None:
        session.start_utterance("Words.")
        session.add_sentence(Cue(1, "Words.", session.duration_s, session.duration_s + 2.0))  # longer than it is shown
        frames = np.stack([grey(level) for level in greys(position, 30)])
        for fragment in UtteranceEncoder(SPEC, session.clock).push(frames, samples, last=True):
            session.append(fragment, position)
            position += fragment.frames
        session.end_utterance()

    speak(0, tone)
    for part in Pause(idle, 25, rested(30, 2)).parts(SPEC, session.clock, 30, 72, look):
        session.append(part.fragment, part.position, pause=True)
    quiet = session.clock
    silence = np.zeros(RATE // 10, np.float32)
    speak(72, np.concatenate([silence, tone[: -len(silence)]]))
    times, seen = shown(session.path.read_bytes())
    assert np.allclose(np.diff(times), 1 / 25) and len(seen) == 102
    assert np.abs(np.diff(seen)).max() <= 4 + 2  # the head moves one frame at a time
    _, samples = heard(session.path.read_bytes())
    loud = np.flatnonzero(np.abs(samples) > 0.05) / RATE
    assert np.abs(loud[(loud > 0.5) & (loud < 2)].max() - 1.2) < 2 * AAC_FRAME / RATE
    assert loud[loud > 2].min() == pytest.approx(72 / 25 + 0.1, abs=0.005)  # the pause delays no sample
    assert 0 <= SPEC.samples_at(quiet.video_ticks) - quiet.audio_samples < AAC_FRAME
    lines = session.transcript()
    assert [(line.start_s, line.end_s) for line in lines] == [(0.0, 1.2), (2.88, 4.08)]
    assert [(part.start_s, part.end_s) for line in lines for part in line.sentences] == [(0.0, 1.2), (2.88, 4.08)]
