"""What viewers and files are told of speech, held against its sound: Stitch on fake stages, watched through a hub."""

import asyncio
import io
import re
import time
from pathlib import Path

import av
import numpy as np
import pytest

from deployments.common.messages import SpeakEvent, SpeakRequest
from deployments.ingress.session_views import Views
from deployments.ingress.websocket.protocol import Caption, Making
from models.media.emsg import read_events
from tests.support import stitch as stitch_material
from tests.support.stitch import RATE, Watcher, summary_of

make_stitch = stitch_material.make_stitch

CUE = re.compile(r"(\d\d):(\d\d):(\d\d\.\d{3}) --> (\d\d):(\d\d):(\d\d\.\d{3})\n(.+)")


def spans(data: bytes) -> list[tuple[float, float]]:
    """When it is loud, seconds: pauses of more than 20 ms part."""
    with av.open(io.BytesIO(data)) as file:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    loud = np.flatnonzero(np.abs(samples) > 0.1) / RATE
    ends = np.flatnonzero(np.diff(loud) > 0.02)
    return list(zip(loud[[0, *(ends + 1)]], loud[[*ends, -1]], strict=True))


def told(data: bytes, kind: str) -> list[dict]:
    """Messages of a kind; of captions the latest of each id."""
    found = [message for name, message in read_events(data) if name == kind]
    return list({message["id"]: message for message in found}.values()) if kind == "caption" else found


def times_of(vtt: str) -> list[tuple[float, float, str]]:
    cues = CUE.findall(vtt)
    assert vtt.startswith("WEBVTT\n\n") and len(cues) == vtt.count("-->")
    return [(3600 * int(h) + 60 * int(m) + float(s), 3600 * int(i) + 60 * int(n) + float(t), text)
            for h, m, s, i, n, t, text in cues]  # fmt: skip


async def test_viewers_are_told_each_sentence_with_the_times_of_their_sound(make_stitch):
    stitch, live, _ = await make_stitch()
    early = Watcher(await live.view("alice"))
    await asyncio.sleep(0.5)
    late = Watcher(await live.view("alice"))
    for text in ("twelve chars", "and twenty characters"):
        await summary_of(stitch.speak(SpeakRequest("alice", text, deliver=False)))
        await asyncio.sleep(0.3)
    await asyncio.sleep(0.4)
    for watcher in (early, late):
        watcher.task.cancel()
        said = [Caption(**caption) for caption in told(watcher.data, "caption")]
        assert [(c.text, c.cut) for c in said] == [("twelve chars", False), ("and twenty characters", False)]
        heard = spans(watcher.data)
        errors = [[c.start_s - a, c.end_s - b] for c, (a, b) in zip(said, heard, strict=True)]
        assert np.abs(errors).max() < 0.04, errors  # a frame


async def test_a_file_has_captions_with_the_times_of_its_sound_over_utterances_a_cut_and_a_silence(make_stitch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await summary_of(stitch.speak(SpeakRequest("alice", "the first of them", deliver=False)))
    await asyncio.sleep(1.0)  # idle motion, which is not in the file
    long = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "a long one " * 5, deliver=False))))
    while len(told(watcher.data, "caption")) < 2:
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    await stitch.interrupt("alice")
    assert (await long)["interrupted"]
    await asyncio.sleep(0.4)
    watcher.task.cancel()
    await summary_of(stitch.speak(SpeakRequest("alice", "the last, unwatched", deliver=False)))
    facts = await stitch.session("alice")
    cues = times_of(await asyncio.to_thread(Views().captions, facts))
    heard = spans(Path(facts["video_path"]).read_bytes())
    texts = ["the first of them", "a long one a long one a long one a long", "the last, unwatched"]
    assert [text for *_, text in cues] == texts or cues[1][2].endswith("—")
    errors = [[start - a, end - b] for (start, end, _), (a, b) in zip(cues, heard, strict=True)]
    assert np.abs(errors).max() < 0.06, errors
    (lines,) = [[s["start_s"], s["end_s"]] for s in facts["utterances"][0]["sentences"]]
    assert lines == pytest.approx(cues[0][:2], abs=1e-3)
    ((live_cut,), (_, file_cut, _)) = [c for c in told(watcher.data, "caption") if c["cut"]], cues[1]
    assert live_cut["end_s"] - live_cut["start_s"] == pytest.approx(file_cut - cues[1][0], abs=0.04)
    assert live_cut["end_s"] == pytest.approx(spans(watcher.data)[1][1], abs=0.09)  # an AAC frame, and its overlap


async def test_viewers_are_told_what_is_being_made_at_least_twice_a_second(make_stitch):
    stitch, live, _ = await make_stitch(delay_s=0.5)
    watcher = Watcher(await live.view("alice"))
    began_s = time.monotonic()
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "x" * 30, deliver=False)))
    made_s = time.monotonic() - began_s
    await asyncio.sleep(0.3)
    watcher.task.cancel()
    reports = [Making(**message) for message in told(watcher.data, "making")]
    assert len(reports) >= 2 * (made_s - 1.0), (len(reports), made_s)
    frames = [report.frames for report in reports]
    assert frames == sorted(frames) and len(set(frames)) >= 4 and frames[-1] == summary["frames"]
    chars = [report.spoken_chars for report in reports]
    assert chars == sorted(chars) and chars[-1] == 30
    first = next(report for report in reports if report.ttff_ms is not None)
    assert first.ttff_ms == summary["ttff_ms"] and {"TTS", "LipSync", "Stitch"} <= set(first.stages)
    assert reports[-1].stages == summary["stages"]


async def test_a_caller_may_ask_how_far_it_is(make_stitch):
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


@pytest.mark.parametrize(("method", "why"), [("close", "closed"), ("remove", "removed"), ("reset", "reset")])
async def test_viewers_are_told_that_the_session_ends_and_why(make_stitch, method, why):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    await getattr(stitch, method)("alice")
    await asyncio.wait_for(watcher.task, 2)
    assert told(watcher.data, "ended") == [{"reason": why}] and watcher.viewer.why == why


async def test_viewers_of_a_session_that_expires_are_told(make_stitch, monkeypatch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    await stitch.remove("alice", "expired")
    await asyncio.wait_for(watcher.task, 2)
    assert told(watcher.data, "ended") == [{"reason": "expired"}]
