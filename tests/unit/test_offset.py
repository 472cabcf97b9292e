"""Offset: a whole utterance is moved by the same time, whatever its segments' lengths; nothing is lost between them."""

import numpy as np
import pytest

from models.offset import Offset
from models.types import Phoneme, Speech

RATE = 16_000


def parts(lengths: list[int]) -> list[Speech]:
    samples = np.random.default_rng(0).uniform(-1, 1, sum(lengths)).astype(np.float32)
    cuts = np.cumsum(lengths)[:-1]
    return [Speech(part, RATE) for part in np.split(samples, cuts)]


@pytest.mark.parametrize("lengths", [[4000], [4000, 6000], [300, 500, 9000, 200, 5000]])
@pytest.mark.parametrize("offset_s", [0.0, 0.04, 0.1, 0.2])
def test_later_is_the_whole_utterance_with_silence_before_it(lengths, offset_s):
    segments, offset = parts(lengths), Offset(offset_s)
    heard = [offset(segment) for segment in segments]
    assert [len(segment.samples) for segment in heard] == lengths
    whole = np.concatenate([segment.samples for segment in segments])
    shift = round(offset_s * RATE)
    assert np.array_equal(np.concatenate([s.samples for s in heard]), np.pad(whole, (shift, 0))[: len(whole)])


def test_earlier_ends_each_segment_in_silence_since_the_next_is_not_known():
    first, second = parts([4000, 6000])
    offset = Offset(-0.1)
    heard = offset(first), offset(second)
    assert np.array_equal(heard[0].samples[:2400], first.samples[1600:]) and not heard[0].samples[2400:].any()
    assert np.array_equal(heard[1].samples[:4400], second.samples[1600:]) and len(heard[1].samples) == 6000


@pytest.mark.parametrize(
    "offset_s, expected", [(0.1, [("a", 0.1, 0.3), ("p", 0.3, 0.4)]), (-0.1, [("a", 0.0, 0.1), ("p", 0.1, 0.3)])]
)
def test_phonemes_move_along_and_what_leaves_the_segment_is_cut(offset_s, expected):
    speech = Speech(np.zeros(6400, np.float32), RATE, phonemes=(Phoneme("a", 0.0, 0.2), Phoneme("p", 0.2, 0.4)))
    moved = Offset(offset_s)(speech).phonemes
    assert [p.symbol for p in moved] == [symbol for symbol, _, _ in expected]
    assert [(p.start_s, p.end_s) for p in moved] == [pytest.approx(times) for _, *times in expected]
