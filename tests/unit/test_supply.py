"""How long speech must wait so that it is played without a stop: compared with a simulation of its playing."""

import numpy as np
import pytest

from deployments.supply import OVERDUE, SAFETY, Supply

FPS = 25


END = 110  # of the segment, frames


def stops(supply: Supply, shown: int, until: int, wait_s: float) -> float:
    """For how long playing from frame `shown` after `wait_s` finds a frame missing, s."""
    frame_s = supply.frame_s * SAFETY
    came = np.zeros(END)
    k = supply.made
    while k < END:
        burst = min(supply.burst, END - k)
        came[k : k + burst] = supply.came_s + (k + burst - supply.made) * frame_s
        k += burst
    due = wait_s + (np.arange(shown, until) - shown) / FPS
    return float(np.maximum(0.0, came[shown:until] - due).max())


@pytest.mark.parametrize("frame_s", [0.01, 0.03, 0.05, 0.12])
@pytest.mark.parametrize("made", [6, 18, 42])
@pytest.mark.parametrize("until", [50, 107, END])
def test_after_the_wait_nothing_is_missing_and_before_its_end_something_is(frame_s, made, until):
    supply = Supply(FPS, frame_s, came_s=0.0, made=made)
    for shown in (0, made - 4, made):
        wait_s = supply.lack_s(shown, until, END, now_s=0.0)
        assert stops(supply, shown, until, wait_s) == pytest.approx(0, abs=1e-9)
        if wait_s > 0.05:
            assert stops(supply, shown, until, wait_s - 0.05) > 0.04


def test_what_is_made_or_must_wait_to_be_shown_lacks_nothing():
    assert Supply(FPS, 0.2, 0.0, made=60).lack_s(0, 60, 60, 0.0) == 0
    assert Supply(FPS, 0.2, 0.0, made=40, full=True).lack_s(0, 60, 60, 0.0) == 0


def test_a_burst_that_is_overdue_says_that_making_has_become_slower():
    supply = Supply(FPS, 0.03, came_s=0.0, made=12)
    early_s, late_s = supply.lack_s(0, 48, 48, 0.1), supply.lack_s(0, 48, 48, 1.2)
    assert early_s == 0 and late_s == pytest.approx(36 * 0.1 * OVERDUE - 1.2 - 36 / 25)  # now, 100 ms a frame


def test_it_learns_from_bursts_and_not_from_what_it_had_to_wait_for():
    supply = Supply(FPS, 0.02, came_s=0.0)
    supply.came(6, 3.0, learn=False)
    assert (supply.made, supply.frame_s) == (6, 0.02)
    for k in range(8):
        assert supply.came(12, 3.0 + 0.6 * (k + 1)) == pytest.approx(0.6)
    assert supply.frame_s == pytest.approx(0.05, abs=0.001)
    supply.full = True
    supply.resumed(20.0)
    supply.came(12, 20.6)
    assert supply.frame_s == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(("lack_s", "frames"), [(0.0, 0), (0.01, 8), (0.33, 12), (1.0, 28), (9.0, 48)])
def test_holds_are_whole_steps_within_bounds(lack_s, frames):
    assert Supply(FPS, 0.04, 0.0).holds_frames(lack_s, 4, 8, 48) == frames
