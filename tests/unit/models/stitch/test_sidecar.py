"""The sidecar of a growing video: the description of each frame, after crashes, new writers and resets, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.errors import CorruptError, FencedError
from models.media.encode import MediaSpec, UtteranceEncoder
from models.stitch.index import encode_record
from models.stitch.session import SessionFile
from models.stitch.sidecar import (
    Sidecar,
    committed_lines,
    frames_record,
    pause_record,
    read_sidecar,
    sidecar_path,
    speech_record,
    utterance_record,
)
from models.types import Phoneme, PreparedAvatar, Speech

SPEC = MediaSpec(32, 32, 25, fragment_frames=4, first_fragment_frames=4)
ENGINES = {"TTS": "hibari", "LipSync": "openvino"}


def avatar(n: int = 6) -> PreparedAvatar:
    """In frame k the face is k px to the right; frame 3 has no face."""
    transforms = np.tile(np.float32([[2, 0, 0.25], [0, 2, 7.5]]), (n, 1, 1))
    transforms[:, 0, 2] += np.arange(n)
    zeros, masks = np.zeros((n, 68, 2), np.float32), np.zeros((n, 256, 256), np.uint8)
    return PreparedAvatar("ann", "v1", 25, 32, 32, transforms, zeros, masks, np.arange(n) != 3)


def say(session: SessionFile, first: int, frames: int, text: str = "Mama.", committed: int | None = None) -> None:
    """Speak an utterance of `frames` frames, of which `committed` reach the video."""
    session.start_utterance(text)
    session.add_to_sidecar(utterance_record(first, text, ENGINES))
    speech = Speech(
        np.zeros(frames * 640, np.float32), 16_000, text, True, (Phoneme("m", 0.0, 0.08), Phoneme("ɑ", 0.08, 0.3))
    )
    session.add_to_sidecar(speech_record(first, speech))
    indices = np.arange(first, first + frames) % 6
    session.add_to_sidecar(frames_record(first, indices, avatar(), np.linspace(0, 1, frames, dtype=np.float32)))
    pictures = np.zeros((frames if committed is None else committed, 32, 32, 3), np.uint8)
    for fragment in UtteranceEncoder(SPEC, session.clock).push(pictures, speech.samples, last=True):
        session.append(fragment)


@pytest.fixture
def session(tmp_path: Path) -> SessionFile:
    return SessionFile(tmp_path / "alice", SPEC, avatar_id="ann", avatar_version="v1")


def read(session: SessionFile) -> Sidecar:
    return read_sidecar(sidecar_path(session.path), session.frames)


def test_every_frame_is_described(session):
    say(session, 0, 8)
    known = read(session)
    assert (known.session_id, known.avatar_id, known.avatar_version, known.spec) == ("alice", "ann", "v1", SPEC)
    assert known.avatar_frames.tolist() == [0, 1, 2, 3, 4, 5, 0, 1] and known.known.all()
    assert known.transforms[5].tolist() == [[2, 0, 5.25], [0, 2, 7.5]]
    assert known.mouth == pytest.approx([0, 0.143, 0.286, 0, 0.571, 0.714, 0.857, 1], abs=1e-3)  # frame 3: no face
    (said,) = known.utterances
    assert (said.first_frame, said.end_frame, said.text, said.engines) == (0, 8, "Mama.", ENGINES)


def test_a_second_utterance_is_described_in_the_time_of_the_session(session):
    say(session, 0, 8)
    say(session, 8, 4, "Papa.")
    known = read(session)
    assert [(said.text, said.first_frame, said.end_frame) for said in known.utterances] == [
        ("Mama.", 0, 8),
        ("Papa.", 8, 12),
    ]
    times = [(phoneme.symbol, phoneme.start_s, phoneme.end_s) for phoneme in known.phonemes]
    assert times == [("m", 0, 0.08), ("ɑ", 0.08, 0.3), ("m", 0.32, 0.4), ("ɑ", 0.4, 0.48)]  # cut at the video's end


def test_lines_of_frames_lost_in_a_crash_are_ignored(session, tmp_path):
    say(session, 0, 12, "Broken off.", committed=4)
    session.close()
    after = SessionFile(tmp_path / "alice")
    after.recover()
    say(after, 4, 4, "Again.")
    known = read(after)
    assert known.avatar_frames.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert [(said.text, said.end_frame) for said in known.utterances] == [("Broken off.", 4), ("Again.", 8)]
    assert [phoneme.start_s for phoneme in known.phonemes if phoneme.symbol == "m"] == [0, 0.16]
    assert max(phoneme.end_s for phoneme in known.phonemes) <= 8 / 25


def test_files_of_versions_without_other_encoders_are_continued(session, tmp_path):
    say(session, 0, 8)
    session.close()
    fields = ("width", "height", "fps", "sample_rate_hz", "crf", "preset", "fragment_frames", "first_fragment_frames")
    old = {name: getattr(SPEC, name) for name in (*fields, "threads", "audio_bit_rate")}
    head, *lines = sidecar_path(session.path).read_bytes().splitlines(keepends=True)
    sidecar_path(session.path).write_bytes(encode_record({**json.loads(head), "spec": old}) + b"".join(lines))
    about = json.loads((session.folder / "session.json").read_text())
    (session.folder / "session.json").write_text(json.dumps({**about, "spec": old}, indent=2, ensure_ascii=False))
    say(SessionFile(tmp_path / "alice"), 8, 4, "Next.")
    assert read(session).known.tolist() == [True] * 8  # nothing of the first utterance is lost
    session.refresh()
    assert read(session).known.all() and [said.text for said in read(session).utterances] == ["Mama.", "Next."]


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_an_incomplete_line_is_ignored_and_removed_by_the_next_writer(session, tmp_path, cut):
    say(session, 0, 8)
    session.close()
    path = sidecar_path(session.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(read(session).utterances) == 1 and not read(session).known.any()  # the line of the frames was the last
    assert committed_lines(path) == whole[: whole[:-cut].rfind(b"\n") + 1]
    after = SessionFile(tmp_path / "alice")
    say(after, 8, 4, "Next.")
    assert read(after).known.tolist() == [False] * 8 + [True] * 4
    assert b"}{" not in path.read_bytes()


def test_a_reset_starts_a_new_sidecar(session):
    say(session, 0, 8)
    session.reset(avatar_id="bob", avatar_version="v2")
    known = read_sidecar(sidecar_path(session.path), 0)
    assert (known.avatar_id, known.avatar_version, known.utterances, known.phonemes) == ("bob", "v2", [], [])
    say(session, 0, 4)
    assert read(session).known.all()


def test_a_missing_or_foreign_sidecar_is_replaced(session, tmp_path):
    say(session, 0, 4)
    session.close()
    sidecar_path(session.path).unlink()
    after = SessionFile(tmp_path / "alice")
    say(after, 4, 4, "Go on.")
    assert read(after).known.tolist() == [False] * 4 + [True] * 4
    after.close()
    sidecar_path(session.path).write_bytes(b'{"type":"video","format":1,"generation":"another"}\n')
    last = SessionFile(tmp_path / "alice")
    say(last, 8, 4)
    assert read(last).known.tolist() == [False] * 8 + [True] * 4


def test_a_fenced_writer_adds_no_line(session, tmp_path):
    say(session, 0, 4)
    rival = SessionFile(tmp_path / "alice")
    rival.acquire()
    before = sidecar_path(session.path).read_bytes()
    with pytest.raises(FencedError):
        session.add_to_sidecar(utterance_record(4, "Too late.", {}))
    assert sidecar_path(session.path).read_bytes() == before


def test_lines_beyond_the_end_of_the_video_are_ignored(session):
    say(session, 0, 8, committed=4)
    known = read(session)
    assert len(known.avatar_frames) == len(known.mouth) == 4 and known.utterances[0].end_frame == 4


def test_a_pause_ends_the_phonemes_of_interrupted_speech(session):
    say(session, 0, 8, committed=4)
    session.end_utterance(interrupted=True)
    session.add_to_sidecar(pause_record(4), frames_record(4, np.arange(4, 8) % 6, avatar(), np.zeros(4, np.float32)))
    quiet = UtteranceEncoder(SPEC, session.clock)
    for fragment in quiet.push(np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4 * 640, np.float32), last=True):
        session.append(fragment, pause=True)
    known = read(session)
    assert [(p.symbol, p.start_s, p.end_s) for p in known.phonemes] == [("m", 0.0, 0.08), ("ɑ", 0.08, 0.16)]
    assert known.mouth[4:].tolist() == [0, 0, 0, 0] and known.known.all() and len(known.utterances) == 1


def test_an_invalid_sidecar_is_reported(tmp_path):
    for content in (b"", b"hello\n", b'{"type":"video","format":99}\n', b'{"a":1}\n'):
        (tmp_path / "x.sidecar.jsonl").write_bytes(content)
        with pytest.raises(CorruptError, match="not a valid sidecar"):
            read_sidecar(tmp_path / "x.sidecar.jsonl", 4)


def test_a_missing_sidecar_has_no_lines(tmp_path):
    assert committed_lines(tmp_path / "none.sidecar.jsonl") == b""
