"""deployments.stitch.calls: the parts of a call come from stamps of their own, so that they can miss its wall time."""

import pytest

from deployments.common.stage import StageTiming
from deployments.stitch.calls import Call, summarise

# received at 10.02 s, waits 30 ms, computes 100 ms, is stamped at 10.15 s
TIMING = StageTiming("LipSync", 8, 10.02, 10.15, 0.03, 0.1, 0.05)


def test_the_way_there_and_back_is_transfer():
    call = Call.between(TIMING, ready_s=10.0, end_s=10.16)
    assert (call.stage, call.frames) == ("LipSync", 8)
    parts = (call.queue_ms, call.transfer_ms, call.compute_ms, call.wall_ms, call.busy_ms)
    assert parts == pytest.approx((30, 20 + 10, 100, 160, 50), abs=1e-6)


def test_time_that_no_stamp_explains_is_missing_from_the_parts_and_not_from_the_wall():
    slow = StageTiming("LipSync", 8, 10.02, 10.35, 0.03, 0.1, 0.05)  # 200 ms between its work and its stamp
    call = Call.between(slow, ready_s=10.0, end_s=10.36)
    assert call.wall_ms - (call.queue_ms + call.transfer_ms + call.compute_ms) == pytest.approx(200, abs=1e-6)


def test_clocks_that_differ_never_make_transfer_negative():
    call = Call.between(TIMING, ready_s=10.05, end_s=10.14)
    assert call.transfer_ms == 0


def test_a_stages_calls_are_added_up():
    calls = [Call("LipSync", 4, 1, 2, 3, 6, 2), Call("LipSync", 8, 1, 2, 3, 6, 3), Call("TTS", 0, 0, 1, 1, 2, 1)]
    rows = summarise(calls)
    assert list(rows) == ["LipSync", "TTS"]
    row = {"calls": 2, "frames": 12, "queue_ms": 2, "transfer_ms": 4, "compute_ms": 6, "wall_ms": 12, "busy_ms": 5}
    assert rows["LipSync"] == row
