"""A full disk: speech, live views, uploads, transcriptions, avatars and downloads are 507, and go on later."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from deployments.avatars import Avatars
from deployments.common.messages import SpeakRequest
from deployments.ingress.session_views import export_download
from models.errors import AudioError, DiskFullError, InputError
from models.speech.audio import encode_audio
from tests.support import small_disk
from tests.support.avatar import astronaut, fake_encoder, write_clip
from tests.support.small_disk import Disk, MountedDisk
from tests.support.stitch import Watcher, read_video, summary_of, wait_for_frames
from tests.support.uploads import stored
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

disk, mounted_disk = small_disk.disk, small_disk.mounted_disk  # fixtures


CASES = [("tmpfs", False), ("ENOSPC", False), ("EDQUOT", False)]


async def say(stitch, text: str = "hello", **options) -> dict:
    return await summary_of(stitch.speak(SpeakRequest("alice", text, deliver=False, **options)))


async def playable(stitch) -> int:
    """The frames of the session's file, which all can be decoded."""
    facts = await stitch.session("alice")
    frames = len(read_video(Path(facts["video_path"]).read_bytes()[: facts["size"]])[0]) if facts["frames"] else 0
    assert frames == facts["frames"]
    return frames


@pytest.mark.parametrize(("disk", "watched"), [("tmpfs", True), *CASES], indirect=["disk"])
async def test_speech_fails_in_the_middle_and_the_session_goes_on(make_stitch, monkeypatch, disk: Disk, watched):
    monkeypatch.setenv("WARMTALK_HOME", str(disk.root))
    stitch, live, _ = await make_stitch()
    watcher = Watcher(await live.view("alice")) if watched else None
    speaking = asyncio.create_task(say(stitch, "x" * 200))
    await wait_for_frames(stitch, "alice", 30)
    disk.fill()
    with pytest.raises(DiskFullError, match="The disk is full: .*alice.* cannot be written"):
        await asyncio.wait_for(speaking, 60)
    kept = await playable(stitch)
    assert 30 <= kept < 500
    with pytest.raises(DiskFullError):
        while True:  # what is left of the last page takes a few frames
            await say(stitch, "again")
    kept = await playable(stitch)
    disk.free()
    said = (await say(stitch, "again"))["frames"]
    assert said >= 15 and await playable(stitch) >= kept + said
    if watcher is not None:
        assert watcher.seen()[2].max() > 200


async def test_a_live_view_whose_idle_motion_does_not_fit_is_refused(make_stitch, monkeypatch, disk: Disk):
    monkeypatch.setenv("WARMTALK_HOME", str(disk.root))
    _, live, _ = await make_stitch()
    disk.fill()
    with pytest.raises(DiskFullError, match=r"ann-.*\.mp4 cannot be written"):
        await live.view("alice")
    assert not [path for path in disk.root.rglob("*") if ".idle" in path.parts and path.is_file()]
    disk.free()
    watcher = Watcher(await live.view("alice"))
    await asyncio.sleep(1.0)
    assert len(watcher.seen()[0]) > 10


async def test_a_recording_is_deleted_when_it_is_opened_also_if_it_cannot_be_spoken(make_stitch):
    stitch, _, _ = await make_stitch()
    path = stored(encode_audio(0.3 * np.sin(np.arange(24_000) / 9).astype(np.float32), 24_000, "wav"))
    assert (await say(stitch, "", audio_path=path))["frames"] == 25 and not Path(path).exists()
    path = stored(b"no sound")
    with pytest.raises(AudioError, match="not audio"):
        await say(stitch, "", audio_path=path)
    assert not Path(path).exists()
    with pytest.raises(InputError, match="no longer there"):
        await say(stitch, "", audio_path=path)


async def test_only_uploads_are_read_and_deleted(make_stitch, tmp_path):
    stitch, _, _ = await make_stitch()
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encode_audio(np.zeros(24_000, np.float32), 24_000, "wav"))
    folder = Path(stored(b"")).parent
    (folder / "link").symlink_to(secret)
    for elsewhere in (secret, folder / "link", folder / "../../../secret.wav"):
        with pytest.raises(InputError, match="is not an upload"):
            await say(stitch, "", audio_path=str(elsewhere))
    assert secret.exists()


async def test_an_avatar_that_does_not_fit_leaves_nothing(monkeypatch, mounted_disk: MountedDisk, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(mounted_disk.root))
    clip = write_clip(tmp_path / "clip.mp4", [np.roll(astronaut(), 2 * k, 1) for k in range(3)])
    avatars = Avatars()
    await avatars.reconfigure({})
    avatars._model = type("Model", (), {"encode_reference": staticmethod(fake_encoder), "vae_fingerprint": "vae"})
    mounted_disk.fill()
    with pytest.raises(DiskFullError, match="cannot be written"):
        [event async for event in avatars.prepare(str(clip), "me")]
    with (mounted_disk.root / "filler").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 60_000)  # enough to begin
    with pytest.raises(DiskFullError, match="avatars cannot be written"):
        [event async for event in avatars.prepare(str(clip), "me")]
    folder = mounted_disk.root / "results" / "avatars"
    assert [path.name for path in folder.iterdir()] == [".lock"]
    mounted_disk.free()
    events = [event async for event in avatars.prepare(str(clip), "me")]
    assert events[-1]["report"]["frames"] == 3


async def test_a_download_that_does_not_fit_leaves_nothing(make_stitch, monkeypatch, mounted_disk: MountedDisk):
    monkeypatch.setenv("WARMTALK_HOME", str(mounted_disk.root))
    stitch, _, _ = await make_stitch()
    await say(stitch)
    facts, folder = await stitch.session("alice"), mounted_disk.root / "results" / ".downloads"
    mounted_disk.fill()
    with pytest.raises(DiskFullError):
        export_download(facts, facts["size"], folder)
    assert list(folder.rglob("*")) == []
    mounted_disk.free()
    assert export_download(facts, facts["size"], folder).stat().st_size > 1000
