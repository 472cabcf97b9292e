"""Speech that ends before its time: an interruption, a caller that goes, a session that is deleted."""

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
from models.errors import InterruptedSpeech, SessionNotFound
from models.media.encode import UtteranceEncoder
from tests.support.stitch import (
    Watcher,
    assert_continuous,
    summary_of,
    wait_for_frames,
)
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


async def test_an_interruption_ends_speech_for_viewers_file_and_stages(make_stitch):
    stitch, live, stages = await make_stitch(delay_s=0.1)
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    waiting = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "never said", deliver=False))))
    await wait_for_frames(stitch, "alice", 18)
    live_edge = len(watcher.data)
    assert await stitch.interrupt("alice") == {"session_id": "alice", "interrupted": 2}
    calls = len(stages.rendered)
    summary = await said
    with pytest.raises(InterruptedSpeech):
        await waiting
    await asyncio.sleep(0.8)
    assert len(stages.rendered) == calls  # nothing more is made for it
    data, watcher.data = watcher.data, watcher.data[:live_edge]
    before = len(watcher.seen()[0])
    watcher.data = data
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert (speaking[-1] + 1 - before) / 25 < 0.3  # of stream time
    assert summary["interrupted"] and summary["live"]["shown_frames"] == len(speaking)
    facts = await stitch.session("alice")
    (line,) = facts["utterances"]
    assert facts["frames"] == summary["frames"] == len(speaking) and line["interrupted"]
    assert summary["duration_s"] == pytest.approx(len(speaking) / 25, abs=1e-3) and summary["rtf"] > 0
    assert line["end_s"] == pytest.approx(len(speaking) / 25, abs=1e-3)
    with av.open(facts["video_path"]) as file:
        assert sum(1 for _ in file.decode(video=0)) == len(speaking)


async def test_a_cut_does_not_wait_for_the_compute_thread(make_stitch, monkeypatch):
    """It may have another second of pictures under way, of this session or of others."""
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    busy, make = threading.Event(), utterance.UtteranceWriter.encode

    def slow(self, *args):
        if slowly:
            busy.set()
            time.sleep(1.2)
        return make(self, *args)

    slowly = False
    monkeypatch.setattr(utterance.UtteranceWriter, "encode", slow)
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 100, deliver=False))))
    await wait_for_frames(stitch, "alice", 12)
    slowly = True
    await asyncio.to_thread(busy.wait, 10)
    before = len(watcher.data)
    began_s = time.monotonic()
    assert await stitch.cut("alice") == 1
    assert time.monotonic() - began_s < 0.5
    slowly = False
    assert (await said)["interrupted"] and await stitch.cut("alice") == 0
    await asyncio.sleep(0.6)
    data, watcher.data = watcher.data, watcher.data[:before]
    edge = len(watcher.seen()[0])
    watcher.data = data
    _, edges, mouths = watcher.seen()
    assert_continuous(edges)
    assert (np.flatnonzero(mouths > 240)[-1] + 1 - edge) / 25 < 0.3  # of stream time
    with pytest.raises(SessionNotFound):
        await stitch.cut("nobody")


async def test_what_is_not_watched_can_be_interrupted_too(make_stitch):
    stitch, _, stages = await make_stitch(delay_s=0.3)
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    while len(stages.rendered) < 6:
        await asyncio.sleep(0.02)
    await stitch.interrupt("alice")
    summary = await said
    facts = await stitch.session("alice")
    assert summary["interrupted"] and 0 < facts["frames"] == summary["frames"] < 150
    assert facts["utterances"][0]["interrupted"]
    assert (await stitch.interrupt("alice"))["interrupted"] == 0


async def test_a_caller_that_goes_takes_its_speech_along(make_stitch):
    stitch, live, stages = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
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


async def test_a_caller_that_closes_its_stream_leaves_the_session_to_the_next_at_once(make_stitch):
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


async def test_a_caller_that_is_cancelled_again_while_it_leaves_leaves_nothing_behind(make_stitch):
    """Serve cancels a call when its client goes, and again when its replica is stopped."""
    stitch, live, _ = await make_stitch(live_ahead_s=0.6)
    await live.view("alice")
    for steps in (0, 1, 3):
        said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 30, deliver=False))))
        await asyncio.sleep(0.8)  # what is made waits to be shown
        for _ in range(1 + steps):
            said.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await said
        assert stitch._live._speaking == set() and stitch._live.pace.speakers == 0
        assert (
            len(stitch._session_lock) == len(stitch._interrupts) == 0
            and stitch._slots._value == stitch.config.max_utterances
        )
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "Hello.", deliver=False)))
    assert summary["frames"] > 0 and not summary["interrupted"]


async def test_a_show_that_breaks_is_an_error_at_once_and_the_session_speaks_on(make_stitch, monkeypatch):
    """What is made must not wait for ever to be shown."""
    stitch, live, _ = await make_stitch(live_ahead_s=1.0)
    await live.view("alice")
    with monkeypatch.context() as broken:
        broken.setattr("deployments.stitch.live.playout.Playout._release", lambda self, piece: 1 / 0)
        began_s = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))), 8)
        assert time.monotonic() - began_s < 3
    assert stitch._live._speaking == set()
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "Hello.", deliver=False)))
    assert summary["live"]["shown_frames"] == summary["frames"]
    assert time.monotonic() - began_s < 5  # and not behind the six seconds that were never shown


async def test_a_session_that_begins_afresh_does_not_wait_for_what_it_was_going_to_say(make_stitch):
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    speaking = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 100)))) for _ in range(2)]
    await wait_for_frames(stitch, "alice", 12)
    asked_s = time.monotonic()
    assert (await stitch.reset("alice"))["reset"]
    assert time.monotonic() - asked_s < 2.0  # of eight seconds
    said, waiting = await asyncio.gather(*speaking, return_exceptions=True)
    assert said["interrupted"] and isinstance(waiting, InterruptedSpeech) and watcher.data
    assert (await stitch.session("alice"))["frames"] == 0


async def test_a_session_that_is_deleted_falls_silent_first(make_stitch):
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    speaking = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 100)))) for _ in range(2)]
    await asyncio.sleep(1.5)
    asked_s = time.monotonic()
    assert (await stitch.remove("alice"))["removed"]
    assert time.monotonic() - asked_s < 2.0
    said, waiting = await asyncio.gather(*speaking, return_exceptions=True)
    assert said["interrupted"] and isinstance(waiting, InterruptedSpeech)
    assert await stitch.sessions() == []
    watcher.task.cancel()


async def test_an_utterance_that_was_cut_lets_go_of_its_encoder_at_once(make_stitch, monkeypatch):
    """Each holds threads and megabytes, and garbage may not be collected for a long time."""
    made = []

    class Noted(UtteranceEncoder):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            made.append(weakref.ref(self))

    monkeypatch.setattr(utterance, "UtteranceEncoder", Noted)
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    gc.collect()
    gc.disable()
    try:
        await asyncio.sleep(1.5)
        assert [encoder() is not None for encoder in made] == [True]
        await stitch.interrupt("alice")
        assert (await said)["interrupted"]
        assert [encoder() for encoder in made] == [None]
    finally:
        gc.enable()
        watcher.task.cancel()


async def test_a_cut_while_speech_is_waited_for_does_not_make_the_head_leap(make_stitch):
    stitch, live, stages = await make_stitch(delay_s=3.0)
    watcher = Watcher(await live.view("alice"))
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False))))
    broadcast = stitch._live.broadcast_of("alice")
    zero_s = broadcast.clock.zero_s
    while broadcast.clock.zero_s < zero_s + 8 / 25:  # it sways
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
async def test_setting_the_wall_clock_neither_stops_speech_nor_lets_it_leap(make_stitch, monkeypatch, set_by_s):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 20, deliver=False))))
    await wait_for_frames(stitch, "alice", 8)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + set_by_s)
    summary = await asyncio.wait_for(said, 6)
    await asyncio.sleep(0.5)
    monkeypatch.undo()
    times, edges, mouths = watcher.seen()
    assert summary["live"]["shown_frames"] == summary["frames"] and not summary["interrupted"]
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    assert_continuous(edges, summary)
    assert (mouths > 240).sum() == summary["frames"]
