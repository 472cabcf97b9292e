"""The file of a session that was watched live: it keeps what was shown between speech, and the head does not jump."""

import asyncio
import time

import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from models.errors import TextError
from models.stitch.sidecar import read_sidecar, sidecar_path
from tests.support.live import heard, shown
from tests.support.stitch import NO_HOLDS, RATE, Watcher, assert_continuous, read_video, summary_of
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


async def say(stitch, text: str) -> dict:
    return await summary_of(stitch.speak(SpeakRequest("alice", text, deliver=False)))


async def record(make_stitch, pauses_s: list[float], **config) -> tuple[list[int], object, list[dict]]:
    """Greys of the file's frames, its sidecar, and the summaries of utterances with pauses between."""
    stitch, live, _ = await make_stitch(**config)
    watcher = Watcher(await live.view("alice"))
    summaries = []
    for k, pause_s in enumerate([0.1, *pauses_s]):
        await asyncio.sleep(pause_s)
        summaries.append(await say(stitch, f"four {k}"))
    watcher.task.cancel()
    session = stitch._sessions.find("alice")
    _, greys = shown(session.path.read_bytes())
    return greys, read_sidecar(sidecar_path(session.path), session.frames), summaries


async def read_session(stitch) -> tuple[np.ndarray, object, dict]:
    """Edge greys of the frames in the file of `alice`, its sidecar, and the session's facts."""
    session = stitch._sessions.find("alice")
    sidecar = read_sidecar(sidecar_path(session.path), session.frames)
    return np.array(read_video(session.path.read_bytes())[1]), sidecar, await stitch.session("alice")


async def seen_mouths(watcher: Watcher) -> np.ndarray:
    """Mouth brightness of all that a viewer saw, the end of the speech included."""
    await asyncio.sleep(0.5)
    return watcher.seen()[2]


async def until(condition) -> None:
    end_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)


def jumps(indices: np.ndarray) -> list[int]:
    """Frames at which the head is not where it was a frame before, nor next to it."""
    return (np.flatnonzero(np.abs(np.diff(indices)) > 1) + 1).tolist()


# --- pauses between utterances


async def test_a_short_pause_is_in_the_file(make_stitch):
    greys, sidecar, summaries = await record(make_stitch, [0.8])
    indices = np.array(sidecar.avatar_frames)
    assert jumps(indices) == [] and (indices >= 0).all()
    assert len(indices) == len(greys) > sum(s["frames"] for s in summaries) + 10
    edges = np.array(greys)  # a frame's mean, with white speech in its middle
    quiet = np.array(sidecar.mouth) == 0
    assert edges[quiet] == pytest.approx(20 + 4 * indices[quiet], abs=3)
    assert quiet.sum() >= 15
    assert summaries[0]["start_s"] == 0 and sidecar.utterances[1].first_frame == round(summaries[1]["start_s"] * 25)
    assert summaries[1]["start_s"] > summaries[0]["duration_s"] + 0.4


async def test_a_long_pause_is_shortened_without_a_jump(make_stitch):
    _, sidecar, _ = await record(make_stitch, [4.0], recorded_pause_ms=400)
    indices, mouth = np.array(sidecar.avatar_frames), np.array(sidecar.mouth)
    assert np.abs(np.diff(indices)).max() <= 4 and sidecar.known.all()  # of 39
    paused = np.flatnonzero(mouth == 0)
    assert paused.tolist() == list(range(paused[0], paused[-1] + 1))  # one pause
    assert len(paused) <= 6 * 10


async def test_with_recorded_pause_ms_0_the_file_keeps_no_pause(make_stitch):
    greys, sidecar, summaries = await record(make_stitch, [0.8], recorded_pause_ms=0)
    assert len(greys) == sum(s["frames"] for s in summaries)
    assert jumps(np.array(sidecar.avatar_frames)) == [summaries[0]["frames"]]


async def test_a_pause_whose_idle_motion_is_missing_is_omitted_and_speech_goes_on(make_stitch, tmp_path, caplog):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    summaries = [await say(stitch, "four")]
    for path in (tmp_path / "results" / "sessions" / ".idle").iterdir():
        path.unlink()
    await asyncio.sleep(0.6)
    summaries.append(await say(stitch, "five!"))
    watcher.task.cancel()
    assert stitch._sessions.find("alice").frames == sum(summary["frames"] for summary in summaries)
    assert "omits a pause" in caplog.text


async def test_the_return_to_rest_is_kept_also_if_the_next_utterance_fails(make_stitch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.1)
    said = await say(stitch, "four 0")
    with pytest.raises(TextError):
        await say(stitch, "bad")
    await asyncio.sleep(0.6)
    await say(stitch, "four 1")
    watcher.task.cancel()
    session = stitch._sessions.find("alice")
    sidecar = read_sidecar(sidecar_path(session.path), session.frames)
    mouth = np.array(sidecar.mouth)[said["frames"] :]
    fading = mouth[: np.flatnonzero(mouth == 0)[0]]
    assert len(fading) > 0 and 0 < fading[-1] < 1 and (np.diff(fading) < 0).all()
    assert jumps(np.array(sidecar.avatar_frames)) == []


async def test_speech_interrupted_before_its_first_frame_is_not_recorded(make_stitch):
    stitch, live, stages = await make_stitch(recorded_pause_ms=8000)
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.1)
    first = await say(stitch, "four 0")
    stitch._live.pace.first_s = 1.2
    rendered = len(stages.rendered)
    interrupted = asyncio.create_task(say(stitch, "never shown"))
    await until(lambda: len(stages.rendered) >= rendered + 3)
    await asyncio.sleep(0.1)
    assert (await stitch.interrupt("alice"))["interrupted"] == 1
    summary = await interrupted
    assert summary["interrupted"] and (summary["frames"], summary["duration_s"]) == (0, 0.0)
    assert summary["live"]["shown_frames"] == 0 and summary["rtf"] > 0
    stitch._live.pace.first_s = 0.35
    last = await say(stitch, "four 1")
    mouths = await seen_mouths(watcher)
    edges, sidecar, facts = await read_session(stitch)
    assert [line["text"] for line in facts["utterances"]] == ["four 0", "four 1"]
    assert [said.text for said in sidecar.utterances] == ["four 0", "four 1"]
    # the file is what the viewer saw from the first word to the last, without holds
    assert (mouths > 240).sum() == (np.array(sidecar.mouth) == 1).sum() == first["frames"] + last["frames"]
    assert_continuous(edges, NO_HOLDS)
    assert last["start_s"] + last["duration_s"] == pytest.approx(len(edges) / 25, abs=1e-3)
    assert first["frames"] + last["frames"] < len(edges)


# --- pauses inside one utterance


def sentences(stitch) -> tuple:
    lines = stitch._sessions.find("alice").transcript()
    return lines[0].sentences if lines else ()


async def say_in_parts(stitch, texts: list[str], waits_s: list[float]) -> dict:
    """The summary of a text stream. Each part is sent some time after the part before it started to sound."""
    request = SpeakRequest("alice", text_stream_key="key", deliver=False)
    saying = asyncio.create_task(summary_of(stitch.speak(request)))
    for k, text in enumerate(texts):
        if k:
            await until(lambda heard=k: len(sentences(stitch)) == heard)
            await asyncio.sleep(waits_s[k - 1])
        await stitch.feed("alice", "key", [text], k == len(texts) - 1)
    return await saying


async def test_pauses_between_sentences_of_a_text_stream_are_in_the_file(make_stitch):
    stitch, live, _ = await make_stitch(recorded_pause_ms=8000)
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.1)
    summary = await say_in_parts(stitch, ["one 1", "two 22", "three 3"], [1.2, 1.5])
    mouths = await seen_mouths(watcher)
    edges, sidecar, facts = await read_session(stitch)
    mouth = np.array(sidecar.mouth)
    assert_continuous(edges, NO_HOLDS)  # the file keeps no holds
    assert (mouths > 240).sum() == (mouth == 1).sum() == summary["live"]["shown_frames"]
    assert jumps(np.array(sidecar.avatar_frames)) == [] and sidecar.known.all()
    # pictures, sidecar and sound agree on where it speaks
    pictures = np.array(read_video(stitch._sessions.find("alice").path.read_bytes())[2]) > 240
    assert pictures.tolist() == (mouth == 1).tolist()
    starts = np.flatnonzero(np.diff([0, *(mouth == 1)]) == 1)
    ends = np.flatnonzero(np.diff([*(mouth == 1), 0]) == -1) + 1
    assert len(starts) == 3
    _, samples = heard(stitch._sessions.find("alice").path.read_bytes())
    loud_s = np.flatnonzero(np.abs(samples) > 0.05) / RATE
    (line,) = facts["utterances"]
    assert line["text"] == "one 1 two 22 three 3"
    for start, end, sentence in zip(starts, ends, line["sentences"], strict=True):
        sounding = loud_s[(loud_s >= start / 25 - 0.02) & (loud_s <= end / 25 + 0.02)]
        assert sounding[0] == pytest.approx(start / 25 + 0.1, abs=0.01)  # after 0.1 s of silence
        assert (sentence["start_s"], sentence["end_s"]) == pytest.approx((sounding[0], sounding[-1]), abs=0.01)
    assert summary["frames"] == facts["frames"] == len(edges) > summary["live"]["shown_frames"] + 20
    assert line["end_s"] - line["start_s"] == pytest.approx(summary["duration_s"], abs=1e-3)


async def test_a_long_pause_inside_an_utterance_is_shortened_with_the_mouth_at_rest(make_stitch):
    stitch, live, _ = await make_stitch(recorded_pause_ms=400)
    Watcher(await live.view("alice"))
    summary = await say_in_parts(stitch, ["one 1", "two 22"], [4.0])
    edges, sidecar, facts = await read_session(stitch)
    assert np.abs(np.diff(sidecar.avatar_frames)).max() <= 4 and np.abs(np.diff(edges)).max() <= 4 * 4 + 2.5
    paused = np.flatnonzero(np.array(sidecar.mouth) == 0)
    assert paused.tolist() == list(range(paused[0], paused[-1] + 1))
    assert 8 <= len(paused) <= 6 * 10
    assert summary["frames"] == facts["frames"] < summary["live"]["shown_frames"] + 6 * 10 + 5


async def test_the_caller_of_a_text_stream_gets_the_pauses_inside_it(make_stitch):
    stitch, live, _ = await make_stitch(recorded_pause_ms=8000)
    Watcher(await live.view("alice"))

    async def feed() -> None:
        await stitch.feed("alice", "key", ["one 1"], False)
        await asyncio.sleep(1.5)
        await stitch.feed("alice", "key", ["two 22"], True)

    feeding = asyncio.create_task(feed())
    data, frames, summary = b"", 0, None
    async for event in stitch.speak(SpeakRequest("alice", text_stream_key="key")):
        data, frames, summary = data + event.data, frames + event.frames, event.summary
    await feeding
    times, edges, _ = read_video(data)
    assert frames == len(times) == summary["frames"] > summary["live"]["shown_frames"] + 20
    np.testing.assert_allclose(np.diff(times), 0.04, atol=1e-4)
    assert edges == pytest.approx((await read_session(stitch))[0], abs=1.5)


async def test_speech_interrupted_after_a_pause_inside_it_is_recorded_as_shown(make_stitch):
    stitch, live, _ = await make_stitch(recorded_pause_ms=8000)
    watcher = Watcher(await live.view("alice"))
    saying = asyncio.create_task(say_in_parts(stitch, ["one 1", "x" * 60], [1.4]))
    await until(lambda: stitch._sessions.find("alice").frames > 60)
    await stitch.interrupt("alice")
    summary = await saying
    edges, sidecar, facts = await read_session(stitch)
    spoken = np.flatnonzero(await seen_mouths(watcher) > 240)
    assert summary["live"]["shown_frames"] == len(spoken) == (np.array(sidecar.mouth) == 1).sum()
    assert summary["frames"] == facts["frames"] == len(edges) > len(spoken) + 10
    assert_continuous(edges, NO_HOLDS)
    (line,) = facts["utterances"]
    assert line["interrupted"] and line["end_s"] == pytest.approx(summary["duration_s"], abs=1e-3)
    assert line["sentences"][-1]["end_s"] == pytest.approx(line["end_s"], abs=1e-3)
