"""Sessions: closed, limited, expired, continued after a restart, and their avatars."""

import asyncio
import os
import time
from dataclasses import replace

import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from deployments.ingress.live.hubs import Hubs
from deployments.stitch import deployment as module
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.deployment import Stitch
from models.errors import ClosedError, ExistsError, QuotaError, SessionNotFound
from tests.support.stitch import (
    TIMELINE,
    Stages,
    StitchHandle,
    Watcher,
    grey_avatar,
    summary_of,
)
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def with_id(avatar: LoadedAvatar, avatar_id: str) -> LoadedAvatar:
    return replace(avatar, prepared=replace(avatar.prepared, avatar_id=avatar_id))


async def test_a_closed_session_keeps_its_video_and_refuses_speech(make_stitch):
    stitch, live, _ = await make_stitch()
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


async def test_a_session_of_maximum_length_refuses_speech(make_stitch):
    stitch, _, _ = await make_stitch(session_max_minutes=0.01)
    await summary_of(stitch.speak(SpeakRequest("alice", "x" * 10, deliver=False)))
    with pytest.raises(ClosedError, match=r"maximum length of 0\.01 minutes"):
        await summary_of(stitch.speak(SpeakRequest("alice", "more", deliver=False)))


async def test_sessions_and_bytes_are_limited(make_stitch):
    stitch, _, _ = await make_stitch(max_sessions=3)
    await stitch.create("two")
    await stitch.create("three")
    with pytest.raises(QuotaError, match="3 sessions; the limit is"):
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


async def test_sessions_opened_by_concurrent_speech_are_limited_too(make_stitch):
    stitch, _, _ = await make_stitch(max_sessions=4)
    said = [summary_of(stitch.speak(SpeakRequest(f"s{k}", "Hello.", deliver=False))) for k in range(9)]
    answers = await asyncio.gather(*said, return_exceptions=True)
    assert [type(answer) for answer in answers].count(QuotaError) == 6
    assert len(await stitch.sessions()) == 4  # with alice


@pytest.mark.parametrize("end", ["remove", "close", "reset"])
async def test_a_session_that_ends_while_its_broadcast_is_prepared_is_not_shown(make_stitch, monkeypatch, end):
    """Otherwise viewers watch a session that has ended, and never get the reason."""
    stitch, live, _ = await make_stitch()
    coding, made = asyncio.Event(), asyncio.Event()
    plain = stitch._live._idle_file

    async def idle_file(*given):
        path = await plain(*given)
        if not made.is_set():
            coding.set()
            await made.wait()
        return path

    monkeypatch.setattr(stitch._live, "_idle_file", idle_file)
    viewing = asyncio.create_task(live.view("alice"))
    await coding.wait()
    await getattr(stitch, end)("alice")
    made.set()
    if end == "reset":
        await viewing
        assert stitch._live.watched() == ["alice"]
    else:
        with pytest.raises(SessionNotFound if end == "remove" else ClosedError):
            await viewing
        assert stitch._live.watched() == []


async def test_idle_sessions_are_removed_and_watched_ones_kept(make_stitch, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SURVEY_S", 0.1)
    monkeypatch.setattr(module, "SURVEYS_PER_EXPIRY", 1)
    stitch, live, _ = await make_stitch(session_idle_hours=1)
    for name in ("old", "watched"):
        await stitch.create(name)
    viewer = await live.view("watched")
    for name in ("old", "watched"):
        for file in ("index.jsonl", "session.json"):
            os.utime(tmp_path / "results" / "sessions" / name / file, (time.time() - 3700,) * 2)
    (tmp_path / "results" / "sessions" / ".clock").write_text(f"[[{time.time() - 7200}, {time.time()}, 0]]")
    await asyncio.sleep(0.5)
    assert await stitch.sessions() == ["alice", "watched"]
    viewer.close()


async def test_creating_an_existing_session_fails_at_once_even_while_it_speaks(make_stitch):
    stitch, _, _ = await make_stitch(delay_s=0.3)
    speaking = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 40))))
    await asyncio.sleep(0.1)
    asked_s = time.monotonic()
    with pytest.raises(ExistsError):
        await stitch.create("alice")
    assert time.monotonic() - asked_s < 1.0 and not speaking.done()
    speaking.cancel()


async def test_a_session_continues_at_its_position_after_a_restart(make_stitch):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.4)
    await summary_of(stitch.speak(SpeakRequest("alice", "twelve chars", deliver=False)))
    place = stitch._sessions.find("alice").position
    watcher.task.cancel()
    await live.stop()
    again = Stitch(*[Stages()] * 3)
    await again.reconfigure(stitch.config.model_dump())
    after = Hubs(lambda session_id, position: StitchHandle(again).live.remote(session_id, position), lambda: 100)
    facts = await again.session("alice")
    assert (facts["frames"], facts["utterances"][0]["sentences"][0]["text"]) == (33, "twelve chars") and place > 33
    late = Watcher(await after.view("alice"))
    await asyncio.sleep(0.4)
    summary = await summary_of(again.speak(SpeakRequest("alice", "four", deliver=False)))
    _, edges, _ = late.seen()
    assert min(np.abs(edges[:8] - (20.0 + 4 * TIMELINE)[p : p + 8]).max() for p in range(place - 12, place + 4)) < 2.5
    line = (await again.session("alice"))["utterances"][-1]
    assert summary["live"]["shown_frames"] == 13 == pytest.approx((line["end_s"] - line["start_s"]) * 25)
    await after.stop()
    again._housekeeping.cancel()


async def test_viewers_of_an_avatar_that_is_prepared_again_get_a_new_stream(make_stitch, monkeypatch):
    """Its frames may differ: speech between the old idle motion would jump at both ends."""
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await summary_of(stitch.speak(SpeakRequest("alice", "four", deliver=False)))
    assert not watcher.task.done()
    changed = grey_avatar()
    changed = replace(changed, prepared=replace(changed.prepared, version="2"))
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: changed)
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "four", deliver=False)))
    await asyncio.wait_for(watcher.task, 5)
    assert watcher.viewer.ending == "replaced" and "live" not in summary
    again = Watcher(await live.view("alice"))
    summary = await summary_of(stitch.speak(SpeakRequest("alice", "four", deliver=False)))
    assert summary["live"]["shown_frames"] == summary["frames"] and not again.task.done()
    again.task.cancel()


async def test_a_session_speaks_with_the_avatar_it_was_opened_with(make_stitch, monkeypatch):
    """Not with the default one: the page opens a session with the avatar that it shows, and then requests speech."""
    stitch, live, _ = await make_stitch()
    avatars = {name: with_id(grey_avatar(), name) for name in ("presenter", "bob")}
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatars[avatar_id])
    assert (await stitch.create("chat", "bob"))["avatar_id"] == "bob"
    watcher = Watcher(await live.view("chat"))
    for _ in range(2):
        summary = await summary_of(stitch.speak(SpeakRequest("chat", "four", deliver=False)))
        assert summary["avatar_id"] == "bob"
        assert not watcher.task.done()  # the stream was not taken away from who watches
        watcher.task.cancel()
        await stitch.reset("chat")
        watcher = Watcher(await live.view("chat"))
    assert (await stitch.session("chat"))["avatar_id"] == "bob"
    watcher.task.cancel()
    chosen = await summary_of(stitch.speak(SpeakRequest("chat", "four", avatar_id="presenter", deliver=False)))
    assert chosen["avatar_id"] == "presenter"  # one that is still empty may be given another by name
