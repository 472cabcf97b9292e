"""The file of a session that was watched live: what was shown between utterances is in it, and nothing leaps."""

import asyncio

import numpy as np
import pytest

from deployments.requests import SpeakRequest
from models.errors import TextError
from models.stitch.sidecar import read_sidecar, sidecar_path
from tests.unit.air_material import Watcher, summary_of
from tests.unit.live_material import shown


async def recorded(air, pauses_s: list[float], **config) -> tuple[list[int], object, list[dict]]:
    """Greys of the file's frames, its sidecar, and the summaries of utterances with pauses between."""
    stitch, live, _ = await air(**config)
    watcher = Watcher(await live.view("alice"))
    summaries = []
    for k, pause_s in enumerate([0.1, *pauses_s]):
        await asyncio.sleep(pause_s)
        summaries.append(await summary_of(stitch.speak(SpeakRequest("alice", f"four {k}", deliver=False))))
    watcher.task.cancel()
    session = stitch._sessions.find("alice")
    _, greys = shown(session.path.read_bytes())
    return greys, read_sidecar(sidecar_path(session.path), session.frames), summaries


def leaps(indices: np.ndarray) -> list[int]:
    """Frames before which the head is elsewhere than a frame later."""
    return (np.flatnonzero(np.abs(np.diff(indices)) > 1) + 1).tolist()


async def test_a_short_pause_is_in_the_file_and_nothing_leaps(air):
    greys, sidecar, summaries = await recorded(air, [0.8])
    indices = np.array(sidecar.avatar_frames)
    assert leaps(indices) == [] and (indices >= 0).all()
    assert len(indices) == len(greys) > sum(s["frames"] for s in summaries) + 10
    edges = np.array(greys)  # a frame's mean, with white speech in its middle
    quiet = np.array(sidecar.mouth) == 0
    assert edges[quiet] == pytest.approx(20 + 4 * indices[quiet], abs=3)
    assert quiet.sum() >= 15
    assert summaries[0]["start_s"] == 0 and sidecar.said[1].first_frame == round(summaries[1]["start_s"] * 25)
    assert summaries[1]["start_s"] > summaries[0]["duration_s"] + 0.4


async def test_a_long_pause_is_shortened_with_the_mouth_at_rest_on_both_sides(air):
    _, sidecar, _ = await recorded(air, [2.0], recorded_pause_ms=400)
    indices, mouth = np.array(sidecar.avatar_frames), np.array(sidecar.mouth)
    (cut,) = leaps(indices)
    assert (mouth[cut - 3 : cut + 3] == 0).all()


async def test_pauses_are_left_out_where_the_config_says_so(air):
    greys, sidecar, summaries = await recorded(air, [0.8], recorded_pause_ms=0)
    assert len(greys) == sum(s["frames"] for s in summaries)
    assert leaps(np.array(sidecar.avatar_frames)) == [summaries[0]["frames"]]


async def test_speech_does_not_need_the_idle_motion_that_is_gone(air, tmp_path, caplog):
    stitch, live, _ = await air()
    watcher = Watcher(await live.view("alice"))
    said = [await summary_of(stitch.speak(SpeakRequest("alice", "four", deliver=False)))]
    for path in (tmp_path / "results" / "sessions" / ".idle").iterdir():
        path.unlink()
    await asyncio.sleep(0.6)
    said.append(await summary_of(stitch.speak(SpeakRequest("alice", "five!", deliver=False))))
    watcher.task.cancel()
    assert stitch._sessions.find("alice").frames == sum(summary["frames"] for summary in said)
    assert "is left out" in caplog.text


async def test_an_utterance_that_fails_does_not_take_the_mouths_way_to_rest_along(air):
    stitch, live, _ = await air()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.1)
    said = await summary_of(stitch.speak(SpeakRequest("alice", "four 0", deliver=False)))
    with pytest.raises(TextError):
        await summary_of(stitch.speak(SpeakRequest("alice", "bad", deliver=False)))
    await asyncio.sleep(0.6)
    await summary_of(stitch.speak(SpeakRequest("alice", "four 1", deliver=False)))
    watcher.task.cancel()
    session = stitch._sessions.find("alice")
    sidecar = read_sidecar(sidecar_path(session.path), session.frames)
    mouth = np.array(sidecar.mouth)[said["frames"] :]
    eased = mouth[: np.flatnonzero(mouth == 0)[0]]
    assert len(eased) > 0 and 0 < eased[-1] < 1 and (np.diff(eased) < 0).all()
    assert leaps(np.array(sidecar.avatar_frames)) == []
