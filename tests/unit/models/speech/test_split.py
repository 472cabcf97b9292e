"""models.speech.split: recordings are split at pauses, into whole frames, however they arrive."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.speech.audio import frame_start, frames_covering
from models.speech.split import find_cuts, split_at
from models.types import SUPPORTED_FPS, Float32, Speech


def split_audio(samples: Float32, rate_hz: int, fps: int, max_s: float = 8.0, block: int = 4_096) -> list[Speech]:
    """The segments of samples that arrive in blocks."""
    blocks = [samples[start : start + block] for start in range(0, len(samples), block)]
    return list(split_at(blocks, find_cuts(blocks, rate_hz, fps, max_s), rate_hz))


@given(
    st.lists(st.tuples(st.floats(0.05, 6.0), st.floats(0.0, 0.8)), min_size=1, max_size=12),
    st.sampled_from([8_000, 11_025, 16_000, 22_050]),
    st.sampled_from(SUPPORTED_FPS),
    st.sampled_from([1.0, 2.5, 8.0]),
)
def test_segments_are_whole_frames_under_the_limit_and_concatenate_to_the_input(
    words: list[tuple[float, float]], rate_hz: int, fps: int, max_s: float
) -> None:
    noise = np.random.default_rng(len(words))
    samples = np.concatenate(
        [np.append(noise.uniform(-0.5, 0.5, int(a * rate_hz)), np.zeros(int(b * rate_hz))) for a, b in words]
    ).astype(np.float32)
    parts = split_audio(samples, rate_hz, fps, max_s)
    joined = np.concatenate([part.samples for part in parts])
    np.testing.assert_array_equal(joined[: len(samples)], samples)
    assert len(joined) == frame_start(frames_covering(len(samples), rate_hz, fps), rate_hz, fps)
    assert not joined[len(samples) :].any()
    starts = {frame_start(k, rate_hz, fps) for k in range(len(joined) * fps // rate_hz + 2)}
    assert set(accumulate(len(part.samples) for part in parts)) <= starts
    assert all(0 < len(part.samples) <= max_s * rate_hz + 1 for part in parts)
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]


def talk(rate_hz: int, *words_and_pauses: float) -> Float32:
    """Noise and silence alternating; lengths in seconds."""
    noise = np.random.default_rng(1)
    parts = [
        noise.uniform(-0.3, 0.3, round(s * rate_hz)) if i % 2 == 0 else np.zeros(round(s * rate_hz))
        for i, s in enumerate(words_and_pauses)
    ]
    return np.concatenate(parts).astype(np.float32)


def test_cuts_are_in_pauses() -> None:
    parts = split_audio(talk(16_000, 2.0, 0.3, 4.0, 0.3, 5.0, 0.3, 3.0), 16_000, 25)
    ends = list(accumulate(part.duration_s for part in parts))
    assert len(parts) == 4 and ends[3] == pytest.approx(14.92)
    assert 2.0 < ends[0] < 2.3, "a pause allows a short first segment"
    assert 6.3 < ends[1] < 6.6 and 11.6 < ends[2] < 11.9
    assert not any(part.samples[-1_600:].any() for part in parts[:-1]), "100 ms before each cut are silent"
    assert not any(part.samples[:1_600].any() for part in parts[1:]), "100 ms after each cut are silent"


def test_without_an_early_pause_the_first_segment_is_not_cut() -> None:
    parts = split_audio(talk(16_000, 7.0), 16_000, 25)
    assert [part.duration_s for part in parts] == [7.0]
    parts = split_audio(talk(16_000, 5.0, 0.3, 4.0), 16_000, 25)
    assert 5.0 < parts[0].duration_s < 5.3 and len(parts) == 2


def test_no_segment_is_very_short() -> None:
    assert [part.duration_s for part in split_audio(talk(16_000, 1.0, 0.2, 0.1), 16_000, 25)] == [pytest.approx(1.32)]
    assert min(part.duration_s for part in split_audio(talk(16_000, 8.1), 16_000, 25)) >= 0.5


def test_silence_is_cut_by_length() -> None:
    parts = split_audio(np.zeros(16_000 * 20, np.float32), 16_000, 25)
    assert sum(part.duration_s for part in parts) == 20.0
    assert all(part.duration_s <= 8.0 for part in parts)


@pytest.mark.parametrize("block", [1, 700, 16_000, 10**9])
def test_the_size_of_the_blocks_makes_no_difference(block: int) -> None:
    samples = talk(8_000, 1.0, 0.3, 2.0, 0.2, 3.0)
    whole, parts = split_audio(samples, 8_000, 25, 2.0), split_audio(samples, 8_000, 25, 2.0, block)
    assert [part.duration_s for part in parts] == [part.duration_s for part in whole] and len(parts) > 3
    np.testing.assert_array_equal(np.concatenate([part.samples for part in parts])[: len(samples)], samples)


def test_only_as_much_is_read_as_the_next_segment_needs() -> None:
    samples, read = talk(8_000, *[2.0, 0.3] * 20), []

    def blocks():
        for start in range(0, len(samples), 800):
            read.append(start)
            yield samples[start : start + 800]

    segments = split_at(blocks(), find_cuts([samples], 8_000, 25), 8_000)
    first = next(segments)
    assert max(read) < len(first.samples) < len(samples) / 10


def test_the_pause_level_follows_the_full_scale() -> None:
    """Noise at −64 dB of its full scale is silence, so the cut is in the middle of it."""
    loud = np.concatenate([talk(16_000, 5.0), np.full(16_000, 0.0006, np.float32), talk(16_000, 3.0)])
    edges = find_cuts([loud], 16_000, 25, full_scale=lambda: 1.0), find_cuts([loud], 16_000, 25, full_scale=lambda: 4.0)
    assert edges[0] == edges[1] and edges[0][1] / 16_000 == pytest.approx(5.5, abs=0.1)
