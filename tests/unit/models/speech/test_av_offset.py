"""LipOffset shifts an utterance by a constant time for any segment lengths; nothing is lost between segments."""

import numpy as np
import pytest

from models.speech.av_offset import LipOffset
from models.types import Phoneme, Speech

RATE = 16_000


def parts(lengths: list[int]) -> list[Speech]:
    samples = np.random.default_rng(0).uniform(-1, 1, sum(lengths)).astype(np.float32)
    cuts = np.cumsum(lengths)[:-1]
    return [Speech(part, RATE) for part in np.split(samples, cuts)]


@pytest.mark.parametrize("lengths", [[4000], [4000, 6000], [300, 500, 9000, 200, 5000]])
@pytest.mark.parametrize("offset_s", [0.0, 0.04, 0.1, 0.2])
def test_a_delay_puts_silence_before_the_utterance(lengths, offset_s):
    segments, offset = parts(lengths), LipOffset(offset_s)
    heard = [offset(segment) for segment in segments]
    assert [len(segment.samples) for segment in heard] == lengths
    whole = np.concatenate([segment.samples for segment in segments])
    shift = round(offset_s * RATE)
    assert np.array_equal(np.concatenate([s.samples for s in heard]), np.pad(whole, (shift, 0))[: len(whole)])


def test_an_advance_ends_each_segment_in_silence():
    first, second = parts([4000, 6000])
    offset = LipOffset(-0.1)
    heard = offset(first), offset(second)
    assert np.array_equal(heard[0].samples[:2400], first.samples[1600:]) and not heard[0].samples[2400:].any()
    assert np.array_equal(heard[1].samples[:4400], second.samples[1600:]) and len(heard[1].samples) == 6000


@pytest.mark.parametrize(
    "offset_s, expected", [(0.1, [("a", 0.1, 0.3), ("p", 0.3, 0.4)]), (-0.1, [("a", 0.0, 0.1), ("p", 0.1, 0.3)])]
)
def test_phonemes_are_shifted_and_cut_at_the_segments_ends(offset_s, expected):
    speech = Speech(np.zeros(6400, np.float32), RATE, phonemes=(Phoneme("a", 0.0, 0.2), Phoneme("p", 0.2, 0.4)))
    moved = LipOffset(offset_s)(speech).phonemes
    assert [p.symbol for p in moved] == [symbol for symbol, _, _ in expected]
    assert [(p.start_s, p.end_s) for p in moved] == [pytest.approx(times) for _, *times in expected]


def test_phonemes_beyond_the_end_move_to_the_next_segment():
    said = (Phoneme("a", 0.0, 0.2), Phoneme("p", 0.2, 0.36), Phoneme("ɪ", 0.36, 0.4))
    offset = LipOffset(0.1)
    first, second, third = (offset(Speech(np.zeros(6400, np.float32), RATE, phonemes=p)) for p in (said, (), ()))
    assert [p.symbol for p in first.phonemes] == ["a", "p"]
    assert [(p.symbol, p.start_s, p.end_s) for p in second.phonemes] == [
        ("p", 0.0, pytest.approx(0.06)),  # its second part: the join goes through it
        ("ɪ", pytest.approx(0.06), pytest.approx(0.1)),
    ]
    assert third.phonemes == ()


def test_a_delay_longer_than_a_segment_moves_phonemes_over_several():
    offset, said = LipOffset(0.2), (Phoneme("m", 0.01, 0.04),)
    heard = [offset(Speech(np.zeros(800, np.float32), RATE, phonemes=p)) for p in (said, (), (), (), (), ())]  # 50 ms
    assert [[p.symbol for p in segment.phonemes] for segment in heard] == [[], [], [], [], ["m"], []]
    assert heard[4].phonemes[0].start_s == pytest.approx(0.01) and heard[4].phonemes[0].end_s == pytest.approx(0.04)
