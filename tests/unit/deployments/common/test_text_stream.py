"""Texts that are spoken while they are written: when they are, how they end, and what is left of them."""

import asyncio
import contextvars
import time
from dataclasses import replace

import numpy as np
import pytest

from deployments.common import text_stream as growing
from deployments.common.messages import SpeakRequest
from deployments.common.text_stream import TextStreams, speak_text_stream
from models.errors import BusyError, ClosedError, TextError
from tests.support.stitch import (
    StitchHandle,
    Watcher,
    assert_continuous,
    summary_of,
)


async def test_a_text_is_spoken_while_it_is_still_being_written(make_stitch):
    stitch, live, stages = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    came = []

    async def writing():
        for part in ("one one.", "two two.", "😀", "three."):
            came.append(time.time())
            yield part
            await asyncio.sleep(0.15)

    events = speak_text_stream(StitchHandle(stitch), SpeakRequest("alice", deliver=False), writing())
    summary = await summary_of(events)
    await events.aclose()
    await asyncio.sleep(0.4)
    assert [text for _, text in stages.spoken] == ["one one.", "two two.", "three."]
    assert stages.spoken[0][0] < came[1]  # the first was spoken before the second was there
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert len(speaking) == summary["frames"] and np.all(np.diff(speaking) == 1)  # no pause between them
    (line,) = (await stitch.session("alice"))["utterances"]
    assert line["text"] == "one one. two two. three."
    assert [s["text"] for s in line["sentences"]] == ["one one.", "two two.", "three."]
    assert len(stitch._text_streams) == 0


async def test_parts_are_sent_outside_the_request_that_began_them(make_stitch):
    """A call in the context of a request that has ended may be lost."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    stitch, _, stages = await make_stitch()
    feed, called_in = stitch.feed, []

    async def noted(*parts):
        called_in.append(request.get())
        await feed(*parts)

    stitch.feed = noted

    async def writing():
        yield "one."
        yield "two."

    request.set("the writer's")
    for _ in range(2):
        await summary_of(speak_text_stream(StitchHandle(stitch), SpeakRequest("alice", deliver=False), writing()))
    assert called_in == ["none"] * 6  # two parts and the end, twice
    assert [text for _, text in stages.spoken] == ["one.", "two."] * 2


async def test_a_writer_that_pauses_is_waited_for_with_the_mouth_at_rest(make_stitch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))

    async def writing():
        yield "one."
        await asyncio.sleep(2.0)
        yield "two."

    events = speak_text_stream(StitchHandle(stitch), SpeakRequest("alice", deliver=False), writing())
    summary = await summary_of(events)
    await events.aclose()
    await asyncio.sleep(0.4)
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    breaks = np.flatnonzero(np.diff(speaking) > 1)
    assert len(breaks) == 1 and np.diff(speaking)[breaks[0]] > 25
    assert (await stitch.session("alice"))["frames"] == np.ptp(speaking) + 1  # with the pause, which was shown


async def test_a_silent_writer_is_given_up_and_a_long_text_refused():
    texts = TextStreams(writer_timeout_s=0.05)
    texts.feed("a", ["One."], False)
    assert [part async for part in texts.read("a")] == ["One."] and len(texts) == 0
    with pytest.raises(TextError, match="100000 characters"):
        texts.feed("b", ["x" * 60_000, "y" * 60_000], False)


async def test_a_text_that_is_over_takes_no_more_and_leaves_nothing(make_stitch):
    """Refused, or cut: whoever still writes it is not waited for, and what is written then is nobody's."""
    stitch, _, _ = await make_stitch(delay_s=0.05)
    texts, written = stitch._text_streams, []

    async def writing():
        for k in range(400):
            written.append(k)
            yield f"Sentence {k}."
            await asyncio.sleep(0.05)

    await stitch.close("alice")
    with pytest.raises(ClosedError):
        await summary_of(speak_text_stream(StitchHandle(stitch), SpeakRequest("alice", deliver=False), writing()))
    speaking = asyncio.create_task(summary_of(speak_text_stream(StitchHandle(stitch), SpeakRequest("bob"), writing())))
    await asyncio.sleep(0.8)
    await stitch.interrupt("bob")
    assert (await asyncio.wait_for(speaking, 3))["interrupted"]
    await asyncio.sleep(0.1)
    assert len(texts) == 0 and len(written) < 100
    texts.feed("late", ["One."], False)
    with texts.reserve("late"):
        pass
    texts.feed("late", ["Two."], True)
    assert len(texts) == 0


async def test_texts_that_nobody_ever_speaks_make_room_in_the_end(monkeypatch):
    monkeypatch.setattr(growing, "MAX_STREAMS", 2)
    texts = TextStreams()
    for key in "ab":
        texts.feed(key, ["One."], False)
    with pytest.raises(BusyError):
        texts.feed("c", ["One."], False)
    monkeypatch.setattr(growing, "UNREAD_EXPIRY_S", 0.0)
    with texts.reserve("b"):
        texts.feed("c", ["One."], False)
        assert len(texts) == 2 and "b" in texts._texts


async def test_an_error_of_the_writer_reaches_the_caller_behind_what_was_said(make_stitch):
    stitch, _, _ = await make_stitch()

    async def writing():
        yield "one."
        raise RuntimeError("the model is gone")

    events = speak_text_stream(StitchHandle(stitch), SpeakRequest("alice", deliver=False), writing())
    with pytest.raises(RuntimeError, match="the model is gone"):
        async for _ in events:
            pass
    assert (await stitch.session("alice"))["frames"] > 0
    with pytest.raises(TextError):
        await summary_of(stitch.speak(replace(SpeakRequest("alice"), text="bad")))
