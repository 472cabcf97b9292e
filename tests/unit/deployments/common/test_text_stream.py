"""Text streams: speech that begins before its text is complete, slow and failing writers, and limits."""

import asyncio
import contextvars
import time
from dataclasses import replace

import numpy as np
import pytest
from ray.serve.exceptions import BackPressureError

from deployments.common import text_stream as module
from deployments.common.messages import SpeakRequest
from deployments.common.text_stream import TextStreams, speak_text_stream
from models.errors import BusyError, ClosedError, IdleError, StageError, TextError
from tests.support.stitch import Method, StitchHandle, Watcher, assert_continuous, summary_of
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

REQUEST = SpeakRequest("alice", deliver=False)


async def writing(*parts: str, pause_s: float = 0.0, written: list[float] | None = None):
    """The parts, one after another; the times at which they are written go into `written`."""
    for part in parts:
        if written is not None:
            written.append(time.time())
        yield part
        await asyncio.sleep(pause_s)


# --- speaking


async def test_a_text_is_spoken_while_it_is_being_written(make_stitch):
    stitch, live, stages = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    written: list[float] = []
    parts = writing("one one.", "two two.", "😀", "three.", pause_s=0.15, written=written)
    events = speak_text_stream(StitchHandle(stitch), REQUEST, parts)
    summary = await summary_of(events)
    await events.aclose()
    await asyncio.sleep(0.4)
    assert [text for _, text in stages.spoken] == ["one one.", "two two.", "three."]
    assert stages.spoken[0][0] < written[1]  # the first part is spoken before the second is written
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert len(speaking) == summary["frames"] and np.all(np.diff(speaking) == 1)  # without a pause
    (utterance,) = (await stitch.session("alice"))["utterances"]
    assert utterance["text"] == "one one. two two. three."
    assert [s["text"] for s in utterance["sentences"]] == ["one one.", "two two.", "three."]
    assert len(stitch._text_streams) == 0


async def test_the_mouth_rests_while_the_writer_pauses(make_stitch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    events = speak_text_stream(StitchHandle(stitch), REQUEST, writing("one.", "two.", pause_s=2.0))
    summary = await summary_of(events)
    await events.aclose()
    await asyncio.sleep(0.4)
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    breaks = np.flatnonzero(np.diff(speaking) > 1)
    assert len(breaks) == 1 and np.diff(speaking)[breaks[0]] > 25
    assert (await stitch.session("alice"))["frames"] == np.ptp(speaking) + 1  # the file has the pause, too


async def test_parts_are_sent_outside_the_context_of_the_callers_request(make_stitch):
    """Ray loses calls in the context of a request that has ended."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    stitch, _, stages = await make_stitch()
    feed, contexts = stitch.feed, []

    async def recorded(*parts):
        contexts.append(request.get())
        await feed(*parts)

    stitch.feed = recorded
    request.set("the caller's")
    for _ in range(2):
        await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, writing("one.", "two.")))
    assert contexts == ["none"] * 6  # two parts and the end, twice
    assert [text for _, text in stages.spoken] == ["one.", "two."] * 2


async def test_an_unreadable_part_is_skipped_with_a_warning_and_the_rest_is_spoken(make_stitch):
    stitch, _, _ = await make_stitch()
    parts = writing("one.", "bad one.", "```\ncode()\n```", "🎉 🎉", "bad two.", "two.")
    summary = await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, parts))
    assert summary["warnings"] == [
        'Skipped "bad one." and 1 more passage: each cannot be spoken (It cannot be spoken).',
        'Skipped "``` code() ```": it is a block of code, which is not spoken.',
        'Skipped "🎉 🎉": it has no letter or digit, so there is nothing to speak.',
    ]
    (utterance,) = (await stitch.session("alice"))["utterances"]
    assert [s["text"] for s in utterance["sentences"]] == ["one.", "two."]
    readable = await summary_of(stitch.speak(replace(REQUEST, text="three.")))
    assert readable["warnings"] == [] and summary["frames"] == 2 * readable["frames"] - 2 * 5
    with pytest.raises(TextError, match="cannot be spoken"):
        await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, writing("bad one.", "🎉", "bad two.")))


async def test_an_error_of_a_silent_writer_comes_at_once_and_what_it_wrote_is_spoken(make_stitch):
    """Also in a session that is watched, where the speech lasts for a while after the error."""
    stitch, live, stages = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    error = IdleError("Nothing was written.", "Write.")

    async def silent():
        yield "a long sentence with many words."
        yield "and another one that is as long."
        raise error

    began_s, seen = time.monotonic(), []
    async for event in speak_text_stream(StitchHandle(stitch), REQUEST, silent()):
        if event.error is not None or event.summary is not None:
            seen.append((time.monotonic() - began_s, event.error, event.summary))
    watcher.seen()
    (at_s, first, _), (ended_s, _, summary) = seen
    assert at_s < 0.1 and first is error
    assert ended_s > 6 and summary["frames"] > 6 * 25 and len(stages.spoken) == 2


async def test_an_error_of_the_writer_is_raised_after_the_parts_before_it(make_stitch):
    stitch, _, _ = await make_stitch()

    async def failing():
        yield "one."
        raise RuntimeError("the model failed")

    events = speak_text_stream(StitchHandle(stitch), REQUEST, failing())
    with pytest.raises(RuntimeError, match="the model failed"):
        async for _ in events:
            pass
    assert (await stitch.session("alice"))["frames"] > 0


async def test_an_error_of_the_writer_replaces_the_error_that_there_is_no_text(make_stitch):
    stitch, _, _ = await make_stitch()

    async def failing():
        raise RuntimeError("the model failed")
        yield ""

    with pytest.raises(RuntimeError, match="the model failed"):
        await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, failing()))
    with pytest.raises(TextError):
        await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, writing("😀")))
    with pytest.raises(TextError):
        await summary_of(stitch.speak(replace(REQUEST, text="bad")))


async def test_refused_or_interrupted_speech_does_not_wait_for_its_writer(make_stitch):
    stitch, _, _ = await make_stitch(delay_s=0.05)
    written: list[float] = []
    parts = [f"Sentence {k}." for k in range(400)]
    await stitch.close("alice")
    with pytest.raises(ClosedError):
        await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, writing(*parts, pause_s=0.05)))
    slow = writing(*parts, pause_s=0.05, written=written)
    speaking = asyncio.create_task(summary_of(speak_text_stream(StitchHandle(stitch), SpeakRequest("bob"), slow)))
    await asyncio.sleep(0.8)
    interrupted_s = time.time()
    await stitch.interrupt("bob")
    assert (await speaking)["interrupted"]
    await asyncio.sleep(1.0)
    assert max(written) <= interrupted_s + module.WRITER_ERROR_WAIT_S + 0.1 and len(written) < len(parts)
    assert len(stitch._text_streams) == 0


class LostStitch:
    """A handle of Stitch whose replica no longer receives text. Its speech ends only when it is cancelled."""

    def __init__(self) -> None:
        self.speak, self.feed = Method(self._speak, lambda events: self), Method(self._feed)
        self.cancelled = asyncio.Event()

    def options(self, **options):
        return self

    def _speak(self, request) -> None:
        pass

    async def _feed(self, *arguments) -> None:
        raise StageError("A stage lost its replica.", "Send the request again.")

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.cancelled.wait()
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled.set()


async def test_speech_whose_text_cannot_be_sent_ends_with_that_error():
    with pytest.raises(StageError, match="lost its replica"):
        [event async for event in speak_text_stream(LostStitch(), REQUEST, writing("one."))]


async def test_the_writer_ends_when_no_replica_takes_the_speech():
    """As in Serve, cancelling such a call raises its error."""
    busy = BackPressureError(num_queued_requests=9, max_queued_requests=9)

    class BusyStitch(LostStitch):
        async def _feed(self, *arguments) -> None:
            return None

        async def __anext__(self):
            await asyncio.sleep(1.0)
            raise busy

        def cancel(self) -> None:
            raise busy

    ended = asyncio.Event()

    async def endless():
        try:
            yield "one."
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(BackPressureError):
        [event async for event in speak_text_stream(BusyStitch(), REQUEST, endless())]
    assert ended.is_set()


async def test_a_caller_that_is_cancelled_while_its_writer_ends_is_cancelled():
    class DoneStitch(LostStitch):
        async def _feed(self, *arguments) -> None:
            return None

        async def __anext__(self):
            raise StopAsyncIteration

    ending = asyncio.Event()

    async def slow_to_end():
        try:
            await asyncio.Event().wait()
            yield ""
        finally:
            ending.set()
            await asyncio.sleep(1.0)

    async def speak() -> None:
        assert [event async for event in speak_text_stream(DoneStitch(), REQUEST, slow_to_end())] == []

    caller = asyncio.create_task(speak())
    await ending.wait()
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()


# --- text streams by themselves


async def test_a_text_whose_writer_is_lost_ends():
    texts = TextStreams()
    texts.feed("a", ["One."], False)
    began_s = time.monotonic()
    assert [part async for part in texts.read("a")] == ["One."] and len(texts) == 0
    assert time.monotonic() - began_s == pytest.approx(module.LOST_WRITER_S)


async def test_speech_that_loses_its_writer_ends_with_an_error_for_a_writer_that_goes_on(make_stitch, monkeypatch):
    monkeypatch.setattr(module, "LOST_WRITER_S", 0.5 * module.FEED_INTERVAL_S)
    stitch, _, stages = await make_stitch()
    with pytest.raises(StageError, match="ended before its text"):
        [
            event
            async for event in speak_text_stream(StitchHandle(stitch), REQUEST, writing("one.", "two.", pause_s=60.0))
        ]
    assert [text for _, text in stages.spoken] == ["one."]


async def test_a_slow_writer_reports_that_it_is_there_so_its_text_does_not_end(make_stitch):
    stitch, _, stages = await make_stitch()
    parts = writing("one.", "two.", pause_s=10 * module.LOST_WRITER_S)
    await summary_of(speak_text_stream(StitchHandle(stitch), REQUEST, parts))
    assert [text for _, text in stages.spoken] == ["one.", "two."]


async def test_a_reader_that_is_cancelled_when_a_part_arrives_is_cancelled():
    """The cancellation of a client that has left must not be lost."""
    for steps in range(5):  # event loop steps between the part and the cancellation
        texts, parts = TextStreams(), []

        async def read(texts=texts, parts=parts) -> None:
            async for part in texts.read("a"):
                parts.append(part)

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        texts.feed("a", ["One."], False)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        assert task.cancelled() and len(texts) == 0


async def test_a_text_over_the_limit_is_refused():
    texts = TextStreams()
    with pytest.raises(TextError, match=f"{module.MAX_CHARS} characters"):
        texts.feed("b", ["x" * 60_000, "y" * 60_000], False)


async def test_text_for_an_ended_stream_is_dropped():
    texts = TextStreams()
    texts.feed("late", ["One."], False)
    with texts.reserve("late"):
        pass
    texts.feed("late", ["Two."], True)
    assert len(texts) == 0


async def test_streams_that_no_request_reads_make_room_after_a_while(monkeypatch):
    monkeypatch.setattr(module, "MAX_STREAMS", 2)
    texts = TextStreams()
    for key in "ab":
        texts.feed(key, ["One."], False)
    with pytest.raises(BusyError):
        texts.feed("c", ["One."], False)
    await asyncio.sleep(module.UNREAD_EXPIRY_S + 1)
    with texts.reserve("b"):
        texts.feed("c", ["One."], False)
        assert len(texts) == 2 and "b" in texts._texts
