"""Captions: a cue for each sentence, long ones in parts, cut speech ends where it was cut."""

import pytest

from models.stitch.captions import CUE_LINES, LINE_CHARS, cues, webvtt
from models.stitch.index import Sentence, Utterance


def test_sentences_become_cues_at_their_times():
    sentences = (Sentence("Hello there.", 0, 1.2), Sentence("Well?", 1.2, 3))
    said = [
        Utterance(1, "Hello there. Well?", 0.0, 3.0, sentences=sentences),
        Utterance(2, "", 3.0, 5.0),  # a recording
        Utterance(3, "Later.", 3700.5, 3701.25, sentences=(Sentence("Later.", 3700.5, 3701.25),)),
    ]
    assert webvtt(said) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nHello there.\n\n00:00:01.200 --> 00:00:03.000\nWell?\n\n"
        "01:01:40.500 --> 01:01:41.250\nLater.\n"
    )
    assert webvtt([]) == "WEBVTT\n"


def test_a_long_sentence_is_shown_in_parts_that_a_reader_can_follow():
    text = "word " * 60
    parts = cues(Sentence(text.strip(), 10.0, 22.0))
    assert len(parts) == 4 and parts[0][0] == 10.0 and parts[-1][1] == pytest.approx(22.0)
    assert all(b[0] == a[1] for a, b in zip(parts, parts[1:], strict=False))  # noqa: RUF007
    lines = [line for _, _, part in parts for line in part.split("\n")]
    assert max(map(len, lines)) <= LINE_CHARS and all(part.count("\n") < CUE_LINES for _, _, part in parts)
    assert " ".join(lines) == text.strip()
    assert all((end - start) == pytest.approx(12.0 * len(part) / 299, rel=0.05) for start, end, part in parts)


def test_what_was_cut_ends_there_with_a_dash():
    cut = Utterance(1, "One. Two.", 0.0, 1.0, True, (Sentence("One.", 0, 0.6), Sentence("Two.", 0.6, 1.0)))
    assert webvtt([cut]).endswith("00:00:00.600 --> 00:00:01.000\nTwo. —\n")


def test_marks_are_text_and_no_markup():
    said = Utterance(1, "", 0, 1, sentences=(Sentence("<b>1 & 2</b> --> 3", 0, 1),))
    assert "&lt;b&gt;1 &amp; 2&lt;/b&gt; --&gt; 3" in webvtt([said])
