"""How long speech must wait to play without a stop, compared with a simulation of its playing."""

import numpy as np
import pytest

from deployments.stitch.live.pacing import OVERDUE_FACTOR, RESERVE_S, SAFETY_FACTOR, PaceEstimate, SupplyEstimate

FPS = 25
END = 110  # of the segment, frames


def longest_stop_s(supply: SupplyEstimate, frame: int, until: int, delay_s: float) -> float:
    """The longest time for which playing from `frame` after a delay finds a frame missing."""
    frame_s = supply.frame_s * SAFETY_FACTOR
    arrival = np.zeros(END)
    k = supply.made
    while k < END:
        burst = min(supply.burst_frames, END - k)
        arrival[k : k + burst] = supply.burst_end_s + (k + burst - supply.made) * frame_s
        k += burst
    due = delay_s + (np.arange(frame, until) - frame) / FPS
    return float(np.maximum(0.0, arrival[frame:until] - due).max())


# making takes 31 %, 94 %, 156 % and 375 % of real time, with SAFETY_FACTOR; the reserve grows from 90 % to 100 %
@pytest.mark.parametrize(
    ("frame_s", "reserve_s"), [(0.01, 0.0), (0.03, RESERVE_S * 0.375), (0.05, RESERVE_S), (0.12, RESERVE_S)]
)
@pytest.mark.parametrize("made", [6, 18, 42])
@pytest.mark.parametrize("until", [50, 107, END])
def test_after_the_delay_no_frame_is_missing_and_a_shorter_delay_does_not_do(frame_s, reserve_s, made, until):
    supply = SupplyEstimate(FPS, frame_s, burst_end_s=0.0, made=made)
    for frame in (0, made - 4, made):
        delay_s = supply.required_delay_s(frame, until, END, now_s=0.0)
        assert longest_stop_s(supply, frame, until, delay_s) == pytest.approx(0, abs=1e-9)
        if delay_s > 0.05:
            assert longest_stop_s(supply, frame, until, delay_s - reserve_s - 0.05) > 0.04


def test_frames_that_are_made_or_blocked_by_backpressure_need_no_delay():
    assert SupplyEstimate(FPS, 0.2, 0.0, made=60).required_delay_s(0, 60, 60, 0.0) == 0
    assert SupplyEstimate(FPS, 0.2, 0.0, made=40, blocked=True).required_delay_s(0, 60, 60, 0.0) == 0


def test_an_overdue_burst_means_that_making_has_become_slower():
    supply = SupplyEstimate(FPS, 0.025, burst_end_s=0.0, made=12)
    early_s, late_s = supply.required_delay_s(0, 48, 48, 0.1), supply.required_delay_s(0, 48, 48, 1.2)
    assert early_s == 0
    assert late_s == pytest.approx(36 * 0.1 * OVERDUE_FACTOR - 1.2 - 36 / 25)  # 12 frames in 1.2 s: 100 ms per frame


def test_a_stall_does_not_delay_the_speech_after_it_as_a_slow_machine_does():
    """A lost replica stops a burst for seconds; those after it are made as fast as before."""
    stalled, slow = SupplyEstimate(FPS, 0.01, 0.0), SupplyEstimate(FPS, 0.01, 0.0)
    for at_s in (0.12, 6.0, 6.12):
        stalled.add_burst(12, at_s)
    assert stalled.required_delay_s(24, END, END, now_s=6.12) < 0.3
    for at_s in np.arange(1, 10) * 1.2:  # 100 ms per frame
        slow.add_burst(12, at_s)
    assert slow.frame_s == pytest.approx(0.1, rel=0.1)


def test_the_time_before_a_segments_first_burst_is_no_measure_for_frames():
    """It goes into speech synthesis and features."""
    supply = SupplyEstimate(FPS, 0.02, burst_end_s=0.0)
    one_burst_s = 12 * 0.02 * SAFETY_FACTOR
    assert supply.required_delay_s(0, 160, 160, 0.7, begun=False) == pytest.approx(one_burst_s)
    assert supply.required_delay_s(0, 160, 160, 0.7) > 3


@pytest.mark.parametrize(("frame_s", "reserve_s"), [(0.01, 0.0), (0.03, RESERVE_S)])
def test_utterances_that_share_the_machine_need_a_reserve_earlier(frame_s, reserve_s):
    alone, shared = (SupplyEstimate(FPS, frame_s, 0.0, made=12, shared=k) for k in (False, True))
    spare_s = 12 / FPS - 12 * frame_s * SAFETY_FACTOR  # between the arrival of the next burst and the time it is due
    assert shared.required_delay_s(0, 24, 24, 0.0) == pytest.approx(max(0.0, reserve_s - spare_s), abs=1e-9)
    assert alone.required_delay_s(0, 24, 24, 0.0) < max(0.05, reserve_s - spare_s)


def test_a_short_last_burst_does_not_change_the_estimate_much():
    supply = SupplyEstimate(FPS, 0.02, burst_end_s=0.0)
    for k in range(8):
        supply.add_burst(8, 0.4 * (k + 1))
    supply.add_burst(3, 3.2 + 0.6)  # it waited for the next sentence's first frames
    assert supply.frame_s < 0.08 and supply.burst_frames == 8


def test_the_estimate_follows_bursts_and_ignores_waits():
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


@pytest.mark.parametrize(("delay_s", "frames"), [(0.0, 0), (0.01, 8), (0.33, 12), (1.0, 28), (9.0, 48)])
def test_holds_are_whole_steps_within_bounds(delay_s, frames):
    assert SupplyEstimate(FPS, 0.04, 0.0).hold_frames(delay_s, 4, 8, 48) == frames


def test_the_pace_follows_the_segments_that_were_made():
    pace = PaceEstimate(0.35, 0.1, 0.025)
    for _ in range(30):
        pace.add_first_fragment(0.6)
        pace.add_frames(8, 0.4)
    assert pace.first_s == pytest.approx(0.6, abs=0.01) and pace.deviation_s < 0.02
    assert pace.frame_s == pytest.approx(0.05, abs=0.001)


def test_the_pace_of_speakers_that_share_a_machine_is_divided_among_them():
    pace = PaceEstimate(frame_s=0.03, speakers=2)
    for _ in range(40):
        pace.add_frames(8, 8 * 0.08)
    assert pace.frame_s == pytest.approx(0.04, abs=0.001) and pace.shared_frame_s == pytest.approx(0.08, abs=0.002)
