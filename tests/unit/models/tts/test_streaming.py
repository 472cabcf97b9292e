"""models.tts.streaming: silence at the ends, pieces of whole seconds, and no lost samples between them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from models.speech.audio import pad_to_frames
from models.tts.streaming import (
    CUT_PAUSE_S,
    FADE_S,
    LAST_PAUSE_S,
    LEAD_S,
    PAUSES_S,
    pause_after,
    sound_bounds,
    speech_pieces,
)
from models.types import SUPPORTED_FPS, Float32

RATE = 24_000


def tone(seconds: float, rate: int = RATE) -> Float32:
    return (0.5 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def silence(seconds: float) -> Float32:
    return np.zeros(round(seconds * RATE), np.float32)


def blocks(samples: Float32, size: int = 4_321) -> Iterator[Float32]:
    for begin in range(0, len(samples), size):
        yield samples[begin : begin + size]


def test_the_pause_depends_on_the_punctuation() -> None:
    assert pause_after('He said "no."') == PAUSES_S["."]
    assert pause_after("first,") < pause_after("first;") < pause_after("first.") < pause_after("first…")
    assert pause_after("cut in the") == CUT_PAUSE_S


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_inner_pieces_last_whole_video_frames(rate: int) -> None:
    *inner, _ = speech_pieces(blocks(tone(6.3, rate)), rate, "Long.", last=True)
    assert [piece.duration_s for piece in inner] == [1, 2]
    for piece in inner:
        assert all(len(pad_to_frames(piece, fps).samples) == len(piece.samples) for fps in SUPPORTED_FPS)


def test_concatenated_pieces_are_the_audio_with_lead_and_pause() -> None:
    sound = tone(20.25)
    made = list(speech_pieces(blocks(np.concatenate([silence(0.8), sound, silence(0.9)])), RATE, "Long.", last=True))
    assert [piece.duration_s for piece in made[:-1]] == [1, 2, 4, 8]
    joined = np.concatenate([piece.samples for piece in made])
    lead, ramp = round(LEAD_S * RATE), round(FADE_S * RATE)
    assert len(joined) == pytest.approx((LEAD_S + 20.25 + LAST_PAUSE_S) * RATE, abs=RATE // 100)
    begin = lead - (sound_bounds(np.concatenate([silence(0.8), sound]), RATE)[0] - round(0.8 * RATE))
    np.testing.assert_array_equal(joined[begin + ramp : begin + len(sound)], sound[ramp:])
    assert not joined[: begin - 1].any() and not joined[begin + len(sound) :].any()


def test_streaming_gives_the_same_samples() -> None:
    sound = np.concatenate([silence(0.3), tone(7.7), silence(0.1)])
    streamed = list(speech_pieces(blocks(sound), RATE, "Some words,", last=False))
    (whole,) = speech_pieces(blocks(sound), RATE, "Some words,", last=False, stream=False)
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in streamed]), whole.samples)
    assert whole.text == "Some words," and [piece.text for piece in streamed] == ["Some words,", "", ""]


def test_the_first_piece_is_yielded_after_two_seconds_of_audio() -> None:
    taken = 0

    def counted() -> Iterator[Float32]:
        nonlocal taken
        for block in blocks(tone(10), RATE // 10):
            taken += len(block)
            yield block

    first = next(speech_pieces(counted(), RATE, "Long.", last=True))
    assert first.duration_s == 1
    assert taken / RATE == pytest.approx(2.0 - LEAD_S, abs=0.11)


@pytest.mark.parametrize(("last", "speed", "pause_s"), [(True, 2.0, LAST_PAUSE_S), (False, 1.0, 0.42 - LEAD_S)])
def test_silence_at_the_end_is_the_pause_minus_the_next_lead(last: bool, speed: float, pause_s: float) -> None:
    for tail_s in (0.0, 0.05, 0.7):
        (made,) = speech_pieces([np.concatenate([tone(0.5), silence(tail_s)])], RATE, "Yes.", last, speed)
        assert made.duration_s == pytest.approx(LEAD_S + 0.5 + pause_s, abs=0.011)
        assert made.last is last


def test_only_the_final_piece_is_last_and_none_is_short() -> None:
    for length_s in (0.4, 1.5, 1.95, 2.6, 4.99, 5.01):
        made = list(speech_pieces(blocks(tone(length_s)), RATE, "Yes.", last=True))
        assert [piece.last for piece in made] == [False] * (len(made) - 1) + [True]
        assert len(made) == 1 or min(piece.duration_s for piece in made) >= 1.0


@pytest.mark.parametrize("sound", [[], [np.zeros(0, np.float32)], [silence(3.0)]])
def test_a_sentence_without_sound_gives_its_pause(sound: list[Float32]) -> None:
    (made,) = speech_pieces(sound, RATE, "Hm.", last=True)
    assert made.last and made.duration_s == pytest.approx(LAST_PAUSE_S) and not made.samples.any()


def test_nan_and_overshoot_stay_in_range() -> None:
    wild = tone(0.5) * 4
    wild[1_000] = np.nan
    (made,) = speech_pieces([wild], RATE, "Loud.", last=True)
    assert np.isfinite(made.samples).all() and np.abs(made.samples).max() == 1.0
