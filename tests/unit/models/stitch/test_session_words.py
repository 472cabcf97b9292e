"""A session's transcript: sentences, words, interruptions, and incremental reading."""

from __future__ import annotations

import pytest

from models.live.cues import Cue
from models.stitch import index
from models.stitch.session import SessionFile
from models.types import Word
from tests.support.session import SPEC, utterance


def test_a_transcript_has_sentences_and_says_where_it_was_cut(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("One. Two. Three.")
    for text, fragment in zip(("One.", "Two."), utterance(), strict=False):
        start_s = session.duration_s + 0.02
        words = (Word("Well,", start_s, start_s + 0.06), Word(text, start_s + 0.06, start_s + 0.2))
        session.add_sentence(
            Cue(len(session.transcript()[0].sentences) + 1, f"Well, {text}", start_s, start_s + 0.1, words)
        )
        session.append(fragment)
    session.end_utterance(interrupted=True)
    again = SessionFile(tmp_path / "alice")
    (line,) = again.transcript()
    assert (line.text, line.interrupted, line.end_s) == ("One. Two. Three.", True, pytest.approx(0.32))
    times = [(s.text, s.start_s, s.end_s) for s in line.sentences]
    assert times == [("Well, One.", 0.02, 0.12), ("Well, Two.", 0.18, 0.28)]
    assert line.sentences[1].words[1] == Word("Two.", pytest.approx(0.24), pytest.approx(0.28))
    assert again.recover().frames == 8  # a new writer reads every line


def test_an_interrupted_sentence_has_only_the_words_that_were_heard(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("Hello there. Never.")
    words = (Word("Hello", 0.04, 0.1), Word("there", 0.1, 0.2), Word("you.", 0.2, 0.4))
    session.add_sentence(Cue(1, "Hello there you.", 0.04, 0.4, words))
    first = utterance()[0]
    session.append(first)
    (spoken,) = session.transcript()[0].sentences
    assert (spoken.text, spoken.end_s) == ("Hello there you.", pytest.approx(0.16))  # it continues
    session.end_utterance(interrupted=True)
    ((cut,),) = [line.sentences for line in SessionFile(tmp_path / "alice").transcript()]
    assert (cut.text, cut.end_s, cut.words) == (
        "Hello there",
        pytest.approx(0.16),
        (words[0], Word("there", 0.1, 0.16)),
    )


def test_a_sentence_that_grows_is_recorded_again(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("On and on.")
    for until_s, fragment in zip((0.1, 0.3), utterance(), strict=False):
        session.add_sentence(Cue(1, "On and on.", 0.05, until_s))
        session.append(fragment)
    ((spoken,),) = [line.sentences for line in session.transcript()]
    assert (spoken.text, spoken.start_s, spoken.end_s) == ("On and on.", 0.05, 0.3)


def test_sentences_in_an_old_index_end_where_the_next_one_starts(tmp_path):
    session = SessionFile(tmp_path / "alice", SPEC)
    session.start_utterance("One. Two.")
    for text, fragment in zip(("One.", "Two."), utterance(), strict=False):
        with session._writing():
            session._commit({"type": "say", "utterance": 1, "tick": session.clock.video_ticks, "text": text})
        session.append(fragment)
    session.end_utterance()
    (line,) = SessionFile(tmp_path / "alice").transcript()
    assert [(s.text, s.start_s, s.end_s) for s in line.sentences] == [("One.", 0.0, 0.16), ("Two.", 0.16, 0.32)]


def test_a_transcript_is_read_incrementally(tmp_path, monkeypatch):
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
        session.add_sentence(Cue(1, f"Line {k}.", k, k + 1.0))
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
