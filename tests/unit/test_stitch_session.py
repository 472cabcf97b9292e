"""The session file: append-only, whole after a crash at any byte, written by one at a time."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from models.errors import ConfigError, CorruptError, FencedError, SessionNotFound
from models.stitch import index
from models.stitch.cues import Cue
from models.stitch.encode import Clock, MediaSpec, UtteranceEncoder
from models.stitch.session import SessionFile
from models.types import Fragment, Word

SPEC = MediaSpec(32, 32, 25, fragment_frames=4, first_fragment_frames=4, audio_bit_rate=24_000)
START = Clock()


@cache
def utterance(start: Clock = START, frames: int = 10, spec: MediaSpec = SPEC) -> tuple[Fragment, ...]:
    """Fragments of 4, 4, 2 … frames that start at `start`; the picture moves, so that fragments differ."""
    ramp = np.linspace(20, 230, spec.width).astype(np.uint8)
    pictures = np.stack(
        [np.broadcast_to(np.roll(ramp, k)[:, None], (spec.height, spec.width, 3)) for k in range(frames)]
    )
    samples = 0.1 * np.sin(np.arange(frames * 960) / 9).astype(np.float32)
    return tuple(UtteranceEncoder(spec, start).push(pictures, samples, last=True))


def speak(session: SessionFile, text: str = "Hello.", frames: int = 10) -> None:
    session.start_utterance(text)
    for fragment in utterance(session.clock, frames, session.spec):
        session.append(fragment)
    session.end_utterance()


def playable_frames(data: bytes) -> int:
    """Frames that decode without a complaint; the number of those with sound to be heard is not zero either."""
    with av.open(io.BytesIO(data)) as file:
        file.streams.video[0].codec_context.options = {"err_detect": "explode"}
        frames = sum(1 for _ in file.decode(video=0))
    with av.open(io.BytesIO(data)) as file:
        assert any(np.abs(f.to_ndarray()).max() > 0.05 for f in file.decode(audio=0)) or frames == 0
    return frames


def test_a_session_grows_by_exactly_its_fragments(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC, avatar_id="ann", avatar_version="7")
    assert session.path.read_bytes() == session.init_segment  # plays from its first byte even before it has a frame
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


def test_appending_costs_the_same_however_long_the_session_is(tmp_path: Path) -> None:
    """200 utterances; the medians of the first and last 20 differ by less than 3 times; 10 would be linear."""
    session, costs = SessionFile(tmp_path / "s", SPEC, sync="never"), []
    for _ in range(200):
        given = utterance.__wrapped__(session.clock, 9)
        begun = time.process_time()
        session.start_utterance("Hello.")
        for fragment in given:
            session.append(fragment)
        session.end_utterance()
        costs.append(time.process_time() - begun)
    assert session.frames == 1800
    assert np.median(costs[-20:]) < 3 * np.median(costs[:20])
    assert playable_frames(session.path.read_bytes()) == 1800
    reopened = SessionFile(tmp_path / "s")
    assert (reopened.frames, reopened.clock, len(reopened.transcript())) == (1800, session.clock, 200)


def test_the_new_writer_fences_off_the_old_one(tmp_path: Path) -> None:
    old, new = SessionFile(tmp_path / "s", SPEC), SessionFile(tmp_path / "s", SPEC)
    first, second, third = utterance()
    old.append(first)
    assert (old.epoch, new.acquire()) == (1, 2)
    before = session_bytes(tmp_path / "s")
    for attempt in (lambda: old.append(second), lambda: old.start_utterance("x"), old.end_utterance):
        with pytest.raises(FencedError):
            attempt()
    assert session_bytes(tmp_path / "s") == before  # the overtaken writer has written nothing
    new.append(second)
    assert old.acquire() == old.acquire() == 3  # and may come back
    old.append(third)
    with pytest.raises(FencedError):
        new.append(third)
    assert playable_frames(old.path.read_bytes()) == 10


def session_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rival(folder: Path, seconds: float, results: multiprocessing.Queue) -> None:
    """Writes as a replica does: takes the session over, appends until it is fenced off, and again."""
    session, appended, fenced, end = SessionFile(folder), 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            for fragment in utterance.__wrapped__(session.clock, 8):
                session.append(fragment)
                appended += fragment.frames
        except FencedError:
            fenced += 1
            session.acquire()
    results.put((appended, fenced))


def test_two_processes_never_both_write(tmp_path: Path) -> None:
    SessionFile(tmp_path / "s", SPEC, sync="never").close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    rivals = [context.Process(target=rival, args=(tmp_path / "s", 1.5, results)) for _ in range(2)]
    for process in rivals:
        process.start()
    outcomes = [results.get(timeout=60) for _ in rivals]
    for process in rivals:
        process.join()
    session = SessionFile(tmp_path / "s")
    assert session.frames == sum(appended for appended, _ in outcomes)
    assert playable_frames(session.path.read_bytes()) == session.frames
    assert all(appended > 0 for appended, _ in outcomes) and sum(fenced for _, fenced in outcomes) > 0


def test_a_fragment_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    session = SessionFile(tmp_path / "s", SPEC)
    session.append(utterance()[0])
    before = session_bytes(tmp_path / "s")
    with pytest.raises(FencedError, match="clock"):
        session.append(utterance()[0])
    with pytest.raises(FencedError, match="clock"):
        session.append(utterance()[2])
    other = MediaSpec(64, 32, 25)
    with pytest.raises(ConfigError, match="other settings"):
        session.append(utterance(session.clock, 4, other)[0])
    assert session_bytes(tmp_path / "s") == before


def test_reset_starts_afresh_and_leaves_readers_their_file(tmp_path: Path) -> None:
    session, bystander = SessionFile(tmp_path / "s", SPEC), SessionFile(tmp_path / "s")
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
    bystander.refresh()
    assert (bystander.frames, bystander.avatar_id) == (6, "bea")
    larger = MediaSpec(64, 64, 30)
    other.reset(larger)
    assert SessionFile(tmp_path / "s").spec == larger


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
        with pytest.raises(CorruptError, match="fit together"):
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


# --- on air


def test_a_head_that_moved_while_nobody_spoke_is_remembered(tmp_path):
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


def test_a_transcript_has_sentences_and_says_where_it_was_cut(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("One. Two. Three.")
    for text, fragment in zip(("One.", "Two."), utterance(), strict=False):
        start_s = session.duration_s + 0.02
        words = (Word("Well,", start_s, start_s + 0.06), Word(text, start_s + 0.06, start_s + 0.2))
        session.say(Cue(len(session.transcript()[0].sentences) + 1, f"Well, {text}", start_s, start_s + 0.1, words))
        session.append(fragment)
    session.end_utterance(interrupted=True)
    again = SessionFile(tmp_path / "alice")
    (line,) = again.transcript()
    assert (line.text, line.interrupted, line.end_s) == ("One. Two. Three.", True, pytest.approx(0.32))
    times = [(s.text, s.start_s, s.end_s) for s in line.sentences]
    assert times == [("Well, One.", 0.02, 0.12), ("Well, Two.", 0.18, 0.28)]
    assert line.sentences[1].words[1] == Word("Two.", pytest.approx(0.24), pytest.approx(0.28))
    assert again.recover().frames == 8  # a new writer understands every line


def test_what_was_cut_has_the_words_that_were_heard_and_ends_there(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("Hello there. Never.")
    words = (Word("Hello", 0.04, 0.1), Word("there", 0.1, 0.2), Word("you.", 0.2, 0.4))
    session.say(Cue(1, "Hello there you.", 0.04, 0.4, words))
    first = utterance()[0]
    session.append(first)
    (spoken,) = session.transcript()[0].sentences
    assert (spoken.text, spoken.end_s) == ("Hello there you.", pytest.approx(0.16))  # it goes on
    session.end_utterance(interrupted=True)
    ((cut,),) = [line.sentences for line in SessionFile(tmp_path / "alice").transcript()]
    assert (cut.text, cut.end_s, cut.words) == (
        "Hello there",
        pytest.approx(0.16),
        (words[0], Word("there", 0.1, 0.16)),
    )


def test_a_sentence_that_a_voice_goes_on_with_is_noted_again(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("On and on.")
    for until_s, fragment in zip((0.1, 0.3), utterance(), strict=False):
        session.say(Cue(1, "On and on.", 0.05, until_s))
        session.append(fragment)
    ((spoken,),) = [line.sentences for line in session.transcript()]
    assert (spoken.text, spoken.start_s, spoken.end_s) == ("On and on.", 0.05, 0.3)


def test_sentences_of_an_older_index_last_up_to_the_next_one(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("One. Two.")
    for text, fragment in zip(("One.", "Two."), utterance(), strict=False):
        with session._writing():
            session._commit({"type": "say", "utterance": 1, "tick": session.clock.video_ticks, "text": text})
        session.append(fragment)
    session.end_utterance()
    (line,) = SessionFile(tmp_path / "alice").transcript()
    assert [(s.text, s.start_s, s.end_s) for s in line.sentences] == [("One.", 0.0, 0.16), ("Two.", 0.16, 0.32)]


def test_a_transcript_is_read_on_from_where_it_was_read_before(tmp_path, monkeypatch):
    session = SessionFile(tmp_path / "alice", SPEC)
    reader = SessionFile(tmp_path / "alice")
    sizes = []
    plain = index.read
    monkeypatch.setattr(
        index,
        "read",
        lambda path, since, size: sizes.append(path.stat().st_size - since.index_bytes) or plain(path, since, size),
    )
    for k in range(20):
        session.start_utterance(f"Line {k}.")
        session.say(Cue(1, f"Line {k}.", k, k + 1.0))
        session.end_utterance()
        sizes.clear()
        assert [line.text for line in reader.transcript()] == [f"Line {n}." for n in range(k + 1)]
        assert len(sizes) == 1 and sizes[0] < 400
        assert reader.transcript() == SessionFile(tmp_path / "alice").transcript()
    session.reset()
    reader.refresh()
    assert reader.transcript() == []
    session.start_utterance("Anew.")
    assert [line.text for line in reader.transcript()] == ["Anew."]
    session.recover()
    assert [line.text for line in session.transcript()] == ["Anew."]
