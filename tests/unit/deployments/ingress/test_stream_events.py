"""Captions, progress and endings in live streams and files, compared with the sound: Stitch on fake stages, a real hub.

In virtual time.
"""

import asyncio
import io
import re
import time
from pathlib import Path

import av
import numpy as np
import pytest

from deployments.common.messages import SpeakEvent, SpeakRequest
from deployments.ingress.session_views import SessionViews
from deployments.ingress.websocket.protocol import Caption, Making
from models.media.emsg import read_events
from tests.support.stitch import RATE, Watcher, summary_of
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
CUE = re.compile(r"(\d\d):(\d\d):(\d\d\.\d{3}) --> (\d\d):(\d\d):(\d\d\.\d{3})\n(.+)")
FRAME_S = 0.04
AAC_S = 1024 / RATE  # an AAC frame: the error of the end of a sound that was cut


def sounds(data: bytes) -> list[tuple[float, float]]:
    """Beginning and end of each sound in seconds, separated by more than 20 ms of silence."""
    with av.open(io.BytesIO(data)) as file:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    loud = np.flatnonzero(np.abs(samples) > 0.1) / RATE
    ends = np.flatnonzero(np.diff(loud) > 0.02)
    return list(zip(loud[[0, *(ends + 1)]], loud[[*ends, -1]], strict=True))


def messages_of(data: bytes, kind: str) -> list[dict]:
    return [message for name, message in read_events(data) if name == kind]


def captions_of(data: bytes) -> list[Caption]:
    """The latest caption of each id."""
    return list({message["id"]: Caption(**message) for message in messages_of(data, "caption")}.values())


def cues_of(vtt: str) -> list[tuple[float, float, str]]:
    """(start, end, text) of each cue, times in seconds."""
    cues = CUE.findall(vtt)
    assert vtt.startswith("WEBVTT\n\n") and len(cues) == vtt.count("-->")
    return [(3600 * int(h) + 60 * int(m) + float(s), 3600 * int(i) + 60 * int(n) + float(t), text)
            for h, m, s, i, n, t, text in cues]  # fmt: skip


async def say(stitch, text: str) -> dict:
    return await summary_of(stitch.speak(SpeakRequest("alice", text, deliver=False)))


async def test_captions_have_the_times_of_their_sound_for_each_viewer(make_stitch):
    stitch, hubs, _ = await make_stitch()
    early = Watcher(await hubs.view("alice"))
    await asyncio.sleep(0.5)
    late = Watcher(await hubs.view("alice"))
    for text in ("twelve chars", "and twenty characters"):
        await say(stitch, text)
        await asyncio.sleep(0.3)
    await asyncio.sleep(1.0)
    for watcher in (early, late):
        watcher.task.cancel()
        captions = captions_of(watcher.data)
        assert [(c.text, c.cut) for c in captions] == [("twelve chars", False), ("and twenty characters", False)]
        pairs = zip(captions, sounds(watcher.data), strict=True)
        errors = [[c.start_s - start, c.end_s - end] for c, (start, end) in pairs]
        assert np.abs(errors).max() < FRAME_S, errors


async def test_the_captions_of_a_file_have_the_times_of_its_sound_also_after_an_interruption(make_stitch):
    stitch, hubs, _ = await make_stitch()
    watcher = Watcher(await hubs.view("alice"))
    await say(stitch, "the first of them")
    await asyncio.sleep(1.0)  # idle motion, which is not in the file
    long = asyncio.create_task(say(stitch, "a long one " * 5))
    while len(captions_of(watcher.data)) < 2:
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    await stitch.interrupt("alice")
    assert (await long)["interrupted"]
    await asyncio.sleep(0.4)
    watcher.task.cancel()
    await say(stitch, "the last, unwatched")
    facts = await stitch.session("alice")
    cues = cues_of(await asyncio.to_thread(SessionViews().captions, facts))
    first, cut, last = [text for *_, text in cues]
    assert (first, last) == ("the first of them", "the last, unwatched")
    assert ("a long one " * 5).startswith(cut) and 5 < len(cut) < 50  # the words that were heard
    heard = sounds(Path(facts["video_path"]).read_bytes())
    errors = [[start - a, end - b] for (start, end, _), (a, b) in zip(cues, heard, strict=True)]
    assert np.abs(errors).max() < FRAME_S + AAC_S, errors
    (times,) = [[s["start_s"], s["end_s"]] for s in facts["utterances"][0]["sentences"]]
    assert times == pytest.approx(cues[0][:2], abs=1e-3)
    (live_cut,), (file_start_s, file_end_s, _) = [c for c in captions_of(watcher.data) if c.cut], cues[1]
    assert live_cut.end_s - live_cut.start_s == pytest.approx(file_end_s - file_start_s, abs=FRAME_S)
    assert live_cut.end_s == pytest.approx(sounds(watcher.data)[1][1], abs=FRAME_S + AAC_S)


async def test_viewers_get_progress_at_least_twice_a_second(make_stitch):
    stitch, hubs, _ = await make_stitch(delay_s=0.5)
    watcher = Watcher(await hubs.view("alice"))
    began_s = time.monotonic()
    summary = await say(stitch, "x" * 30)
    made_s = time.monotonic() - began_s
    await asyncio.sleep(0.3)
    watcher.task.cancel()
    reports = [Making(**message) for message in messages_of(watcher.data, "making")]
    assert len(reports) >= 2 * (made_s - 1.0)
    frames = [report.frames for report in reports]
    assert frames == sorted(frames) and len(set(frames)) >= 4 and frames[-1] == summary["frames"]
    chars = [report.spoken_chars for report in reports]
    assert chars == sorted(chars) and chars[-1] == 30
    first = next(report for report in reports if report.ttff_ms is not None)
    assert first.ttff_ms == summary["ttff_ms"] and {"TTS", "LipSync", "Stitch"} <= set(first.stages)
    assert reports[-1].stages == summary["stages"]


async def test_a_caller_gets_progress_if_it_asks_for_it(make_stitch):
    stitch, _, _ = await make_stitch(delay_s=0.4)
    events: list[SpeakEvent] = []
    async for event in stitch.speak(SpeakRequest("alice", "x" * 30, deliver=False, progress=True)):
        events.append(event)
    making = [event.making for event in events[:-1]]
    assert all(making) and events[-1].summary is not None and len(making) >= 3
    assert {facts["ttff_ms"] for facts in making} - {None} == {events[-1].summary["ttff_ms"]}
    assert all((facts["watched"], facts["spoken"]) == (False, "x" * 30) for facts in making if facts["frames"] > 3)
    plain = [event async for event in stitch.speak(SpeakRequest("alice", "x", deliver=False))]
    assert [event.summary is not None for event in plain] == [True]


@pytest.mark.parametrize(
    ("method", "arguments", "ending"),
    [("close", (), "closed"), ("remove", (), "removed"), ("remove", ("expired",), "expired"), ("reset", (), "reset")],
)
async def test_viewers_get_the_reason_for_the_end_of_a_session(make_stitch, method, arguments, ending):
    stitch, hubs, _ = await make_stitch()
    watcher = Watcher(await hubs.view("alice"))
    await asyncio.sleep(0.3)
    await getattr(stitch, method)("alice", *arguments)
    await asyncio.wait_for(watcher.task, 2)
    assert messages_of(watcher.data, "ended") == [{"reason": ending}] and watcher.viewer.ending == ending
