"""How long speech must wait so that it is played without a stop: compared with a simulation of its playing."""

import numpy as np
import pytest

from deployments.stitch.live.pacing import OVERDUE_FACTOR, RESERVE_S, SAFETY_FACTOR, SupplyEstimate

FPS = 25


END = 110  # of the segment, frames


def stops(supply: SupplyEstimate, shown: int, until: int, wait_s: float) -> float:
    """For how long playing from frame `shown` after `wait_s` finds a frame missing, s."""
    frame_s = supply.frame_s * SAFETY_FACTOR
    came = np.zeros(END)
    k = supply.made
    while k < END:
        burst = min(supply.burst_frames, END - k)
        came[k : k + burst] = supply.burst_end_s + (k + burst - supply.made) * frame_s
        k += burst
    due = wait_s + (np.arange(shown, until) - shown) / FPS
    return float(np.maximum(0.0, came[shown:until] - due).max())


@pytest.mark.parametrize("frame_s", [0.01, 0.03, 0.05, 0.12])
@pytest.mark.parametrize("made", [6, 18, 42])
@pytest.mark.parametrize("until", [50, 107, END])
def test_after_the_wait_nothing_is_missing_and_before_its_end_something_is(frame_s, made, until):
    supply = SupplyEstimate(FPS, frame_s, burst_end_s=0.0, made=made)
    for shown in (0, made - 4, made):
        wait_s = supply.required_delay_s(shown, until, END, now_s=0.0)
        assert stops(supply, shown, until, wait_s) == pytest.approx(0, abs=1e-9)
        reserve_s = (
            RESERVE_S if frame_s * SAFETY_FACTOR * FPS >= 1 else 0.0
        )  # all of it, or none: 0.03 is 94 % of its time
        reserve_s = RESERVE_S * (0.9375 - 0.9) / 0.1 if frame_s == 0.03 else reserve_s
        if wait_s > 0.05:
            assert stops(supply, shown, until, wait_s - reserve_s - 0.05) > 0.04


def test_what_is_made_or_must_wait_to_be_shown_lacks_nothing():
    assert SupplyEstimate(FPS, 0.2, 0.0, made=60).required_delay_s(0, 60, 60, 0.0) == 0
    assert SupplyEstimate(FPS, 0.2, 0.0, made=40, blocked=True).required_delay_s(0, 60, 60, 0.0) == 0


def test_a_burst_that_is_overdue_says_that_making_has_become_slower():
    supply = SupplyEstimate(FPS, 0.025, burst_end_s=0.0, made=12)
    early_s, late_s = supply.required_delay_s(0, 48, 48, 0.1), supply.required_delay_s(0, 48, 48, 1.2)
    assert early_s == 0 and late_s == pytest.approx(36 * 0.1 * OVERDUE_FACTOR - 1.2 - 36 / 25)  # now, 100 ms a frame


def test_what_a_segments_beginning_takes_says_nothing_of_its_frames():
    """A voice, features: seconds of them must not look like a second for each of some frames."""
    supply = SupplyEstimate(FPS, 0.02, burst_end_s=0.0)
    assert supply.required_delay_s(0, 160, 160, 0.7, begun=False) == pytest.approx(
        12 * 0.02 * SAFETY_FACTOR
    )  # a burst, from now on
    assert supply.required_delay_s(0, 160, 160, 0.7) > 3


@pytest.mark.parametrize(("frame_s", "shared", "reserve_s"), [(0.01, True, 0.0), (0.03, True, RESERVE_S)])
def test_where_others_speak_too_a_reserve_is_made_unless_there_is_much_to_spare(frame_s, shared, reserve_s):
    """Each is held up by the others: a burst may come much later than those before it."""
    alone, among = (SupplyEstimate(FPS, frame_s, 0.0, made=12, shared=k) for k in (False, shared))
    spare_s = (
        12 / FPS - 12 * frame_s * SAFETY_FACTOR
    )  # when frame 12 is due, over when the burst that begins with it is there
    assert among.required_delay_s(0, 24, 24, 0.0) == pytest.approx(max(0.0, reserve_s - spare_s), abs=1e-9)
    assert alone.required_delay_s(0, 24, 24, 0.0) < max(0.05, reserve_s - spare_s)


def test_a_sentences_short_last_burst_does_not_say_that_all_has_become_slow():
    supply = SupplyEstimate(FPS, 0.02, burst_end_s=0.0)
    for k in range(8):
        supply.add_burst(8, 0.4 * (k + 1))
    supply.add_burst(3, 3.2 + 0.6)  # it waited for the next sentence's first
    assert supply.frame_s < 0.08 and supply.burst_frames == 8


def test_it_learns_from_bursts_and_not_from_what_it_had_to_wait_for():
    supply = SupplyEstimate(FPS, 0.02, burst_end_s=0.0)
    supply.add_burst(6, 3.0, learn=False)
    assert (supply.made, supply.frame_s) == (6, 0.02)
    for k in range(8):
        assert supply.add_burst(12, 3.0 + 0.6 * (k + 1)) == pytest.approx(0.6)
    assert supply.frame_s == pytest.approx(0.05, abs=0.001)
    supply.blocked = True
    supply.unblock(20.0)
    supply.add_burst(12, 20.6)
    assert supply.frame_s == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(("lack_s", "frames"), [(0.0, 0), (0.01, 8), (0.33, 12), (1.0, 28), (9.0, 48)])
def test_holds_are_whole_steps_within_bounds(lack_s, frames):
    assert SupplyEstimate(FPS, 0.04, 0.0).hold_frames(lack_s, 4, 8, 48) == frames
