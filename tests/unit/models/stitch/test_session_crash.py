"""After a crash, a power failure, a full disk or damage, a session is playable or an error names the problem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.errors import ConfigError, CorruptError, DiskFullError, SessionNotFound
from models.media.encode import MediaSpec
from models.stitch.session import SessionFile, Sync
from tests.support.session import SPEC, playable_frames, session_bytes, speak, utterance


def name_of(file: int, folder: Path) -> str:
    """The name of an open file of the session."""
    return next(path.name for path in folder.iterdir() if path.stat().st_ino == os.fstat(file).st_ino)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records writes and syncs of the files of session `s`, in order."""
    events: list[str] = []
    write, sync, replace = os.pwrite, os.fsync, Path.replace

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        events.append(f"write {name_of(file, tmp_path / 's')}")
        return write(file, data, offset)

    def fsync(file: int) -> None:
        name = name_of(file, tmp_path / "s")
        events.append(f"sync {'new file' if name.startswith('.') else name}")
        sync(file)

    def replaced(self: Path, target: Path) -> Path:
        events.append(f"replace {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replaced)
    return events


APPEND = ["write full_session.mp4", "write index.jsonl"]


@pytest.mark.parametrize(
    ("sync", "append", "end"),
    [
        ("never", APPEND, ["write index.jsonl"]),
        (
            "utterance",
            APPEND,
            ["sync full_session.mp4", "sync full_session.sidecar.jsonl", "write index.jsonl", "sync index.jsonl"],
        ),
        (
            "fragment",
            ["write full_session.mp4", "sync full_session.mp4", "write index.jsonl"],
            ["sync full_session.mp4", "sync full_session.sidecar.jsonl", "write index.jsonl", "sync index.jsonl"],
        ),
    ],
)
def test_data_is_written_and_synced_before_the_record_that_commits_it(
    tmp_path: Path, disk: list[str], sync: Sync, append: list[str], end: list[str]
) -> None:
    session = SessionFile(tmp_path / "s", SPEC, sync=sync)
    session.start_utterance("Hello.")
    disk.clear()
    session.append(utterance()[0])
    assert disk == append
    disk.clear()
    session.end_utterance()
    assert disk == end


def test_new_files_are_synced_before_they_appear_and_the_commit_is_last(tmp_path: Path, disk: list[str]) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    names = ("full_session.mp4", "full_session.sidecar.jsonl", "index.jsonl", "session.json")
    assert disk == ["sync new file"] * 4 + [f"replace {name}" for name in names]
    session.acquire()
    disk.clear()
    session.reset()
    names = ("session.json", "full_session.mp4", "full_session.sidecar.jsonl", "index.jsonl")
    assert disk[:2] == ["sync new file", "replace epoch"]
    assert disk[2:] == ["sync new file"] * 4 + [f"replace {name}" for name in names]


def test_a_crash_at_any_byte_of_a_fragment_leaves_the_session_playable(tmp_path: Path) -> None:
    """The file ends within the last fragment, whose index line is not written yet."""
    session = SessionFile(tmp_path / "s", SPEC, sync="never")
    for fragment in utterance()[:2]:
        session.append(fragment)
    before, index_before = session.size, (tmp_path / "s" / "index.jsonl").read_bytes()
    session.close()
    last = utterance()[2]
    for cut in (*range(20), *range(20, len(last.data), 23), len(last.data)):
        session.path.write_bytes(session.path.read_bytes()[:before] + last.data[:cut])
        crashed = SessionFile(tmp_path / "s", sync="never")
        assert (crashed.frames, crashed.size) == (8, before)  # also for a reader
        assert crashed.recover().video_cut == cut
        assert crashed.path.stat().st_size == before
        crashed.close()
    assert (tmp_path / "s" / "index.jsonl").read_bytes() == index_before
    assert playable_frames(session.path.read_bytes()) == 8
    crashed.append(last)
    assert playable_frames(session.path.read_bytes()) == 10


def test_a_crash_at_any_byte_of_an_index_line_leaves_the_session_playable(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC, sync="never")
    index_path = tmp_path / "s" / "index.jsonl"
    lengths = [len(index_path.read_bytes())]
    for fragment in utterance():
        session.append(fragment)
        lengths.append(len(index_path.read_bytes()))
    video, index = session.path.read_bytes(), index_path.read_bytes()
    for cut in (*range(lengths[2], lengths[3], 3), lengths[3] - 1, lengths[3]):
        session.path.write_bytes(video)
        index_path.write_bytes(index[:cut])
        crashed = SessionFile(tmp_path / "s", sync="never")
        recovery = crashed.recover()
        assert recovery.frames == (10 if cut == lengths[3] else 8)
        if cut == lengths[2] or cut >= lengths[3] - 1:
            assert playable_frames(crashed.path.read_bytes()) == recovery.frames
        assert index_path.read_bytes() == index[: lengths[3 if recovery.frames == 10 else 2]]
        if cut in (lengths[2] + 3, lengths[3] - 1):  # the session can be continued
            crashed.append(utterance()[2])
            assert playable_frames(crashed.path.read_bytes()) == 10
        crashed.close()


def test_a_video_that_is_shorter_than_its_index_loses_only_the_missing_fragments(tmp_path: Path) -> None:
    """After a power failure, the index may have reached the disk and the video not."""
    session = SessionFile(tmp_path / "s", SPEC, sync="never")
    for fragment in utterance():
        session.append(fragment)
    session.close()
    ends = [r["at"] + r["bytes"] for r in session.records()]
    index_path, video = tmp_path / "s" / "index.jsonl", session.path.read_bytes()
    index = index_path.read_bytes()
    near = [edge + step for edge in (len(session.init_segment), *ends) for step in (-1, 0, 1)]
    for cut in sorted({*range(0, len(video), 97), *(cut for cut in near if cut <= len(video))}):
        session.path.write_bytes(video[:cut])
        index_path.write_bytes(index)
        recovery = SessionFile(tmp_path / "s", sync="never").recover()
        whole = sum(end <= cut for end in ends)
        assert recovery.frames == [0, 4, 8, 10][whole]
        expected = video[: ends[whole - 1]] if whole else session.init_segment
        assert session.path.read_bytes() == expected


def test_a_fragment_that_never_reached_the_disk_is_found_by_its_checksum(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    speak(session)
    for fragment in utterance(session.clock):
        session.append(fragment)
    session.close()
    middle = [r for r in session.records() if r["type"] == "fragment"][4]
    with session.path.open("r+b") as file:  # the length is right and pages are zero, as file systems leave it
        file.seek(middle["at"])
        file.write(bytes(middle["bytes"]))
    assert SessionFile(tmp_path / "s").recover().frames == 14
    assert playable_frames(session.path.read_bytes()) == 14


def test_an_utterance_that_a_crash_has_ended_stays_in_the_transcript(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    session.start_utterance("Cut.")
    session.append(utterance()[0])
    crashed = SessionFile(tmp_path / "s")
    crashed.recover()
    speak(crashed, "Whole.")
    assert [(u.number, u.text, u.start_s, u.end_s) for u in crashed.transcript()] == [
        (1, "Cut.", 0.0, None),
        (2, "Whole.", 0.16, 0.56),
    ]
    assert playable_frames(crashed.path.read_bytes()) == 14


@pytest.mark.parametrize("interrupted", ["full_session.mp4", "index.jsonl"])
def test_a_reset_that_a_crash_interrupts_is_completed(
    tmp_path: Path, interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    speak(session)
    real = Path.replace

    def crash(path: Path, target: Path) -> Path:
        if target.name == interrupted:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        session.reset(avatar_id="bea")
    monkeypatch.undo()
    after = SessionFile(tmp_path / "s")
    assert (after.frames, after.avatar_id) == (0, "bea")
    speak(after, "New.", 6)
    assert playable_frames(after.path.read_bytes()) == 6
    assert SessionFile(tmp_path / "s").frames == 6


def test_a_full_disk_leaves_the_session_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    session.append(utterance()[0])
    before = session_bytes(tmp_path / "s")
    real, room = os.pwrite, [40]

    def full(file: int, data: memoryview, offset: int) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = real(file, data[: room[0]], offset)
        room[0] -= count
        return count

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFullError, match="The disk is full: .*/s cannot be written"):
        session.append(utterance()[1])
    monkeypatch.undo()
    assert session_bytes(tmp_path / "s") == before
    session.append(utterance()[1])
    assert playable_frames(session.path.read_bytes()) == 8


def test_a_session_of_another_format_is_refused(tmp_path: Path) -> None:
    SessionFile(tmp_path / "s", SPEC)
    with pytest.raises(ConfigError, match="32×32 px at 25 fps"):
        SessionFile(tmp_path / "s", MediaSpec(64, 64, 25))
    tuned = MediaSpec(32, 32, 25, crf=30)  # the quality may change in the config; the session keeps its own
    assert SessionFile(tmp_path / "s", tuned).spec == SPEC


def test_missing_and_damaged_sessions_are_reported(tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound, match="'s'"):
        SessionFile(tmp_path / "s")
    SessionFile(tmp_path / "s", SPEC)
    (tmp_path / "s" / "session.json").write_text('{"format": 1, "spec"')
    (tmp_path / "s" / "full_session.sidecar.jsonl").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"session\.json"):
        SessionFile(tmp_path / "s")


def test_files_that_no_crash_can_cause_are_refused_and_kept(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    speak(session)
    session.close()
    video, index = session.path.read_bytes(), (tmp_path / "s" / "index.jsonl").read_bytes()
    for name, damaged in (("index.jsonl", b"\0" + index[1:]), ("full_session.mp4", b"\x09" + video[1:])):
        (tmp_path / "s" / name).write_bytes(damaged)
        with pytest.raises(CorruptError, match="do not match"):
            SessionFile(tmp_path / "s").recover()
        assert (tmp_path / "s" / name).read_bytes() == damaged
        session.path.write_bytes(video)
        (tmp_path / "s" / "index.jsonl").write_bytes(index)
    (tmp_path / "s" / "index.jsonl").unlink()
    with pytest.raises(CorruptError, match="reset"):
        SessionFile(tmp_path / "s").append(utterance()[0])
    session.reset()
    speak(session)
    assert playable_frames(session.path.read_bytes()) == 10
