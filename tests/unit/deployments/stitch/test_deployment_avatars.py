"""A removed avatar: its speech and live streams end, and nothing of it stays in memory or on disk."""

import asyncio
from pathlib import Path

import pytest

import deployments.stitch.deployment as module
from deployments.common.messages import SpeakRequest
from deployments.stitch.deployment import Stitch
from deployments.stitch.live import registry
from models.errors import AvatarNotFound, ClosedError, InterruptedSpeech
from tests.support.stitch import Watcher, summary_of, wait_for_frames
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def remove_avatar(monkeypatch) -> None:
    """From now on `ann` is not on disk."""

    def load(self, avatar_id):
        raise AvatarNotFound(f"There is no avatar {avatar_id!r}.", "Prepare it.")

    monkeypatch.setattr(Stitch, "_load_avatar", load)
    monkeypatch.setattr("deployments.stitch.deployment.AvatarStore.exists", lambda self, avatar_id: False)


def idle_files(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "results" / "sessions" / ".idle").glob("*"))


async def test_speech_and_live_streams_of_a_removed_avatar_end_with_the_reason(make_stitch, monkeypatch, tmp_path):
    stitch, live, _ = await make_stitch(delay_s=0.05)
    for name in ("bob", "carol"):
        await stitch.create(name)
    watcher, idler = Watcher(await live.view("alice")), Watcher(await live.view("bob"))
    speaking = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 60, deliver=False))))
    await wait_for_frames(stitch, "alice", 10)
    unwatched = asyncio.create_task(summary_of(stitch.speak(SpeakRequest("carol", "y" * 200, deliver=False))))
    await wait_for_frames(stitch, "carol", 8)
    assert [name.rsplit("-", 2)[0] for name in idle_files(tmp_path)] == ["ann"]
    remove_avatar(monkeypatch)
    assert await stitch.forget_avatar("ann") == ["alice", "bob", "carol"]
    for said, all_of_it in ((speaking, 150), (unwatched, 500)):
        summary = await asyncio.wait_for(said, 5)
        assert summary["interrupted"] and 8 <= summary["frames"] < all_of_it
    await asyncio.wait_for(asyncio.gather(watcher.task, idler.task), 5)
    assert all(b'"reason": "closed"' in one.data or b'"reason":"closed"' in one.data for one in (watcher, idler))
    assert idle_files(tmp_path) == [] and stitch._live.watched() == []
    for asked in (live.view("alice"), summary_of(stitch.speak(SpeakRequest("alice", "four")))):
        with pytest.raises(ClosedError, match="The avatar 'ann' of the session 'alice' was removed"):
            await asked
    assert (await stitch.session("alice"))["frames"] >= 10  # the video stays


async def test_waiting_utterances_of_a_removed_avatar_are_interrupted(make_stitch, monkeypatch):
    stitch, _, stages = await make_stitch(delay_s=0.05)
    said = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest("alice", "x" * 300)))) for _ in range(3)]
    await wait_for_frames(stitch, "alice", 8)
    remove_avatar(monkeypatch)
    assert await stitch.forget_avatar("ann") == ["alice"]
    first, *others = await asyncio.gather(*said, return_exceptions=True)
    assert first["interrupted"] and [type(other) for other in others] == [InterruptedSpeech] * 2
    assert len(stages.spoken) == 1


async def test_other_avatars_are_not_affected(make_stitch, tmp_path):
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    before = idle_files(tmp_path)
    folder = tmp_path / "results" / "sessions" / ".idle"
    (folder / "an-0123456789abcdef-01234567.mp4").write_bytes(b"one")
    (folder / "an-n-0123456789abcdef-01234567.mp4").write_bytes(b"two")
    assert await stitch.forget_avatar("an") == []
    assert idle_files(tmp_path) == sorted([*before, "an-n-0123456789abcdef-01234567.mp4"])
    assert not watcher.task.done() and stitch._live.watched() == ["alice"]
    watcher.task.cancel()


async def test_idle_motion_that_is_being_encoded_is_deleted_too(make_stitch, monkeypatch, tmp_path):
    stitch, live, _ = await make_stitch()
    code = registry._encode_idle
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(show, path):
        loop.call_soon_threadsafe(began.set)
        asyncio.run(asyncio.sleep(0.3))
        code(show, path)

    monkeypatch.setattr(registry, "_encode_idle", slow)
    viewing = asyncio.create_task(live.view("alice"))
    await began.wait()
    remove_avatar(monkeypatch)
    await stitch.forget_avatar("ann")
    with pytest.raises(ClosedError):
        await viewing
    assert idle_files(tmp_path) == []


async def test_a_broadcast_that_is_being_prepared_does_not_show_a_removed_avatar(make_stitch, monkeypatch):
    stitch, live, _ = await make_stitch()
    idle_file, found, release = registry.LiveRegistry._idle_file, asyncio.Event(), asyncio.Event()

    async def late(self, show, folder):
        found.set()
        await release.wait()
        return await idle_file(self, show, folder)

    monkeypatch.setattr(registry.LiveRegistry, "_idle_file", late)
    viewing = asyncio.create_task(live.view("alice"))
    await found.wait()
    remove_avatar(monkeypatch)
    assert await stitch.forget_avatar("ann") == []
    release.set()
    with pytest.raises(ClosedError):
        await viewing
    assert stitch._live.watched() == []


async def test_housekeeping_finds_avatars_that_were_removed_elsewhere(make_stitch, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SURVEY_S", 0.1)
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(0.3)
    assert not watcher.task.done()
    remove_avatar(monkeypatch)
    await asyncio.wait_for(watcher.task, 5)
    for _ in range(100):  # the stream ends before the file goes
        await asyncio.sleep(0.02 if idle_files(tmp_path) else 0)
    assert idle_files(tmp_path) == [] and stitch._live.watched() == []
