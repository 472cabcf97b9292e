"""The session file: append-only, written by one writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError, FencedError
from models.media.encode import Clock, MediaSpec
from models.stitch import index
from models.stitch.session import SessionFile
from tests.support.session import SPEC, playable_frames, session_bytes, speak, utterance


def test_a_session_grows_by_exactly_its_fragments(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC, avatar_id="ann", avatar_version="7")
    assert session.path.read_bytes() == session.init_segment  # playable even before it has a frame
    speak(session)
    grown = session.path.read_bytes()
    speak(session, "Again.", 7)
    assert session.path.read_bytes()[: len(grown)] == grown
    assert session.size == len(session.path.read_bytes())
    assert (session.frames, session.duration_s) == (17, 17 / 25)
    assert session.clock.video_ticks == 17 * 3600
    assert playable_frames(session.path.read_bytes()) == 17
    assert (session.avatar_id, session.avatar_version, session.session_id) == ("ann", "7", "s")


def test_another_object_reads_what_was_written_after_a_reset_to_another_format(tmp_path: Path) -> None:
    writer, reader = SessionFile(tmp_path / "s", SPEC), SessionFile(tmp_path / "s")
    wide = replace(SPEC, width=300, height=200)
    writer.reset(wide)
    speak(writer)
    reader.refresh()
    assert len(writer.init_segment) != len(SessionFile(tmp_path / "t", SPEC).init_segment)
    assert (reader.spec, reader.frames, reader.size) == (wide, 10, writer.size)


def test_another_object_reads_what_the_writer_wrote(tmp_path: Path) -> None:
    writer, reader = SessionFile(tmp_path / "s", SPEC), SessionFile(tmp_path / "s")
    assert reader.spec == SPEC
    speak(writer, "Grüße, 世界 \n ok")
    assert reader.frames == 0
    reader.refresh()
    assert (reader.frames, reader.size, reader.clock) == (writer.frames, writer.size, writer.clock)
    (line,) = reader.transcript()
    assert (line.number, line.text, line.start_s, line.end_s) == (1, "Grüße, 世界 \n ok", 0.0, 0.4)
    assert reader.epoch is None and writer.epoch == 1


def test_the_file_plays_whole_while_it_grows(tmp_path: Path) -> None:
    session, expected = SessionFile(tmp_path / "s", SPEC), 0
    for frames in (10, 3, 9):
        for fragment in utterance(session.clock, frames):
            session.append(fragment)
            expected += fragment.frames
            assert playable_frames(session.path.read_bytes()) == expected


def test_the_index_finds_each_fragment(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    speak(session)
    data, fragments = session.path.read_bytes(), [r for r in session.records() if r["type"] == "fragment"]
    assert [r["frames"] for r in fragments] == [4, 4, 2]
    for record, fragment in zip(fragments, utterance(), strict=True):
        assert data[record["at"] : record["at"] + record["bytes"]] == fragment.data


def test_appending_writes_only_the_new_records_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, writes, costs = SessionFile(tmp_path / "s", SPEC, sync="never"), [], []
    session.acquire()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *args: writes.append(len(args[1])) or real(*args))
    monkeypatch.setattr(index, "read", lambda *_: pytest.fail("the index is read again"))
    for _ in range(12):
        fragments = utterance.__wrapped__(session.clock, 9)
        writes.clear()
        session.start_utterance("Hello.")
        for fragment in fragments:
            session.append(fragment)
        session.end_utterance()
        costs.append((len(writes), sum(writes) - sum(len(fragment.data) for fragment in fragments)))
    assert session.frames == 108
    assert {count for count, _ in costs} == {8}  # three fragments with a line each, a start and an end
    assert max(size for _, size in costs) - min(size for _, size in costs) < 8 * 16  # only numbers get longer
    monkeypatch.undo()
    assert playable_frames(session.path.read_bytes()) == 108
    reopened = SessionFile(tmp_path / "s")
    assert (reopened.frames, reopened.clock, len(reopened.transcript())) == (108, session.clock, 12)


def test_the_new_writer_fences_off_the_old_one(tmp_path: Path) -> None:
    old, new = SessionFile(tmp_path / "s", SPEC), SessionFile(tmp_path / "s", SPEC)
    first, second, third = utterance()
    old.append(first)
    assert (old.epoch, new.acquire()) == (1, 2)
    before = session_bytes(tmp_path / "s")
    for attempt in (lambda: old.append(second), lambda: old.start_utterance("x"), old.end_utterance):
        with pytest.raises(FencedError):
            attempt()
    assert session_bytes(tmp_path / "s") == before  # the old writer has written nothing
    new.append(second)
    assert old.acquire() == old.acquire() == 3  # it can take over again
    old.append(third)
    with pytest.raises(FencedError):
        new.append(third)
    assert playable_frames(old.path.read_bytes()) == 10


def test_every_write_happens_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, real, tries = SessionFile(tmp_path / "s", SPEC), os.pwrite, []
    session.acquire()

    def pwrite(*args: Any) -> int:
        with (tmp_path / "s" / "lock").open("rb") as lock, pytest.raises(BlockingIOError):
            tries.append(args)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    session.add_to_sidecar({"type": "pause", "first_frame": 0})
    speak(session)
    assert len(tries) == 1 + 1 + 2 * 3 + 1  # the sidecar, the start, three fragments with their lines, the end


def test_two_writers_at_the_same_time_never_both_write(tmp_path: Path) -> None:
    """Each takes over the session and appends until it is fenced off, until both have been. flock is per open file."""
    SessionFile(tmp_path / "s", SPEC, sync="never").close()
    appended, fenced, end = [0, 0], [0, 0], time.monotonic() + 60

    def write(k: int) -> None:
        session = SessionFile(tmp_path / "s", sync="never")
        while min(fenced) < 2 and time.monotonic() < end:
            try:
                for fragment in utterance.__wrapped__(session.clock, 8):
                    session.append(fragment)
                    appended[k] += fragment.frames
            except FencedError:
                fenced[k] += 1
                session.acquire()

    threads = [threading.Thread(target=write, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session = SessionFile(tmp_path / "s")
    assert min(fenced) >= 2 and session.frames == sum(appended)
    assert playable_frames(session.path.read_bytes()) == session.frames


def test_a_fragment_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    session.append(utterance()[0])
    before = session_bytes(tmp_path / "s")
    with pytest.raises(FencedError, match="session ends at"):
        session.append(utterance()[0])
    with pytest.raises(FencedError, match="session ends at"):
        session.append(utterance()[2])
    other = MediaSpec(64, 32, 25)
    with pytest.raises(ConfigError, match="other encoder settings"):
        session.append(utterance(session.clock, 4, other)[0])
    assert session_bytes(tmp_path / "s") == before


def test_a_reset_empties_the_session_and_leaves_readers_the_old_file(tmp_path: Path) -> None:
    session, reader = SessionFile(tmp_path / "s", SPEC), SessionFile(tmp_path / "s")
    speak(session)
    whole = session.path.read_bytes()
    other = SessionFile(tmp_path / "s")
    with session.path.open("rb") as download:
        head = download.read(100)
        other.reset(avatar_id="bea")
        assert head + download.read() == whole
    assert (other.frames, other.clock, other.avatar_id) == (0, Clock(), "bea")
    assert other.path.read_bytes() == other.init_segment and other.transcript() == []
    with pytest.raises(FencedError):
        session.append(utterance(session.clock)[0])
    speak(other, "New.", 6)
    reader.refresh()
    assert (reader.frames, reader.avatar_id) == (6, "bea")
    larger = MediaSpec(64, 64, 30)
    other.reset(larger)
    assert SessionFile(tmp_path / "s").spec == larger


def test_many_creators_make_one_session(tmp_path: Path) -> None:
    made: list[str] = []

    def create() -> None:
        made.append(SessionFile(tmp_path / "s", SPEC).init_segment.hex())

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1
    meta = json.loads((tmp_path / "s" / "session.json").read_text())
    assert json.loads((tmp_path / "s" / "index.jsonl").read_text())["generation"] == meta["generation"]


def test_the_timeline_position_includes_idle_motion_that_is_not_in_the_file(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("One.")
    for fragment in utterance():
        session.append(fragment)
    assert session.position == session.frames == 10
    session.end_utterance()
    session.start_utterance("Two.")
    for k, fragment in enumerate(utterance(session.clock)):
        session.append(fragment, 500 if k == 0 else None)
    assert (session.position, session.frames) == (510, 20)
    assert SessionFile(tmp_path / "alice").position == 510
    moved = [record.get("position") for record in session.records() if record["type"] == "fragment"]
    assert moved == [None, None, None, 500, None, None]
