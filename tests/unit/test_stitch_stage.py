"""Stitch on fake stages, watched through a hub, without Ray: what a viewer sees of speech, and of its end."""

import asyncio
import contextvars
import io
import os
import time
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest

from deployments import growing
from deployments import live as hubs
from deployments import stitch as module
from deployments.growing import GrowingTexts, speak_growing
from deployments.live import Live
from deployments.requests import SpeakRequest
from deployments.stage import StageTiming, Stamped
from deployments.stitch import Stitch
from deployments.utterance import LoadedAvatar
from models.avatar.playback import ping_pong
from models.errors import BusyError, ClosedError, ExistsError, InterruptedSpeech, QuotaError, SessionNotFound, TextError
from models.stitch.paste import PasteMemory, Paster
from models.types import FaceCrops, FeatureWindows, PreparedAvatar, Speech

SIDE, COUNT, RATE = 64, 40, 24_000
LINE = ping_pong(0, 4000, COUNT)


def ann() -> LoadedAvatar:
    """40 frames of one grey each, 20 … 176, told apart at the edge; speech shows as white in the middle."""
    frames = np.stack([np.full((SIDE, SIDE, 3), 20 + 4 * k, np.uint8) for k in range(COUNT)])
    masks = np.zeros((COUNT, 256, 256), np.uint8)
    masks[:, 64:192, 64:192] = 255
    transforms = np.tile(np.float32([[4, 0, 1.5], [0, 4, 1.5]]), (COUNT, 1, 1))
    points = np.zeros((COUNT, 68, 2), np.float32)
    prepared = PreparedAvatar(
        "ann", "1", 25, SIDE, SIDE, transforms, points, masks, np.ones(COUNT, bool), frames=frames
    )
    return LoadedAvatar(prepared, Paster(prepared))


def stamp(stage: str, frames: int) -> StageTiming:
    return StageTiming(stage, frames, time.time(), time.time(), 0.0, 0.0, 0.0)


class Response:
    def __init__(self, work) -> None:
        self.task = asyncio.ensure_future(work)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def __await__(self):
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.task.cancel()


class Stream:
    def __init__(self, generator) -> None:
        self.generator = generator

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.generator)

    def cancel(self) -> None:
        pass


class Method:
    def __init__(self, function, wrap=Response) -> None:
        self.function, self.wrap = function, wrap

    def remote(self, *arguments):
        return self.wrap(self.function(*arguments))


class Stages:
    """TTS: a tone of 0.1 s a character after 0.1 s of silence. LipSync: white faces after `delay_s` a chunk."""

    def __init__(self, delay_s: float = 0.02) -> None:
        self.delay_s, self.rendered = delay_s, []
        self.spoken: list[tuple[float, str]] = []
        self.speak = Method(self._speak, Stream)
        self.windows, self.generate = Method(self._windows), Method(self._generate)

    def options(self, **options):
        return self

    async def _speak(self, text, voice, speed):
        self.spoken.append((time.time(), text))
        if "bad" in text:
            raise TextError("It cannot be spoken.", "Say something else.")
        samples = 0.5 * np.sin(np.arange(round(0.1 * len(text) * RATE)) / 10).astype(np.float32)
        samples = np.concatenate([np.zeros(RATE // 10, np.float32), samples])
        yield Stamped(Speech(samples, RATE, text, last=True), (stamp("TTS", 0),))

    async def _windows(self, speech, fps):
        count = round(speech.duration_s * fps)
        return Stamped(FeatureWindows(np.zeros((count, 50, 384), np.float16), fps), (stamp("AudioFeatures", count),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, due_s, session_id, version):
        await features
        await asyncio.sleep(self.delay_s)
        self.rendered.append((time.time(), position, count))
        images = np.full((count, 256, 256, 3), 250, np.uint8)
        return Stamped(FaceCrops(images, first_frame, avatar_id), (stamp("LipSync", count),))


class Direct:
    """Stitch as the handle that the ingress has."""

    def __init__(self, stitch: Stitch) -> None:
        self.speak, self.live = Method(stitch.speak, Stream), Method(stitch.live, Stream)
        self.feed = Method(stitch.feed)

    def options(self, **options):
        return self


@pytest.fixture
async def air(monkeypatch, tmp_path):
    """make(**config) → (stitch, live, stages): a session `alice` is open."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(hubs, "GRACE_S", 2.0)  # Stitch, hub and viewers share one busy event loop here
    avatar, made = ann(), []
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatar)

    async def make(delay_s: float = 0.02, **config):
        stages = Stages(delay_s)
        stitch = Stitch(stages, stages, stages)
        await stitch.reconfigure({"crf": 8, "steady_crops": False, "rest_mouth": "generated", **config})
        live = Live(lambda session_id, position: Direct(stitch).live.remote(session_id, position), lambda: 100)
        await stitch.create("alice")
        made.append((stitch, live))
        return stitch, live, stages

    yield make
    for stitch, live in made:
        await live.stop()
        stitch._keeper.cancel()


async def test_the_first_config_and_every_later_one_says_how_the_default_avatar_is_pasted(monkeypatch, tmp_path):
    """It is loaded while its config is applied: the paster must be of that config, not of the one before."""
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
    stitch._keeper.cancel()


class Watcher:
    """Receives a viewer's stream until it is stopped."""

    def __init__(self, viewer) -> None:
        self.viewer, self.data = viewer, b""
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for part in self.viewer:
            self.data += part

    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times, the line's grey at the edge, the mouth's brightness in the middle."""
        self.task.cancel()
        times, edges, mouths = [], [], []
        with av.open(io.BytesIO(self.data)) as file:
            for frame in file.decode(video=0):
                image = frame.to_ndarray(format="rgb24")
                times.append(float(frame.time))
                edges.append(float(image[:6].mean()))
                mouths.append(float(image[28:36, 28:36].mean()))
        return np.array(times), np.array(edges), np.array(mouths)

    def loud(self) -> np.ndarray:
        """Times of the first and the last loud sample."""
        with av.open(io.BytesIO(self.data)) as file:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        return np.flatnonzero(np.abs(samples) > 0.1)[[0, -1]] / RATE


def on_the_line(edges: np.ndarray, summary: dict | None = None) -> None:
    """The frames follow on each other without a repeated or a missing one; where the head had to wait, as a summary
    (or none) says that it may have, they go on where it waited."""
    expected = 20.0 + 4 * LINE
    if summary is not None and not summary["live"]["holds"]:
        errors = [np.abs(edges - expected[p : p + len(edges)]).max() for p in range(600)]
        assert min(errors) < 2.5, f"off the line by {min(errors):.1f} levels"
    moved = [edges[0], *(b for a, b in pairwise(edges) if abs(a - b) > 1.5)]
    line = [expected[0], *(b for a, b in pairwise(expected) if a != b)]
    assert any(np.allclose(moved, line[p : p + len(moved)], atol=2.5) for p in range(300)), "it leaps"


async def summary_of(events) -> dict:
    async for event in events:
        if event.summary is not None:
            return event.summary
    raise AssertionError("no summary")


# --- speech on air


async def test_speech_is_shown_between_idle_motion_on_one_unbroken_line(air):
    stitch, live, _ = await air()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.5)
    asked_s = time.time()
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False)))
    shown_s = time.time() - asked_s
    await asyncio.sleep(0.7)
    times, edges, mouths = watcher.seen()
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)
    on_the_line(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert len(speaking) == summary["frames"] == 33 and np.all(np.diff(speaking) == 1)
    assert mouths[speaking[-1] + 1] > mouths[speaking[-1] + 2]  # it fades back
    np.testing.assert_allclose(mouths[speaking[-1] + 6 :], edges[speaking[-1] + 6 :], atol=3)
    first, last = watcher.loud()
    assert first == pytest.approx(times[speaking[0]] + 0.1, abs=0.025)
    assert last == pytest.approx(times[speaking[-1]], abs=0.07)
    assert summary["live"]["shown_frames"] == 33 and not summary["interrupted"]
    assert 33 / 25 < shown_s < 33 / 25 + 1.0  # it was not made only, but shown
    facts = await stitch.session("alice")
    assert (facts["frames"], facts["utterances"][0]["sentences"][0]["text"]) == (33, "twelve chars")


async def test_a_slow_machine_makes_the_head_wait_and_loses_no_frame(air):
    stitch, live, stages = await air()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.2)
    stages.delay_s = 1.2  # of the first chunk, which was expected after a third of that
    task = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False))))
    await asyncio.sleep(0.3)
    stages.delay_s = 0.02
    summary = await task
    await asyncio.sleep(0.3)
    times, edges, mouths = watcher.seen()
    np.testing.assert_allclose(times, np.arange(len(times)) / 25, atol=1e-4)
    assert summary["live"]["holds"] >= 1 and np.sum(mouths > 240) == 33
    on_the_line(edges, summary)


async def test_a_text_is_spoken_while_it_is_still_being_written(air):
    stitch, live, stages = await air()
    watcher = Watcher(await live.view("alice"))
    came = []

    async def writing():
        for part in ("one one.", "two two.", "😀", "three."):
            came.append(time.time())
            yield part
            await asyncio.sleep(0.15)

    events = speak_growing(Direct(stitch), SpeakRequest("alice", deliver=False), writing())
    summary = await summary_of(events)
    await events.aclose()
    await asyncio.sleep(0.4)
    assert [text for _, text in stages.spoken] == ["one one.", "two two.", "three."]
    assert stages.spoken[0][0] < came[1]  # the first was spoken before the second was there
    _, edges, mouths = watcher.seen()
    on_the_line(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert len(speaking) == summary["frames"] and np.all(np.diff(speaking) == 1)  # no pause between them
    (line,) = (await stitch.session("alice"))["utterances"]
    assert line["text"] == "one one. two two. three."
    assert [s["text"] for s in line["sentences"]] == ["one one.", "two two.", "three."]
    assert len(stitch._growing) == 0


async def test_parts_are_sent_outside_the_request_that_began_them(air):
    """A call in the context of a request that has ended may be lost."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    stitch, _, stages = await air()
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
        await summary_of(speak_growing(Direct(stitch), SpeakRequest("alice", deliver=False), writing()))
    assert called_in == ["none"] * 6  # two parts and the end, twice
    assert [text for _, text in stages.spoken] == ["one.", "two."] * 2


async def test_a_writer_that_pauses_is_waited_for_with_the_mouth_at_rest(air):
    stitch, live, _ = await air()
    watcher = Watcher(await live.view("alice"))

    async def writing():
        yield "one."
        await asyncio.sleep(2.0)
        yield "two."

    events = speak_growing(Direct(stitch), SpeakRequest("alice", deliver=False), writing())
    summary = await summary_of(events)
    await events.aclose()
    await asyncio.sleep(0.4)
    _, edges, mouths = watcher.seen()
    on_the_line(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    breaks = np.flatnonzero(np.diff(speaking) > 1)
    assert len(breaks) == 1 and np.diff(speaking)[breaks[0]] > 25
    assert (await stitch.session("alice"))["frames"] == len(speaking)


async def test_without_a_viewer_speech_is_made_as_fast_as_it_can_be(air):
    stitch, _, _ = await air()
    began_s = time.time()
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False)))
    assert time.time() - began_s < 0.9 and summary["frames"] == 33 and "live" not in summary


# --- interruption


async def test_an_interruption_ends_speech_for_viewers_file_and_stages(air):
    stitch, live, stages = await air(delay_s=0.1)
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    waiting = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "never said", deliver=False))))
    await asyncio.sleep(2.0)
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
    on_the_line(edges, summary)
    speaking = np.flatnonzero(mouths > 240)
    assert (speaking[-1] + 1 - before) / 25 < 0.3  # of stream time
    assert summary["interrupted"] and summary["live"]["shown_frames"] == len(speaking)
    facts = await stitch.session("alice")
    (line,) = facts["utterances"]
    assert facts["frames"] == len(speaking) and line["interrupted"]
    assert line["end_s"] == pytest.approx(len(speaking) / 25, abs=1e-3)
    with av.open(facts["video_path"]) as file:
        assert sum(1 for _ in file.decode(video=0)) == len(speaking)


async def test_what_is_not_watched_can_be_interrupted_too(air):
    stitch, _, stages = await air(delay_s=0.3)
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    while len(stages.rendered) < 6:
        await asyncio.sleep(0.02)
    await stitch.interrupt("alice")
    summary = await said
    facts = await stitch.session("alice")
    assert summary["interrupted"] and 0 < facts["frames"] < 150 and facts["utterances"][0]["interrupted"]
    assert (await stitch.interrupt("alice"))["interrupted"] == 0


async def test_a_caller_that_goes_takes_its_speech_along(air):
    stitch, live, stages = await air(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    said = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    await asyncio.sleep(1.5)
    said.cancel()
    await asyncio.sleep(0.8)
    calls = len(stages.rendered)
    await asyncio.sleep(0.4)
    assert len(stages.rendered) == calls
    _, edges, mouths = watcher.seen()
    on_the_line(edges)
    assert 0 < np.sum(mouths > 240) < 40 and mouths[-1] < 200
    assert (await stitch.session("alice"))["utterances"][0]["interrupted"]


async def test_two_sessions_at_once_do_not_mix(air):
    stitch, live, _ = await air()
    await stitch.create("bob")
    watchers = {name: Watcher(await live.view(name)) for name in ("alice", "bob")}
    texts = {"alice": "five5", "bob": "ten chars."}
    requests = [summary_of(stitch.speak(SpeakRequest(name, text, deliver=False))) for name, text in texts.items()]
    await asyncio.gather(*requests)
    await asyncio.sleep(0.4)
    for name, text in texts.items():
        _, edges, mouths = watchers[name].seen()
        on_the_line(edges)
        assert np.sum(mouths > 240) == round((0.1 + 0.1 * len(text)) * 25)
        assert [line["text"] for line in (await stitch.session(name))["utterances"]] == [text]


# --- a session's life


async def test_a_closed_session_stays_to_be_seen_and_says_nothing_more(air):
    stitch, live, _ = await air()
    await summary_of(stitch.speak(SpeakRequest("alice", "four", deliver=False)))
    watcher = Watcher(await live.view("alice"))
    facts = await stitch.close("alice")
    assert facts["closed"] and facts["frames"] > 0
    with pytest.raises(ClosedError, match="is closed"):
        await summary_of(stitch.speak(SpeakRequest("alice", "more", deliver=False)))
    await asyncio.wait_for(watcher.task, 5)  # its live stream ends
    assert (await stitch.close("alice"))["closed"]
    await stitch.reset("alice")
    assert (await summary_of(stitch.speak(SpeakRequest("alice", "more", deliver=False))))["frames"] > 0
    with pytest.raises(SessionNotFound):
        await stitch.close("nobody")


async def test_a_session_gets_no_longer_than_its_limit(air):
    stitch, _, _ = await air(session_max_minutes=0.01)
    await summary_of(stitch.speak(SpeakRequest("alice", "x" * 10, deliver=False)))
    with pytest.raises(ClosedError, match=r"0\.01 minutes long"):
        await summary_of(stitch.speak(SpeakRequest("alice", "more", deliver=False)))


async def test_there_is_a_most_of_sessions_and_of_bytes(air):
    stitch, _, _ = await air(max_sessions=3)
    await stitch.create("two")
    await stitch.create("three")
    with pytest.raises(QuotaError, match="3 sessions already"):
        await stitch.create("four")
    with pytest.raises(QuotaError):
        await summary_of(stitch.speak(SpeakRequest("five", "Hello.", deliver=False)))
    await summary_of(stitch.speak(SpeakRequest("two", "Hello.", deliver=False)))
    with pytest.raises(ExistsError):
        await stitch.create("two")
    small = stitch.config.model_dump() | {"max_sessions_gb": 1e-6}
    await stitch.reconfigure(small)
    with pytest.raises(QuotaError, match="GB"):
        await summary_of(stitch.speak(SpeakRequest("two", "Hello.", deliver=False)))


async def test_sessions_in_which_nothing_is_said_for_long_are_removed(air, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SURVEY_S", 0.1)
    monkeypatch.setattr(module, "SURVEYS_AN_EXPIRY", 1)
    stitch, live, _ = await air(session_idle_hours=1)
    for name in ("old", "watched"):
        await stitch.create(name)
    viewer = await live.view("watched")
    for name in ("old", "watched"):
        os.utime(tmp_path / "results" / "sessions" / name / "index.jsonl", (time.time() - 3700,) * 2)
    await asyncio.sleep(0.5)
    assert await stitch.sessions() == ["alice", "watched"]
    viewer.close()


# --- growing texts


async def test_a_silent_writer_is_given_up_and_a_long_text_refused():
    texts = GrowingTexts(pause_s=0.05)
    texts.feed("a", ["One."], False)
    assert [part async for part in texts.read("a")] == ["One."] and len(texts) == 0
    with pytest.raises(TextError, match="100000 characters"):
        texts.feed("b", ["x" * 60_000, "y" * 60_000], False)


async def test_a_text_that_is_over_takes_no_more_and_leaves_nothing(air):
    """Refused, or cut: whoever still writes it is not waited for, and what is written then is nobody's."""
    stitch, _, _ = await air(delay_s=0.05)
    texts, written = stitch._growing, []

    async def writing():
        for k in range(400):
            written.append(k)
            yield f"Sentence {k}."
            await asyncio.sleep(0.05)

    await stitch.close("alice")
    with pytest.raises(ClosedError):
        await summary_of(speak_growing(Direct(stitch), SpeakRequest("alice", deliver=False), writing()))
    speaking = asyncio.create_task(summary_of(speak_growing(Direct(stitch), SpeakRequest("bob"), writing())))
    await asyncio.sleep(0.8)
    await stitch.interrupt("bob")
    assert (await asyncio.wait_for(speaking, 3))["interrupted"]
    await asyncio.sleep(0.1)
    assert len(texts) == 0 and len(written) < 100
    texts.feed("late", ["One."], False)
    with texts.spoken("late"):
        pass
    texts.feed("late", ["Two."], True)
    assert len(texts) == 0


async def test_texts_that_nobody_ever_speaks_make_room_in_the_end(monkeypatch):
    monkeypatch.setattr(growing, "MAX_TEXTS", 2)
    texts = GrowingTexts()
    for key in "ab":
        texts.feed(key, ["One."], False)
    with pytest.raises(BusyError):
        texts.feed("c", ["One."], False)
    monkeypatch.setattr(growing, "UNREAD_S", 0.0)
    with texts.spoken("b"):
        texts.feed("c", ["One."], False)
        assert len(texts) == 2 and "b" in texts._texts


async def test_a_session_that_is_deleted_falls_silent_first(air):
    stitch, live, _ = await air(delay_s=0.05)
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


async def test_a_session_that_is_there_is_told_at_once_even_while_it_speaks(air):
    stitch, _, _ = await air(delay_s=0.3)
    speaking = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 40))))
    await asyncio.sleep(0.1)
    asked_s = time.monotonic()
    with pytest.raises(ExistsError):
        await stitch.create("alice")
    assert time.monotonic() - asked_s < 1.0 and not speaking.done()
    speaking.cancel()


async def test_an_error_of_the_writer_reaches_the_caller_behind_what_was_said(air):
    stitch, _, _ = await air()

    async def writing():
        yield "one."
        raise RuntimeError("the model is gone")

    events = speak_growing(Direct(stitch), SpeakRequest("alice", deliver=False), writing())
    with pytest.raises(RuntimeError, match="the model is gone"):
        async for _ in events:
            pass
    assert (await stitch.session("alice"))["frames"] > 0
    with pytest.raises(TextError):
        await summary_of(stitch.speak(replace(SpeakRequest("alice"), text="bad")))


async def test_there_is_a_most_of_utterances_and_of_those_that_wait(air):
    stitch, _, _ = await air(delay_s=0.2, max_utterances=1, max_waiting=1)
    running = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest(name, "words")))) for name in ("a", "b")]
    await asyncio.sleep(0.05)
    with pytest.raises(BusyError):
        await summary_of(stitch.speak(SpeakRequest("c", "words")))
    assert [summary["frames"] > 0 for summary in await asyncio.gather(*running)] == [True, True]
    assert (await summary_of(stitch.speak(SpeakRequest("c", "words"))))["frames"] > 0


async def test_a_caller_that_closes_its_stream_leaves_the_session_to_the_next_at_once(air):
    stitch, _, stages = await air(delay_s=0.1)
    events = stitch.speak(SpeakRequest("alice", "x" * 60))
    for _ in range(3):
        await anext(events)
    await events.aclose()
    calls = len(stages.rendered)
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "four")))
    assert summary["frames"] == 13 and len(stages.rendered) - calls == 3
    facts = await stitch.session("alice")
    assert [line["end_s"] is None for line in facts["utterances"]] == [True, False]


async def test_a_session_goes_on_where_it_was_after_the_whole_server_was_restarted(air):
    stitch, live, _ = await air()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.4)
    await summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False)))
    place = stitch._sessions.find("alice").position
    watcher.task.cancel()
    await live.stop()
    again = Stitch(*[Stages()] * 3)
    await again.reconfigure(stitch.config.model_dump())
    after = Live(lambda session_id, position: Direct(again).live.remote(session_id, position), lambda: 100)
    facts = await again.session("alice")
    assert (facts["frames"], facts["utterances"][0]["sentences"][0]["text"]) == (33, "twelve chars") and place > 33
    late = Watcher(await after.view("alice"))
    await asyncio.sleep(0.4)
    summary = await summary_of(again.speak(SpeakRequest("alice", "four", deliver=False)))
    _, edges, _ = late.seen()
    assert min(np.abs(edges[:8] - (20.0 + 4 * LINE)[p : p + 8]).max() for p in range(place - 12, place + 4)) < 2.5
    assert summary["live"]["shown_frames"] == 13 and (await again.session("alice"))["frames"] == 46
    await after.stop()
    again._keeper.cancel()
