"""Open session files: take-over between two replicas, the avatar of a session, and the number of open files."""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from deployments.stitch.open_sessions import OpenSessions, refuse_other_avatar, utterance_json
from models.errors import CorruptError, FencedError, InputError, SessionNotFound
from models.media.encode import MediaSpec, UtteranceEncoder
from models.stitch.index import Sentence, UtteranceRecord
from models.stitch.session import SessionFile
from models.types import PreparedAvatar, Word

SPEC = MediaSpec(32, 32, 25, fragment_frames=4, first_fragment_frames=4)
OTHER = replace(SPEC, width=64)


def avatar(avatar_id: str = "ann", version: str = "1") -> PreparedAvatar:
    zeros = np.zeros((3, 2, 3), np.float32)
    masks = np.zeros((3, 256, 256), np.uint8)
    landmarks = np.zeros((3, 68, 2), np.float32)
    return PreparedAvatar(avatar_id, version, 25, 32, 32, zeros, landmarks, masks, np.ones(3, bool))


def append(session: SessionFile, frames: int = 8) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (frames, session.spec.height, session.spec.width, 3), np.uint8)
    for fragment in UtteranceEncoder(session.spec, session.clock).push(
        pictures, np.zeros(frames * 960, np.float32), last=True
    ):
        session.append(fragment)


def begin(sessions: OpenSessions, session_id: str, spec: MediaSpec, who: PreparedAvatar, text: str) -> SessionFile:
    session = sessions.claim(session_id, spec, who)
    session.start_utterance(text)
    return session


@pytest.fixture
def replicas(tmp_path: Path) -> tuple[OpenSessions, OpenSessions]:
    return OpenSessions(tmp_path, 8), OpenSessions(tmp_path, 8)


def test_a_session_that_was_never_created_is_not_found(replicas, tmp_path):
    one, _ = replicas
    assert one.find("alice") is None
    with pytest.raises(SessionNotFound, match="no session 'alice'"):
        one.describe("alice")
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_another_replica_creates_meanwhile_is_described(replicas, monkeypatch):
    one, two = replicas
    begin(two, "alice", SPEC, avatar(), "Hello.")
    monkeypatch.setattr(one, "find", lambda session_id: None)  # as before it was created
    facts = one.describe("alice")
    assert facts["avatar_id"] == "ann" and facts["last"] is None


def test_a_replica_sees_what_another_wrote(replicas):
    one, two = replicas
    append(begin(one, "alice", SPEC, avatar(), "Hello."))
    assert two.describe("alice")["frames"] == 8
    append(begin(one, "alice", SPEC, avatar(), "Again."))
    facts = two.describe("alice")
    assert (facts["frames"], facts["duration_s"], facts["avatar_id"]) == (16, 0.64, "ann")
    assert [line["text"] for line in facts["utterances"]] == ["Hello.", "Again."]


def test_the_json_of_an_utterance_has_all_its_fields():
    words = (Word("Hello", 0.1, 0.4), Word("there.", 0.5, 0.9))
    line = UtteranceRecord(
        3, "Hello there. Yes.", 0.0, 1.5, True, (Sentence("Hello there.", 0.1, 0.9, words), Sentence("Yes.", 1.0, 1.4))
    )
    assert utterance_json(line) == asdict(line)


def test_facts_without_a_transcript_do_not_read_it(replicas, monkeypatch):
    one, _ = replicas
    append(begin(one, "alice", SPEC, avatar(), "Hello."))
    whole = one.describe("alice")
    monkeypatch.setattr(SessionFile, "transcript", lambda self: pytest.fail("the transcript was read"))
    assert one.describe("alice", transcript=False) == {
        key: whole[key] for key in whole if key not in ("utterances", "last")
    }


def test_the_video_tag_changes_with_a_reset_and_not_while_the_video_grows(replicas):
    one, two = replicas
    append(begin(one, "alice", SPEC, avatar(), "Hello."))
    tag = one.describe("alice")["video_tag"]
    append(begin(two, "alice", SPEC, avatar(), "I go on."))
    assert one.describe("alice")["video_tag"] == two.describe("alice")["video_tag"] == tag
    one.reset("alice")
    after_reset = two.describe("alice")["video_tag"]
    one.remove("alice")
    begin(one, "alice", SPEC, avatar(), "Anew.")
    assert len({tag, after_reset, two.describe("alice")["video_tag"]}) == 3


def test_a_take_over_fences_the_old_writer_and_keeps_all_frames(replicas):
    one, two = replicas
    old = begin(one, "alice", SPEC, avatar(), "Hello.")
    append(old)
    new = begin(two, "alice", SPEC, avatar(), "I go on.")
    with pytest.raises(FencedError, match="new writer"):
        append(old)
    append(new)
    assert two.describe("alice")["frames"] == 16
    append(begin(one, "alice", SPEC, avatar(), "And I again."))
    assert [line["text"] for line in one.describe("alice")["utterances"]] == ["Hello.", "I go on.", "And I again."]
    assert one.describe("alice")["frames"] == 24


def test_a_claim_holds_until_another_replica_claims_the_session(replicas):
    one, two = replicas
    mine = one.claim("alice", SPEC, avatar())
    begin(two, "alice", SPEC, avatar(), "Rival.")
    with pytest.raises(FencedError, match="new writer"):
        mine.start_utterance("Mine.")
    begin(one, "alice", SPEC, avatar(), "Mine.")
    assert [line["text"] for line in one.describe("alice")["utterances"]] == ["Rival.", "Mine."]


def test_a_session_that_is_handed_over_is_closed_and_can_be_taken_back(replicas):
    one, two = replicas
    append(begin(one, "alice", SPEC, avatar(), "One."))
    before = open_files()
    one.close("alice")
    assert open_files() == before - 3  # video, index, sidecar
    append(begin(two, "alice", SPEC, avatar(), "Two."))
    two.close("alice")
    append(begin(one, "alice", SPEC, avatar(), "Three."))
    assert one.describe("alice")["frames"] == 24


def test_a_session_with_video_keeps_its_avatar(replicas):
    one, _ = replicas
    append(begin(one, "alice", SPEC, avatar("ann"), "Hello."))
    session = one.find("alice")
    refuse_other_avatar(session, None)
    refuse_other_avatar(session, "ann")
    with pytest.raises(InputError, match="shows the avatar 'ann', not 'bob'") as caught:
        refuse_other_avatar(session, "bob")
    assert "/reset?session_id=alice" in caught.value.remedy


def test_an_empty_session_may_get_another_avatar_and_format(replicas):
    one, _ = replicas
    begin(one, "alice", SPEC, avatar("ann"), "Nothing came of it.")
    session = begin(one, "alice", OTHER, avatar("bob"), "Hello.")
    refuse_other_avatar(session, "carol")  # it has no video
    assert (session.avatar_id, session.spec) == ("bob", OTHER)


@pytest.mark.parametrize(("spec", "who", "error"), [(SPEC, "bob", InputError), (OTHER, "ann", FencedError)])
def test_a_claim_fails_if_another_replica_gave_the_session_another_avatar_or_format(replicas, spec, who, error):
    one, two = replicas
    begin(one, "alice", spec, avatar(who), "I looked.")
    append(begin(two, "alice", SPEC, avatar("ann"), "I was quicker."))
    with pytest.raises(error):
        begin(one, "alice", spec, avatar(who), "Too late.")
    assert [line["text"] for line in two.describe("alice")["utterances"]][-1] == "I was quicker."


def test_a_reset_empties_the_session_for_all_replicas(replicas):
    one, two = replicas
    append(begin(one, "alice", SPEC, avatar(), "Hello."))
    one.remember("alice", {"frames": 8})
    assert two.reset("alice") and not two.reset("nobody")
    assert one.describe("alice")["frames"] == 0
    assert one.describe("alice")["utterances"] == []
    one.reset("alice")
    assert one.describe("alice")["last"] is None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_no_more_sessions_than_the_capacity_stay_open(tmp_path):
    sessions = OpenSessions(tmp_path, capacity=3)
    before = open_files()
    for k in range(10):
        append(begin(sessions, f"s{k}", SPEC, avatar(), "Hello."), 4)
        sessions.remember(f"s{k}", {"frames": 4})
    assert open_files() - before <= 3 * 3  # video, index and sidecar per session
    assert sessions.describe("s9")["last"] == {"frames": 4}
    assert sessions.describe("s0")["last"] is None  # dropped with its file
    append(begin(sessions, "s0", SPEC, avatar(), "Back."), 4)
    assert sessions.describe("s0")["frames"] == 8


def test_an_utterance_goes_on_when_the_cache_closes_its_session(tmp_path):
    sessions = OpenSessions(tmp_path, capacity=1)
    session = begin(sessions, "alice", SPEC, avatar(), "Long.")
    append(session, 4)
    begin(sessions, "bob", SPEC, avatar(), "Short.")
    append(session, 4)
    sessions.remember("alice", {"frames": 8})  # not open here: not kept
    assert sessions.describe("alice")["frames"] == 8
    assert sessions.describe("alice")["last"] is None


def test_a_session_whose_folder_was_deleted_is_closed_and_can_be_created_again(tmp_path):
    sessions = OpenSessions(tmp_path, 8)
    before = open_files()
    append(begin(sessions, "alice", SPEC, avatar(), "Hello."))
    sessions.remember("alice", {"frames": 8})
    shutil.rmtree(tmp_path / "alice")
    assert sessions.find("alice") is None and open_files() == before
    append(begin(sessions, "alice", SPEC, avatar(), "Anew."), 4)
    assert sessions.describe("alice")["frames"] == 4 and sessions.describe("alice")["last"] is None


def test_a_removed_session_leaves_no_files_and_fences_its_writer(replicas, tmp_path):
    one, two = replicas
    session = begin(one, "alice", SPEC, avatar(), "Hello.")
    append(session)
    assert two.remove("alice") is True
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((FencedError, FileNotFoundError)):
        append(session)
    assert list(tmp_path.iterdir()) == []
    assert (one.find("alice"), two.remove("alice"), one.store.list()) == (None, False, [])


def test_a_damaged_index_is_repaired_when_the_session_is_opened(replicas, tmp_path: Path) -> None:
    one, two = replicas
    session = begin(one, "alice", SPEC, avatar(), "One.")
    append(session)
    session.end_utterance()
    index = tmp_path / "alice" / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([*lines[:2], b"\0\0\n", *lines[3:]]))
    facts = two.describe("alice")
    assert (facts["frames"], facts["size"]) == (8, session.size) and facts["utterances"][0]["end_s"] == 0.32
    with pytest.raises(FencedError):
        append(session)


def test_a_session_that_cannot_be_repaired_does_not_affect_others(replicas, tmp_path: Path) -> None:
    one, two = replicas
    for name in ("alice", "bob"):
        append(begin(one, name, SPEC, avatar(), "One."))
    for path in (tmp_path / "alice").iterdir():
        path.write_bytes(b"garbage")
    with pytest.raises(CorruptError, match=r"session\.json is damaged"):
        two.describe("alice")
    assert two.store.list() == ["alice", "bob"] and two.describe("bob")["frames"] == 8
    assert two.remove("alice") and two.store.list() == ["bob"]
