"""Utterances that end early: an interrupt, a caller that leaves, an error of the playout, a session that is deleted."""

import asyncio
import gc
import threading
import time
import weakref

import av
import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from deployments.stitch import utterance
from deployments.stitch.live.broadcast import Broadcast
from models.errors import InterruptedSpeech, SessionNotFound
from models.media.encode import UtteranceEncoder
from tests.support.stitch import Watcher, assert_continuous, summary_of, wait_for_frames
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

STOP_S = 0.3  # of the stream, within which an interrupted voice falls silent: what has been released is still shown


def speaking(stitch, text: str, **options) -> asyncio.Task:
    return asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", text, deliver=False, **options))))


async def test_an_interrupt_ends_speech_for_viewers_file_and_stages(make_stitch):
    stitch, live, stages = await make_stitch(delay_s=0.1)
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    said, waiting = speaking(stitch, "x" * 60), speaking(stitch, "never said")
    await wait_for_frames(stitch, "alice", 18)
    live_edge = len(watcher.data)
    assert await stitch.interrupt("alice") == {"session_id": "alice", "interrupted": 2}
    calls = len(stages.rendered)
    summary = await said
    with pytest.raises(InterruptedSpeech):
        await waiting
    await asyncio.sleep(0.8)
    assert len(stages.rendered) == calls  # nothing more is made
    data, watcher.data = watcher.data, watcher.data[:live_edge]
    before = len(watcher.seen()[0])
    watcher.data = data
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    shown = np.flatnonzero(mouths > 240)
    assert (shown[-1] + 1 - before) / 25 < STOP_S
    assert summary["interrupted"] and summary["live"]["shown_frames"] == len(shown)
    facts = await stitch.session("alice")
    (line,) = facts["utterances"]
    assert facts["frames"] == summary["frames"] == len(shown) and line["interrupted"]
    assert summary["duration_s"] == pytest.approx(len(shown) / 25, abs=1e-3) and summary["rtf"] > 0
    assert line["end_s"] == pytest.approx(len(shown) / 25, abs=1e-3)
    with av.open(facts["video_path"]) as file:
        assert sum(1 for _ in file.decode(video=0)) == len(shown)


async def test_an_interrupt_stops_the_playout_while_the_compute_thread_is_busy(make_stitch, monkeypatch):
    """The thread may need another second for its frames. Virtual time stands still meanwhile."""
    stitch, live, _ = await make_stitch(delay_s=0.05)
    Watcher(await live.view("alice"))
    busy, free, sent = asyncio.Event(), threading.Event(), []
    loop, encode = asyncio.get_running_loop(), utterance.UtteranceWriter.encode

    def slow(self, chunk, close):
        if self.kept_frames >= 12:
            loop.call_soon_threadsafe(busy.set)
            assert free.wait(30)
        return encode(self, chunk, close)

    send = Broadcast.send
    monkeypatch.setattr(Broadcast, "send", lambda self, fragment: sent.append(fragment) or send(self, fragment))
    monkeypatch.setattr(utterance.UtteranceWriter, "encode", slow)
    said = speaking(stitch, "x" * 100)
    await busy.wait()
    start_s, released = time.monotonic(), len(sent)
    try:
        assert await stitch.interrupt_nowait("alice") == 1
        while sum(fragment.frames for fragment in sent[released:]) < 2:  # the return to rest, encoded on another thread
            await asyncio.to_thread(time.sleep, 0.001)
        assert {fragment.utterance for fragment in sent[released:]} == {0}  # no more speech
        assert time.monotonic() == start_s and not said.done()
    finally:
        free.set()
    assert (await said)["interrupted"] and await stitch.interrupt_nowait("alice") == 0


async def test_interrupt_nowait_raises_for_a_session_that_does_not_exist(make_stitch):
    stitch, _, _ = await make_stitch()
    with pytest.raises(SessionNotFound):
        await stitch.interrupt_nowait("nobody")


async def test_an_unwatched_utterance_can_be_interrupted_too(make_stitch):
    stitch, _, stages = await make_stitch(delay_s=0.3)
    said = speaking(stitch, "x" * 60)
    while len(stages.rendered) < 6:
        await asyncio.sleep(0.02)
    await stitch.interrupt("alice")
    summary = await said
    facts = await stitch.session("alice")
    assert summary["interrupted"] and 0 < facts["frames"] == summary["frames"] < 150
    assert facts["utterances"][0]["interrupted"]
    assert (await stitch.interrupt("alice"))["interrupted"] == 0


async def test_the_caller_of_an_interrupted_utterance_gets_the_frames_of_the_file(make_stitch):
    stitch, _, stages = await make_stitch(delay_s=0.3)
    frames, summary = 0, None
    async for event in stitch.speak(SpeakRequest("alice", "x" * 60)):
        frames, summary = frames + event.frames, event.summary
        if len(stages.rendered) >= 6:
            await stitch.interrupt_nowait("alice")
    assert summary["interrupted"] and frames == summary["frames"] == (await stitch.session("alice"))["frames"]


async def test_a_caller_that_is_cancelled_ends_its_speech(make_stitch):
    stitch, live, stages = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    said = speaking(stitch, "x" * 60)
    await wait_for_frames(stitch, "alice", 12)
    said.cancel()
    await asyncio.sleep(0.8)
    calls = len(stages.rendered)
    await asyncio.sleep(0.4)
    assert len(stages.rendered) == calls
    _, edges, mouths = watcher.seen()
    assert_continuous(edges)
    assert 0 < np.sum(mouths > 240) < 40 and mouths[-1] < 200
    assert (await stitch.session("alice"))["utterances"][0]["interrupted"]


async def test_a_caller_that_closes_its_stream_frees_the_session_for_the_next(make_stitch):
    stitch, _, stages = await make_stitch(delay_s=0.1)
    events = stitch.speak(SpeakRequest("alice", "x" * 60))
    for _ in range(3):
        await anext(events)
    await events.aclose()
    calls = len(stages.rendered)
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "four")))
    assert summary["frames"] == 13 and len(stages.rendered) - calls == 3
    facts = await stitch.session("alice")
    assert [line["end_s"] is None for line in facts["utterances"]] == [True, False]


@pytest.mark.parametrize("steps", [0, 1, 3])
async def test_a_caller_that_is_cancelled_several_times_leaves_nothing_behind(make_stitch, steps):
    """Serve cancels a call when its client leaves, and again when its replica is stopped."""
    stitch, live, _ = await make_stitch(live_ahead_s=0.6)
    await live.view("alice")
    said = speaking(stitch, "x" * 30)
    await asyncio.sleep(0.8)  # the output is full
    for _ in range(1 + steps):
        said.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await said
    assert stitch._live._speaking == set() and stitch._live.pace.speakers == 0
    assert len(stitch._session_lock) == len(stitch._interrupts) == 0
    assert {slots._value for slots in stitch._slots.values()} == {stitch.config.max_utterances}
    summary = await speaking(stitch, "Hello.")
    assert summary["frames"] > 0 and not summary["interrupted"]


async def test_an_error_of_the_playout_is_raised_and_the_session_speaks_again(make_stitch, monkeypatch):
    """Fragments must not wait for a playout that has ended."""
    stitch, live, _ = await make_stitch(live_ahead_s=1.0)
    await live.view("alice")
    start_s = time.monotonic()
    with monkeypatch.context() as broken:
        broken.setattr("deployments.stitch.live.playout.Playout._release", lambda self, part: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await speaking(stitch, "x" * 60)
    assert time.monotonic() - start_s < 1  # of six seconds of speech
    assert stitch._live._speaking == set()
    summary = await speaking(stitch, "Hello.")
    assert summary["live"]["shown_frames"] == summary["frames"]
    assert time.monotonic() - start_s < 3  # not behind the speech that was never shown


@pytest.mark.parametrize("method", ["reset", "remove"])
async def test_resetting_or_removing_a_session_interrupts_its_speech(make_stitch, method):
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    tasks = [speaking(stitch, "x" * 100) for _ in range(2)]
    await wait_for_frames(stitch, "alice", 12)
    asked_s = time.monotonic()
    answer = await getattr(stitch, method)("alice")
    assert answer[method if method == "reset" else "removed"]
    assert time.monotonic() - asked_s < 1.0  # of twenty seconds of speech
    said, waiting = await asyncio.gather(*tasks, return_exceptions=True)
    assert said["interrupted"] and isinstance(waiting, InterruptedSpeech) and watcher.data
    if method == "reset":
        assert (await stitch.session("alice"))["frames"] == 0
    else:
        assert await stitch.sessions() == []
    watcher.task.cancel()


async def test_an_interrupted_utterance_drops_its_encoder(make_stitch, monkeypatch):
    """An encoder holds threads and megabytes, and garbage collection may not run for a long time."""
    encoders = []

    class Recorded(UtteranceEncoder):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            encoders.append(weakref.ref(self))

    monkeypatch.setattr(utterance, "UtteranceEncoder", Recorded)
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    said = speaking(stitch, "x" * 60)
    gc.collect()
    gc.disable()
    try:
        await asyncio.sleep(1.5)
        assert [encoder() is not None for encoder in encoders] == [True]
        await stitch.interrupt("alice")
        assert (await said)["interrupted"]
        assert [encoder() for encoder in encoders] == [None]
    finally:
        gc.enable()
        watcher.task.cancel()


async def test_an_interrupt_during_a_hold_does_not_make_the_head_jump(make_stitch):
    stitch, live, stages = await make_stitch(delay_s=3.0)
    watcher = Watcher(await live.view("alice"))
    said = speaking(stitch, "twelve chars")
    broadcast = stitch._live.broadcast_of("alice")
    zero_s = broadcast.clock.zero_s
    while broadcast.clock.zero_s < zero_s + 8 / 25:  # the head sways
        await asyncio.sleep(0.02)
    await stitch.interrupt("alice")
    with pytest.raises(InterruptedSpeech):
        await said
    await asyncio.sleep(1.0)
    times, edges, mouths = watcher.seen()
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    assert_continuous(edges)
    assert mouths.max() < 240 and stages.rendered == []


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
async def test_setting_the_wall_clock_does_not_affect_live_speech(make_stitch, monkeypatch, set_by_s):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    said = speaking(stitch, "x" * 20)
    await wait_for_frames(stitch, "alice", 8)
    wall, start_s = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: wall() + set_by_s)
    summary = await said
    assert time.monotonic() - start_s < 3
    await asyncio.sleep(0.5)
    times, edges, mouths = watcher.seen()
    assert summary["live"]["shown_frames"] == summary["frames"] and not summary["interrupted"]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    assert_continuous(edges, summary)
    assert (mouths > 240).sum() == summary["frames"]
