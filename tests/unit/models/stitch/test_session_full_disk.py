"""A full disk: every change of a session fails as a whole with 507, and the session goes on once there is room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.errors import DiskFullError, FencedError, SessionNotFound
from models.media.encode import MediaSpec, UtteranceEncoder
from models.stitch.export import export_faststart
from models.stitch.session import SessionFile
from models.stitch.store import SessionStore
from tests.support import small_disk
from tests.support.session import SPEC, playable_frames, session_bytes, speak, utterance
from tests.support.small_disk import Disk, MountedDisk

disk, mounted_disk = small_disk.disk, small_disk.mounted_disk  # fixtures

CHANGES: dict[str, Callable[[SessionFile], object]] = {
    "append": lambda session: session.append(utterance(session.clock)[0]),
    "start": lambda session: session.start_utterance("Two." * 4000),  # larger than the rest of a page
    "sidecar": lambda session: session.add_to_sidecar({"type": "x", "text": "y" * 20_000}),
    "reset": lambda session: session.reset(),
    "take over": lambda session: SessionFile(session.folder).acquire(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_fails_as_a_whole_and_the_session_goes_on(disk: Disk, change: str) -> None:
    session = SessionFile(disk.root / "s", SPEC)
    speak(session)
    before = session_bytes(session.folder)
    disk.fill()
    with pytest.raises(DiskFullError, match="The disk is full: .*/s.* cannot be written") as caught:
        while True:  # what is left of the last page takes some
            CHANGES[change](session)
    assert caught.value.status == 507 and "Free space" in caught.value.remedy
    reader = SessionFile(session.folder)
    video = session.path.read_bytes()[: reader.size]
    assert playable_frames(video) == reader.frames >= 10
    assert all(
        after.startswith(before[name]) for name, after in session_bytes(session.folder).items() if name in before
    )
    disk.free()
    frames = reader.frames
    session.acquire()
    speak(session, "Two.", 6)
    assert session.frames == frames + 6 and playable_frames(session.path.read_bytes()) == frames + 6
    assert SessionFile(session.folder).frames == frames + 6


def test_a_failed_sync_makes_the_next_writer_compare_the_checksums(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the kernel may drop the data: what was lost must not count as synced."""
    session = SessionFile(disk.root / "s", SPEC)
    speak(session)
    session.start_utterance("Two.")
    for fragment in utterance(session.clock):
        session.append(fragment)
    with monkeypatch.context() as failing:
        failing.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DiskFullError):
            session.end_utterance()
    last = [record for record in session.records() if record["type"] == "fragment"][-1]
    with session.path.open("r+b") as file:
        file.seek(last["at"])
        file.write(bytes(last["bytes"]))
    with pytest.raises(FencedError):
        session.append(utterance(session.clock)[0])
    session.acquire()
    assert session.frames == 18
    speak(session, "Three.", 4)
    assert playable_frames(session.path.read_bytes()) == 22


def test_a_session_that_cannot_be_created_does_not_exist(disk: Disk) -> None:
    store = SessionStore(disk.root / "sessions")
    disk.fill()
    with pytest.raises(DiskFullError):
        store.create("s", SPEC)
    assert store.list() == []
    with pytest.raises(SessionNotFound):
        store.open("s")
    disk.free()
    speak(store.create("s", SPEC))
    assert sorted(session_bytes(disk.root / "sessions" / "s")) == [
        *("epoch", "full_session.mp4", "full_session.sidecar.jsonl", "index.jsonl", "lock", "session.json")
    ]


def test_a_session_can_be_removed_to_make_room(disk: Disk) -> None:
    store = SessionStore(disk.root / "sessions")
    speak(store.create("s", SPEC))
    disk.fill()
    store.remove("s")
    assert store.list() == [] and list(store.root.iterdir()) == []


def test_a_download_that_does_not_fit_leaves_nothing(mounted_disk: MountedDisk) -> None:
    spec = MediaSpec(128, 128, 25, crf=1)
    session = SessionFile(mounted_disk.root / "s", spec)
    tone = 0.1 * np.sin(np.arange(48_000) / 9).astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (50, 128, 128, 3), np.uint8)
    for fragment in UtteranceEncoder(spec, session.clock).push(noise, tone, last=True):
        session.append(fragment)
    (mounted_disk.root / "out").mkdir()
    mounted_disk.fill()
    with (mounted_disk.root / "filler").open("r+b") as file:
        file.truncate(file.seek(0, 2) - session.size // 2)
    with pytest.raises(DiskFullError, match="out/a.mp4 cannot be written"):
        export_faststart(session, mounted_disk.root / "out" / "a.mp4")
    assert list((mounted_disk.root / "out").iterdir()) == []
    mounted_disk.free()
    export_faststart(session, mounted_disk.root / "out" / "a.mp4")
    assert playable_frames((mounted_disk.root / "out" / "a.mp4").read_bytes()) == 50
