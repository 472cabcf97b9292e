"""Stitch on fake stages: what viewers see of speech, and how many utterances are made at a time."""

import asyncio
import threading
import time

import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from deployments.stitch.deployment import Stitch
from deployments.stitch.utterance import UtteranceWriter
from models.errors import BusyError
from models.stitch.paste import PasteMemory, Paster
from models.types import PreparedAvatar
from tests.support.stitch import (
    NO_HOLDS,
    Stages,
    Watcher,
    assert_continuous,
    summary_of,
    wait_for_frames,
)
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


async def test_each_config_sets_how_the_default_avatar_is_pasted(monkeypatch, tmp_path):
    """The avatar is loaded while a config is applied, and must use that config, not the previous one."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)

    def pasted(paster: Paster, prepared: PreparedAvatar) -> np.ndarray:
        frame = np.array(prepared.frames[0])
        paster.paste_into(frame, noise, 0, memory=PasteMemory())
        return frame

    stitch = Stitch(*[Stages()] * 3)
    plain = {"color_match": False, "sharpness_match": False, "jaw_follow": False}
    for options in ({"blend_mode": "multiband", **plain}, {"blend_mode": "multiband"}, {}):
        await stitch.reconfigure(options)
        avatar = stitch._load_avatar("presenter")
        keys = {**options}
        expected = Paster(avatar.prepared, keys.pop("blend_mode", "feather"), **keys)
        assert np.array_equal(pasted(avatar.paster, avatar.prepared), pasted(expected, avatar.prepared))
    stitch._housekeeping.cancel()


async def test_speech_and_idle_motion_form_one_continuous_timeline(make_stitch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.5)
    asked_s = time.time()
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False)))
    shown_s = time.time() - asked_s
    await asyncio.sleep(0.7)
    times, edges, mouths = watcher.seen()
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert len(speaking) == summary["frames"] == 33 and np.all(np.diff(speaking) == 1)
    assert mouths[speaking[-1] + 1] > mouths[speaking[-1] + 2]  # the return to rest
    np.testing.assert_allclose(mouths[speaking[-1] + 6 :], edges[speaking[-1] + 6 :], atol=3)
    first, last = watcher.loud()
    assert first == pytest.approx(times[speaking[0]] + 0.1, abs=0.025)
    assert last == pytest.approx(times[speaking[-1]], abs=0.07)
    assert summary["live"]["shown_frames"] == 33 and not summary["interrupted"]
    assert 33 / 25 < shown_s < 33 / 25 + 1.0  # until it was shown, not only made
    facts = await stitch.session("alice")
    assert (facts["frames"], facts["utterances"][0]["sentences"][0]["text"]) == (33, "twelve chars")


async def test_late_speech_is_held_while_the_head_sways_and_loses_no_frame(make_stitch):
    stitch, live, stages = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.2)
    stages.delay_s = 1.2  # of the first chunk; a third of it was expected
    task = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False))))
    await asyncio.sleep(0.3)
    stages.delay_s = 0.02
    summary = await task
    await asyncio.sleep(0.3)
    times, edges, mouths = watcher.seen()
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)
    assert summary["live"]["holds"] == 1 and 0.3 < summary["live"]["held_s"] < 2
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert len(speaking) == 33 and np.all(np.diff(speaking) == 1)
    assert_continuous(edges[speaking], NO_HOLDS)
    still = edges[:-6] == edges[6:]  # the head never freezes for 0.24 s
    assert np.abs(edges[6:] - edges[:-6]).max() > 4 and not np.any(np.convolve(still, np.ones(6), "valid") == 6)


async def test_without_a_viewer_speech_is_made_as_fast_as_possible(make_stitch):
    stitch, _, _ = await make_stitch(delay_s=0.02)
    start_s = time.time()
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False)))
    assert time.time() - start_s <= 5 * 0.02  # five chunks
    assert summary["frames"] == 33 and "live" not in summary


async def test_two_sessions_that_speak_at_once_do_not_mix(make_stitch):
    stitch, live, _ = await make_stitch()
    await stitch.create("bob")
    watchers = {name: Watcher(await live.view(name)) for name in ("alice", "bob")}
    texts = {"alice": "five5", "bob": "ten chars."}
    requests = [summary_of(stitch.speak(SpeakRequest(name, text, deliver=False))) for name, text in texts.items()]
    await asyncio.gather(*requests)
    await asyncio.sleep(0.4)
    for name, text in texts.items():
        _, edges, mouths = watchers[name].seen()
        assert_continuous(edges)
        assert np.sum(mouths > 240) == round((0.1 + 0.1 * len(text)) * 25)
        assert [line["text"] for line in (await stitch.session(name))["utterances"]] == [text]


async def test_running_and_waiting_utterances_are_limited(make_stitch):
    stitch, _, _ = await make_stitch(delay_s=0.2, max_utterances=1, max_waiting=1)
    running = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest(name, "words")))) for name in ("a", "b")]
    await asyncio.sleep(0.05)
    with pytest.raises(BusyError):
        await summary_of(stitch.speak(SpeakRequest("c", "words")))
    assert [summary["frames"] > 0 for summary in await asyncio.gather(*running)] == [True, True]
    assert (await summary_of(stitch.speak(SpeakRequest("c", "words"))))["frames"] > 0


@pytest.mark.parametrize("threads", [1, 2])
async def test_each_utterance_is_rendered_on_the_least_busy_thread(make_stitch, monkeypatch, threads):
    stitch, _, _ = await make_stitch(threads=threads)
    encode, used = UtteranceWriter.encode, {"alice": set(), "bob": set()}

    def recorded(self, chunk, close):
        used[self.request.session_id].add(threading.current_thread().name)
        return encode(self, chunk, close)

    monkeypatch.setattr(UtteranceWriter, "encode", recorded)
    await asyncio.gather(*(summary_of(stitch.speak(SpeakRequest(name, "five5"))) for name in used))
    assert [len(names) for names in used.values()] == [1, 1]
    assert len(used["alice"] | used["bob"]) == threads


async def test_sessions_made_on_several_threads_have_the_same_bytes_as_on_one(make_stitch, tmp_path):
    """Meanwhile the sessions are read, and another one is opened and removed."""
    texts = {f"s{k}": "chars" * (1 + k) for k in range(3)}
    videos = {}
    for threads in (1, 3):
        stitch, _, _ = await make_stitch(threads=threads, delay_s=0.0)
        speaking = [
            asyncio.create_task(summary_of(stitch.speak(SpeakRequest(name, text, deliver=False))))
            for name, text in [*texts.items(), *texts.items()]
        ]
        while not all(task.done() for task in speaking):
            await stitch.create("guest")
            for name in await stitch.sessions():
                facts = await stitch.session(name)
                assert facts["size"] <= (tmp_path / facts["video_path"]).stat().st_size
            await stitch.remove("guest")
        for name, text in texts.items():
            said = (await stitch.session(name))["utterances"]
            assert [line["text"] for line in said] == [text] * 2 and said[-1]["end_s"] is not None
        folder = tmp_path / "results" / "sessions"
        videos[threads] = {name: (folder / name / "full_session.mp4").read_bytes() for name in texts}
        for name in [*texts, "alice"]:
            await stitch.remove(name)
    assert videos[1] == videos[3] and len(set(videos[1].values())) == 3


async def test_a_watched_session_beyond_the_capacity_is_refused_at_once_and_a_file_waits(make_stitch):
    stitch, live, _ = await make_stitch(assumed_live=1, max_utterances=1)
    await stitch.create("bob")
    watchers = [Watcher(await live.view(name)) for name in ("alice", "bob")]
    running = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 30, deliver=False))))
    await wait_for_frames(stitch, "alice", 10)
    asked_s = time.time()
    with pytest.raises(BusyError, match="not measured its speed yet, and at most 1 live sessions speak"):
        await summary_of(stitch.speak(SpeakRequest("bob", "five5", deliver=False)))
    assert time.time() - asked_s < 0.1
    file = await summary_of(stitch.speak(SpeakRequest("carl", "five5", deliver=False)))  # its places are others
    again = await summary_of(stitch.speak(SpeakRequest("alice", "five5", deliver=False)))  # waits for the running one
    assert (await running)["frames"] > again["frames"] == file["frames"] > 0
    assert again["reduced_frames"] == 0
    for watcher in watchers:
        watcher.seen()
