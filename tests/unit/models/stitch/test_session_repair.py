"""Damaged files of a session are repaired from the others, or named in an error; other sessions are not affected."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from models.errors import CorruptError, FencedError, LockedError
from models.runtime.file_lock import hold_lock
from models.stitch.session import SessionFile
from models.stitch.store import SessionStore
from tests.support.session import SPEC, playable_frames, session_bytes, speak, utterance


@pytest.fixture
def session(tmp_path: Path) -> SessionFile:
    """Two utterances of 10 and 6 frames: fragments of 4, 4, 2, 4 and 2 frames."""
    made = SessionFile(tmp_path / "s", SPEC, avatar_id="ann", avatar_version="1")
    speak(made, "One.", 10)
    speak(made, "Two.", 6)
    return made


# --- the epoch


@pytest.mark.parametrize("damage", [b"", b"1", b"\0\0", b"-1\n", b"x\n"])
def test_a_damaged_epoch_is_replaced_by_a_new_one_that_fences_off_all_writers(
    session: SessionFile, damage: bytes
) -> None:
    (session.folder / "epoch").write_bytes(damage)
    with pytest.raises(FencedError):
        session.append(utterance(session.clock)[0])
    other = SessionFile(session.folder)
    speak(other, "Three.", 4)
    assert int((session.folder / "epoch").read_bytes()) == other.epoch >= 1 << 32
    with pytest.raises(FencedError):
        session.append(utterance(session.clock)[0])
    assert session.acquire() == (other.epoch or 0) + 1
    speak(session, "Four.", 4)
    assert playable_frames(session.path.read_bytes()) == 24


# --- session.json


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[]", b'{"format": 9}', b"\xff\0"])
def test_session_json_is_rebuilt_from_the_sidecar(session: SessionFile, damage: bytes) -> None:
    session.close()
    path = session.folder / "session.json"
    whole = json.loads(path.read_bytes())
    path.write_bytes(damage)
    reader = SessionFile(session.folder)
    assert (reader.frames, reader.avatar_id, reader.spec) == (16, "ann", SPEC) and path.read_bytes() == damage
    speak(reader, "Three.", 4)
    repaired = json.loads(path.read_bytes())
    assert {**repaired, "created": ""} == {**whole, "created": ""} and repaired["created"][:10] == whole["created"][:10]
    assert playable_frames(session.path.read_bytes()) == 20


@pytest.mark.parametrize("spec", [b'"width": 3', b'"width": "a"', b'"depth": 32'])
def test_session_json_with_an_impossible_format_is_damaged(session: SessionFile, spec: bytes) -> None:
    path = session.folder / "session.json"
    path.write_bytes(path.read_bytes().replace(b'"width": 32', spec))
    assert SessionFile(session.folder).spec == SPEC


def test_a_sidecar_of_another_generation_repairs_nothing(session: SessionFile) -> None:
    sidecar = (session.folder / "full_session.sidecar.jsonl").read_bytes()
    session.reset()
    (session.folder / "full_session.sidecar.jsonl").write_bytes(sidecar)
    (session.folder / "session.json").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"session\.json is damaged") as caught:
        SessionFile(session.folder)
    assert caught.value.remedy == "Delete the session: DELETE /sessions/s."


def test_a_session_that_cannot_be_repaired_is_listed_and_can_be_deleted(session: SessionFile) -> None:
    store = SessionStore(session.folder.parent)
    store.create("healthy", SPEC)
    for path in session.folder.iterdir():
        path.write_bytes(b"garbage")
    assert store.list() == ["healthy", "s"]
    speak(store.open("healthy"))
    with pytest.raises(CorruptError):
        store.open("s")
    store.remove("s")
    assert store.list() == ["healthy"] and not session.folder.exists()


# --- the index


def damage_lines(session: SessionFile, numbers: list[int], damage: bytes) -> list[bytes]:
    """Replace lines of the index; line 0 is the header. Returns the lines as they were."""
    path = session.folder / "index.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(damage if number in numbers else line for number, line in enumerate(lines)))
    return lines


def test_the_index_has_the_lines_that_the_next_tests_damage(session: SessionFile) -> None:
    assert [record["type"] for record in session.records()] == [
        *("start", "fragment", "fragment", "fragment", "end"),
        *("start", "fragment", "fragment", "end"),
    ]


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b'{"type": "frag\n', b"", b"{}\n"])
@pytest.mark.parametrize("numbers", [[2], [3, 4], [4, 5, 6], [1], [6], [5, 6, 7], [1, 2, 3, 4, 5]])
def test_lines_that_cannot_be_read_are_bridged_by_one_fragment_of_the_video(
    session: SessionFile, numbers: list[int], damage: bytes
) -> None:
    session.close()
    video = session.path.read_bytes()
    damage_lines(session, numbers, damage)
    damaged = SessionFile(session.folder)
    assert damaged.is_damaged() and damaged.frames < 16
    damaged.recover()
    assert (damaged.frames, damaged.size) == (16, len(video)) and not damaged.is_damaged()
    assert damaged.path.read_bytes() == video
    assert damaged.transcript()[-1].number == 2
    speak(damaged, "Three.", 4)
    assert playable_frames(damaged.path.read_bytes()) == 20
    assert SessionFile(session.folder).frames == 20
    assert [(u.number, u.end_s) for u in SessionFile(session.folder).transcript()][-1] == (3, 0.8)


def test_only_the_text_of_a_lost_start_is_lost(session: SessionFile) -> None:
    damage_lines(session, [6], b"?\n")
    damaged = SessionFile(session.folder)
    damaged.recover()
    assert [(u.text, u.start_s, u.end_s) for u in damaged.transcript()] == [("One.", 0.0, 0.4), ("", 0.4, 0.64)]


def test_damage_whose_rest_does_not_fit_the_video_is_refused_and_nothing_is_deleted(session: SessionFile) -> None:
    session.close()
    lines = damage_lines(session, [2], b"?\n")
    video = bytearray(session.path.read_bytes())
    for number in (3, 4, 7, 8):
        at = json.loads(lines[number])["at"]
        video[at + 40 : at + 44] = b"????"
    session.path.write_bytes(video)
    before = {**session_bytes(session.folder), "epoch": b""}
    with pytest.raises(CorruptError, match="damaged after frame 0") as caught:
        SessionFile(session.folder).recover()
    assert {**session_bytes(session.folder), "epoch": b""} == before and "/reset?session_id=s" in caught.value.remedy


def test_what_a_crash_leaves_is_not_taken_for_damage(session: SessionFile) -> None:
    """The last lines belong to an utterance without end: an incomplete line and what follows are cut off."""
    session.start_utterance("Cut.")
    for fragment in utterance(session.clock):
        session.append(fragment)
    session.close()
    damage_lines(session, [11], b"\0\0\n")
    crashed = SessionFile(session.folder)
    assert not crashed.is_damaged() and crashed.recover().frames == 16


def test_files_that_a_killed_process_was_replacing_are_deleted_by_the_next_writer(session: SessionFile) -> None:
    left = session.folder / ".index.jsonl.0123"
    left.write_bytes(b"half")
    SessionFile(session.folder).recover()
    assert not left.exists()


# --- the lock


def test_a_lock_that_another_process_keeps_is_an_error_and_changes_nothing(
    session: SessionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = session_bytes(session.folder)
    monkeypatch.setattr("models.stitch.session.hold_lock", lambda path: hold_lock(path, timeout_s=0.01))
    with (session.folder / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match=r"s/lock has been locked for 0\.01 s by process"):
            session.append(utterance(session.clock)[0])
        assert SessionFile(session.folder).frames == 16, "readers need no lock"
    assert session_bytes(session.folder) == before
    speak(session, "Three.", 4)
    assert session.frames == 20
