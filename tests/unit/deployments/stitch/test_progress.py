"""How far an utterance is: told several times a second, and only when it has changed."""

import asyncio
import time
from types import SimpleNamespace

from deployments.ingress.websocket.protocol import Making
from deployments.stitch.calls import Call, Sums, summarise
from deployments.stitch.progress import Progress, ticked
from models.live.cues import Cue


def call(stage: str, busy_ms: float) -> Call:
    return Call(stage, 8, 1.0, 2.0, busy_ms, busy_ms + 3, busy_ms)


def utterance(frames: int):
    cues = [Cue(1, "Ten chars.", 0.0, 1.0), Cue(2, "Ten  more.", 1.2, 2.2)]
    return SimpleNamespace(frames=frames, spec=SimpleNamespace(fps=25), cues=cues)


def test_a_report_says_what_is_made_heard_and_spent_and_only_what_is_new():
    calls, stitched = [call("LipSync", 100.0)], [call("Stitch", 5.0)]
    made = utterance(50)
    told = []
    on_air = SimpleNamespace(released_frames=20, broadcast=SimpleNamespace(making=told.append))
    progress = Progress(made, SimpleNamespace(performance=on_air), (calls, stitched), 480.0)
    facts = progress.report()
    assert Making(**facts).stages["LipSync"]["busy_ms"] == 100.0 and told == [facts]
    assert (facts["frames"], facts["shown_frames"], facts["duration_s"], facts["ttff_ms"]) == (50, 20, 2.0, 480.0)
    assert facts["spoken_chars"] == 8  # 0.8 s of the first sentence
    assert progress.heard() == {"spoken": "Ten chars.", "watched": True}
    assert progress.report() is None and told == [facts]
    calls.append(call("LipSync", 50.0))
    on_air.released_frames = 43
    later = progress.report()
    assert (later["stages"]["LipSync"]["busy_ms"], later["stages"]["LipSync"]["calls"]) == (150.0, 2.0)
    assert later["spoken_chars"] == 10 + 5 and progress.heard()["spoken"] == "Ten chars. Ten  more."
    assert later["stages"] == summarise([*calls, *stitched])


def test_where_nobody_watches_what_is_made_counts_as_heard():
    progress = Progress(utterance(50), None, ([],))
    assert (progress.report()["spoken_chars"], progress.heard()["watched"]) == (18, False)


def test_sums_look_at_each_call_once():
    class Counted(list):
        looked = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            self.looked += len(found)
            return found

    calls, sums = Counted(), Sums()
    for _ in range(20):
        calls.append(call("TTS", 1.0))
        sums.add_new(calls)
    assert calls.looked == 20 and sums.rows()["TTS"]["busy_ms"] == 20.0


async def test_a_source_is_ticked_at_a_steady_pace_and_loses_nothing():
    async def source():
        for k in range(6):
            await asyncio.sleep(0.05)
            yield k

    began_s, ticks, items = time.monotonic(), [], []
    async for item in ticked(source(), 0.1):
        (ticks if item is None else items).append(time.monotonic() - began_s if item is None else item)
    assert items == list(range(6)) and 2 <= len(ticks) <= 3
    assert all(tick > 0.1 * (k + 1) - 0.01 for k, tick in enumerate(ticks))


async def test_a_source_that_is_left_is_closed_and_one_that_fails_tells():
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

    left = ticked(source(False), 0.01)
    while await anext(left) is None:
        pass
    await left.aclose()
    assert closed == [False]
    try:
        async for _ in ticked(source(True), 10):
            pass
    except ValueError as error:
        assert str(error) == "broken"
    assert closed == [False, True]
