"""What calls cost, how far an utterance has come, and ticks beside its fragments."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from deployments.common.stage import StageTiming
from deployments.ingress.websocket.protocol import Making
from deployments.stitch.metrics import CallTotals, Progress, StageCall, total_calls, with_ticks
from models.live.cues import Cue
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

# received at 10.02 s, waits 30 ms, computes 100 ms, is stamped at 10.15 s
TIMING = StageTiming("LipSync", 8, 10.02, 10.15, 0.03, 0.1, 0.05)


# --- calls


def test_transfer_is_the_way_to_the_stage_and_back():
    call = StageCall.between(TIMING, ready_s=10.0, end_s=10.16)
    assert (call.stage, call.frames) == ("LipSync", 8)
    parts = (call.queue_ms, call.transfer_ms, call.compute_ms, call.wall_ms, call.busy_ms)
    assert parts == pytest.approx((30, 20 + 10, 100, 160, 50), abs=1e-6)


def test_time_that_no_stamp_explains_is_in_the_wall_time_only():
    slow = StageTiming("LipSync", 8, 10.02, 10.35, 0.03, 0.1, 0.05)  # 200 ms between the end of its work and its stamp
    call = StageCall.between(slow, ready_s=10.0, end_s=10.36)
    assert call.wall_ms - (call.queue_ms + call.transfer_ms + call.compute_ms) == pytest.approx(200, abs=1e-6)


def test_transfer_is_never_negative_between_hosts_with_different_clocks():
    call = StageCall.between(TIMING, ready_s=10.05, end_s=10.14)
    assert call.transfer_ms == 0


def test_calls_are_added_up_per_stage():
    calls = [
        StageCall("LipSync", 4, 1, 2, 3, 6, 2),
        StageCall("LipSync", 8, 1, 2, 3, 6, 3),
        StageCall("TTS", 0, 0, 1, 1, 2, 1),
    ]
    rows = total_calls(calls)
    assert list(rows) == ["LipSync", "TTS"]
    row = {"calls": 2, "frames": 12, "queue_ms": 2, "transfer_ms": 4, "compute_ms": 6, "wall_ms": 12, "busy_ms": 5}
    assert rows["LipSync"] == row


def call(stage: str, busy_ms: float) -> StageCall:
    return StageCall(stage, 8, 1.0, 2.0, busy_ms, busy_ms + 3, busy_ms)


def test_running_totals_read_each_call_once():
    class Counted(list):
        read = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            self.read += len(found)
            return found

    calls, totals = Counted(), CallTotals()
    for _ in range(20):
        calls.append(call("TTS", 1.0))
        totals.add_new(calls)
    assert calls.read == 20 and totals.rows()["TTS"]["busy_ms"] == 20.0


# --- progress


def writer(frames: int) -> SimpleNamespace:
    cues = [Cue(1, "Ten chars.", 0.0, 1.0), Cue(2, "Ten  more.", 1.2, 2.2)]
    return SimpleNamespace(frames=frames, spec=SimpleNamespace(fps=25), cues=cues)


def test_a_report_has_frames_text_and_cost_and_is_made_only_after_a_change():
    calls, stitch_calls, reports = [call("LipSync", 100.0)], [call("Stitch", 5.0)], []
    output = SimpleNamespace(shown_frames=20, watched=True, report=reports.append)
    progress = Progress(writer(50), output, (calls, stitch_calls), 480.0)
    facts = progress.report()
    assert Making(**facts).stages["LipSync"]["busy_ms"] == 100.0 and reports == [facts]
    assert (facts["frames"], facts["shown_frames"], facts["duration_s"], facts["ttff_ms"]) == (50, 20, 2.0, 480.0)
    assert facts["spoken_chars"] == 8  # 0.8 s of the first sentence
    assert progress.spoken() == {"spoken": "Ten chars.", "watched": True}
    assert progress.report() is None and reports == [facts]
    calls.append(call("LipSync", 50.0))
    output.shown_frames = 43
    later = progress.report()
    assert (later["stages"]["LipSync"]["busy_ms"], later["stages"]["LipSync"]["calls"]) == (150.0, 2.0)
    assert later["spoken_chars"] == 10 + 5 and progress.spoken()["spoken"] == "Ten chars. Ten  more."
    assert later["stages"] == total_calls([*calls, *stitch_calls])


# --- ticks


async def test_a_source_with_ticks_yields_all_its_items_and_one_tick_per_interval():
    async def source():
        for k in range(6):
            await asyncio.sleep(0.045)
            yield k

    start_s, ticks, items = time.monotonic(), [], []
    async for item in with_ticks(source(), 0.1):
        (ticks if item is None else items).append(time.monotonic() - start_s if item is None else item)
    assert items == list(range(6)) and ticks == pytest.approx([0.1, 0.2])


async def test_leaving_closes_the_source_and_its_error_is_raised():
    closed = []

    async def source(fails: bool):
        try:
            await asyncio.sleep(0.02)
            yield 1
            if fails:
                raise ValueError("broken")
            await asyncio.sleep(60)
        finally:
            closed.append(fails)

    left = with_ticks(source(False), 0.01)
    while await anext(left) is None:
        pass
    await left.aclose()
    assert closed == [False]
    with pytest.raises(ValueError, match="broken"):
        async for _ in with_ticks(source(True), 10):
            pass
    assert closed == [False, True]
