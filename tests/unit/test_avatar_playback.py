"""models.avatar.playback: forth and back over the frames, for ever."""

import numpy as np
import pytest

from models.avatar.playback import ping_pong


def test_runs_forth_and_back_without_showing_an_end_twice() -> None:
    assert ping_pong(0, 9, 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 100])
def test_goes_on_where_the_utterance_before_stopped(cut: int) -> None:
    whole = ping_pong(0, 150, 4)
    assert np.array_equal(np.concatenate([ping_pong(0, cut, 4), ping_pong(cut, 150 - cut, 4)]), whole)


def test_neighbouring_frames_are_neighbours_in_the_source() -> None:
    assert np.abs(np.diff(ping_pong(3, 1000, 7))).max() == 1


def test_a_still_picture_stays() -> None:
    assert ping_pong(5, 3, 1).tolist() == [0, 0, 0]
