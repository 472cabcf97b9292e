"""models.avatar.playback: forward and backward with eased turns, as a pure function of the position."""

import numpy as np
import pytest

from models.avatar.playback import TURN_FRAMES, period, ping_pong, sway


def test_playback_reverses_and_slows_down_at_the_ends() -> None:
    assert ping_pong(0, 16, 10).tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 9]
    assert ping_pong(15, 16, 10).tolist() == [9, 9, 9, 8, 8, 7, 6, 5, 4, 3, 2, 1, 1, 0, 0, 0]


def test_parts_agree_with_the_whole() -> None:
    whole = ping_pong(0, 150, 40)
    for cut in range(150):
        assert np.array_equal(np.concatenate([ping_pong(0, cut, 40), ping_pong(cut, 150 - cut, 40)]), whole)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 10, 150])
def test_playback_is_periodic_reaches_both_ends_and_skips_no_frame(length: int) -> None:
    shown = ping_pong(0, 3 * period(length) + 1, length)
    assert np.array_equal(shown[: period(length)], shown[period(length) : 2 * period(length)])
    assert (shown[0], shown.min(), shown.max()) == (0, 0, length - 1)
    assert np.abs(np.diff(shown)).max() <= 1
    assert np.array_equal(shown, shown[::-1])  # symmetric
    assert shown.dtype == np.int64


@pytest.mark.parametrize(("length", "expected"), [(1, 1), (2, 2), (3, 8), (5, 16), (10, 30), (150, 310)])
def test_the_period_is_as_documented(length: int, expected: int) -> None:
    assert period(length) == expected


def test_the_shortest_avatars() -> None:
    assert ping_pong(5, 3, 1).tolist() == [0, 0, 0]
    assert ping_pong(0, 5, 2).tolist() == [0, 1, 0, 1, 0]
    assert ping_pong(0, 9, 3).tolist() == [0, 0, 1, 2, 2, 2, 1, 0, 0]


def test_outside_the_turns_the_source_keeps_its_speed() -> None:
    shown = ping_pong(0, period(60), 60)
    inside = (shown > TURN_FRAMES // 4) & (shown < 59 - TURN_FRAMES // 4)
    assert set(np.abs(np.diff(shown))[inside[:-1] & inside[1:]].tolist()) == {1}


def test_turns_are_smooth() -> None:
    """Averaged over 80 ms, a turn decelerates less than half as hard as a bounce; no frame is held over 0.2 s."""
    n, eye = 60, np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    eased, bounce = ping_pong(0, 400, n), np.abs((np.arange(400) + n - 1) % (2 * (n - 1)) - (n - 1))
    braking = [np.abs(np.diff(np.convolve(shown, eye / eye.sum(), "valid"), 2)).max() for shown in (eased, bounce)]
    assert braking[0] < 0.45 * braking[1]
    assert np.diff(np.flatnonzero(np.diff(eased))).max() == 5
    steps = np.diff(eased)
    assert (steps[1:] * steps[:-1] >= 0).all()  # never reverses between two frames


@pytest.mark.parametrize("count", [8, 12, 28, 48])
def test_a_waiting_head_sways_without_a_jerk_and_ends_where_playback_continues(count: int) -> None:
    path = sway(100, count)
    assert len(path) == count and path[-1] == 99
    steps = np.diff([98, 99, *path, 100, 101])  # with the positions before and after
    assert np.abs(steps).max() <= 1 and np.abs(np.diff(steps)).max() <= 1
    assert max(path) - 99 == 99 - min(path) == round(count / (2 * np.pi))
    assert min(sway(2, count)) == 0
