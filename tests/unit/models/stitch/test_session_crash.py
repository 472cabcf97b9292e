"""What a crash, a full disk or a foreign hand leaves of a session: a file that plays, or an error in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models.errors import ConfigError, CorruptError, SessionNotFound
from models.media.encode import MediaSpec
from models.stitch.session import SessionFile
from tests.support.session import SPEC, playable_frames, session_bytes, speak, utterance


def test_a_crash_at_any_byte_of_a_fragment_leaves_the_session_playable(tmp_path: Path) -> None:
    """The file ends at each byte of the last fragment in turn, its line not yet written."""
    session = SessionFile(tmp_path / "s", SPEC, sync="never")
    for fragment in utterance()[:2]:
        session.append(fragment)
    before, index_before = session.size, (tmp_path / "s" / "index.jsonl").read_bytes()
    session.close()
    last = utterance()[2]
    for cut in range(len(last.data) + 1):
        session.path.write_bytes(session.path.read_bytes()[:before] + last.data[:cut])
        crashed = SessionFile(tmp_path / "s", sync="never")
        assert (crashed.frames, crashed.size) == (8, before)  # a reader is not misled either
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
    for cut in range(lengths[2], lengths[3] + 1):
        session.path.write_bytes(video)
        index_path.write_bytes(index[:cut])
        crashed = SessionFile(tmp_path / "s", sync="never")
        recovery = crashed.recover()
        assert recovery.frames == (10 if cut == lengths[3] else 8)
        assert playable_frames(crashed.path.read_bytes()) == recovery.frames
        assert index_path.read_bytes() == index[: lengths[3 if recovery.frames == 10 else 2]]
        if cut in (lengths[2] + 1, lengths[3] - 1):  # and the session goes on
            crashed.append(utterance()[2])
            assert playable_frames(crashed.path.read_bytes()) == 10
        crashed.close()


def test_a_video_cut_behind_its_index_loses_the_cut_fragments_only(tmp_path: Path) -> None:
    """After a power cut the index may have reached the disk and the video not."""
    session = SessionFile(tmp_path / "s", SPEC, sync="never")
    for fragment in utterance():
        session.append(fragment)
    session.close()
    ends = [r["at"] + r["bytes"] for r in session.records()]
    index_path, video = tmp_path / "s" / "index.jsonl", session.path.read_bytes()
    index = index_path.read_bytes()
    for cut in range(0, len(video), 11):
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
    with session.path.open("r+b") as file:  # length grown, pages zero: as file systems leave it
        file.seek(middle["at"])
        file.write(bytes(middle["bytes"]))
    assert SessionFile(tmp_path / "s").recover().frames == 14
    assert playable_frames(session.path.read_bytes()) == 14


def test_an_utterance_that_a_crash_cut_short_stays_in_the_transcript(tmp_path: Path) -> None:
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
def test_a_reset_that_crashes_half_way_is_completed(tmp_path: Path, interrupted: str, monkeypatch: object) -> None:
    from models.stitch import session as module

    session = SessionFile(tmp_path / "s", SPEC)
    speak(session)
    real = module.replace_file

    def crash(path: Path, data: bytes, sync: bool = True) -> None:
        if path.name == interrupted:
            raise KeyboardInterrupt
        real(path, data, sync)

    monkeypatch.setattr(module, "replace_file", crash)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        session.reset(avatar_id="bea")
    monkeypatch.undo()  # type: ignore[attr-defined]
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
    with pytest.raises(OSError, match="No space"):
        session.append(utterance()[1])
    monkeypatch.undo()
    assert session_bytes(tmp_path / "s") == before
    session.append(utterance()[1])
    assert playable_frames(session.path.read_bytes()) == 8


def test_a_session_of_another_format_is_refused(tmp_path: Path) -> None:
    SessionFile(tmp_path / "s", SPEC)
    with pytest.raises(ConfigError, match="32×32 px at 25 fps"):
        SessionFile(tmp_path / "s", MediaSpec(64, 64, 25))
    tuned = MediaSpec(32, 32, 25, crf=30)
    assert (
        SessionFile(tmp_path / "s", tuned).spec == SPEC
    )  # quality may change in the config; the session keeps its own


def test_missing_and_damaged_sessions_say_so(tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound, match="'s'"):
        SessionFile(tmp_path / "s")
    SessionFile(tmp_path / "s", SPEC)
    (tmp_path / "s" / "session.json").write_text('{"format": 1, "spec"')
    with pytest.raises(CorruptError, match=r"session\.json"):
        SessionFile(tmp_path / "s")


def test_files_that_no_crash_makes_are_refused_and_kept(tmp_path: Path) -> None:
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
