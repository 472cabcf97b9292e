"""Captions: a cue per sentence, several for a long one, and an interrupted one ends at the interruption."""

import html
import re

import pytest

from models.stitch.captions import CUE_LINES, LINE_CHARS, cues, webvtt
from models.stitch.index import Sentence, UtteranceRecord
from models.types import Word


def test_sentences_become_cues_at_their_times():
    sentences = (Sentence("Hello there.", 0, 1.2), Sentence("Well?", 1.2, 3))
    said = [
        UtteranceRecord(1, "Hello there. Well?", 0.0, 3.0, sentences=sentences),
        UtteranceRecord(2, "", 3.0, 5.0),  # audio input
        UtteranceRecord(3, "Later.", 3700.5, 3701.25, sentences=(Sentence("Later.", 3700.5, 3701.25),)),
    ]
    assert webvtt(said) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nHello there.\n\n00:00:01.200 --> 00:00:03.000\nWell?\n\n"
        "01:01:40.500 --> 01:01:41.250\nLater.\n"
    )
    assert webvtt([]) == "WEBVTT\n"


def test_a_long_sentence_becomes_several_cues():
    text = "word " * 60
    parts = cues(Sentence(text.strip(), 10.0, 22.0))
    assert len(parts) == 4 and parts[0][0] == 10.0 and parts[-1][1] == pytest.approx(22.0)
    assert all(b[0] == a[1] for a, b in zip(parts, parts[1:], strict=False))  # noqa: RUF007
    lines = [line for _, _, part in parts for line in part.split("\n")]
    assert max(map(len, lines)) <= LINE_CHARS and all(part.count("\n") < CUE_LINES for _, _, part in parts)
    assert " ".join(lines) == text.strip()
    assert all((end - start) == pytest.approx(12.0 * len(part) / 299, rel=0.05) for start, end, part in parts)


def test_an_interrupted_sentence_ends_with_a_dash():
    cut = UtteranceRecord(1, "One. Two.", 0.0, 1.0, True, (Sentence("One.", 0, 0.6), Sentence("Two.", 0.6, 1.0)))
    assert webvtt([cut]).endswith("00:00:00.600 --> 00:00:01.000\nTwo. —\n")


def test_markup_characters_are_escaped():
    said = UtteranceRecord(1, "", 0, 1, sentences=(Sentence("<b>1 & 2</b> --> 3", 0, 1),))
    assert "&lt;b&gt;1 &amp; 2&lt;/b&gt; --&gt; 3" in webvtt([said])


def words(*spans: tuple[str, float, float]) -> tuple[Word, ...]:
    return tuple(Word(*span) for span in spans)


def test_cues_of_a_long_sentence_start_with_their_first_word():
    text = " ".join(f"word{k:02d}" for k in range(24))
    known = words(*((f"word{k:02d}", 10 + 0.2 * k + (5 if k > 5 else 0), 10.1 + 0.2 * k) for k in range(24)))
    parts = cues(Sentence(text, 10.0, 22.0, known))
    firsts = [part.split()[0] for _, _, part in parts]
    starts = {word.text: word.start_s for word in known}
    assert len(parts) == 2 and [start for start, _, _ in parts] == [10.0, starts[firsts[1]]]
    assert [end for _, end, _ in parts] == [starts[firsts[1]], 22.0]


def test_words_get_timestamps_on_request():
    known = words(("R&D", 0.1, 0.4), ("<is> —", 0.4, 0.7), ("fun.", 0.7, 1.0))
    said = UtteranceRecord(1, "", 0, 1, sentences=(Sentence("R&D <is> — fun.", 0.1, 1.0, known),))
    timed = "R&amp;D <00:00:00.400>&lt;is&gt; — <00:00:00.700>fun."
    assert webvtt([said], words=True) == f"WEBVTT\n\n00:00:00.100 --> 00:00:01.000\n{timed}\n"
    assert "<00" not in webvtt([said])
    cut = UtteranceRecord(1, "", 0, 1, True, (Sentence("R&D <is> —", 0.1, 0.6, known[:2]),))
    assert webvtt([cut], words=True).endswith("R&amp;D <00:00:00.400>&lt;is&gt; — —\n")
    long = [Word(f"word{k:02d}", 0.1 * k, 0.1 * k + 0.1) for k in range(24)]
    parts = webvtt(
        [UtteranceRecord(1, "", 0, 3, sentences=(Sentence(" ".join(w.text for w in long), 0, 2.4, tuple(long)),))], True
    )
    for word in long[1:]:  # the first word starts with its cue
        stamp = f"00:00:0{word.start_s:.3f}"
        assert f"<{stamp}>{word.text}" in parts or f"{stamp} --> " in parts, word


@pytest.mark.parametrize(
    "text", ["שלום עולם, מה שלומך היום?", "Hi 👋🏽 👨‍👩‍👧‍👦 you", "a --> b\n\nNOTE c\n\nSTYLE", "&lt; & &amp; <c.x>"]
)
def test_any_text_gives_a_valid_cue_with_the_same_words(text):
    said = UtteranceRecord(1, "", 0, 1, sentences=(Sentence(text, 0.5, 1.5),))
    for vtt in (webvtt([said]), webvtt([said], words=True)):
        head, block = vtt.rstrip("\n").split("\n\n")  # a blank line inside would end the cue
        times, *lines = block.split("\n")
        assert (head, times) == ("WEBVTT", "00:00:00.500 --> 00:00:01.500") and "-->" not in " ".join(lines)
        read = " ".join(lines)
        assert not re.search(r"<|&(?!amp;|lt;|gt;)", read)
        assert html.unescape(read).split() == text.split()


@pytest.mark.parametrize("first", ["You", "They", "He says we"])
def test_words_with_hyphens_at_a_lines_end_keep_their_times(first):
    text = f"{first} agreed that it was a well-known state-of-the-art plan, and a long-term one, for all the others."
    spoken = words(*((word, k * 0.5, k * 0.5 + 0.4) for k, word in enumerate(text.split())))
    sentence = Sentence(text, 0.0, len(spoken) * 0.5, spoken)
    starts = {start_s: part.split()[0] for start_s, _, part in cues(sentence)}
    assert len(starts) > 1 and all(text.split()[round(start_s / 0.5)] == word for start_s, word in starts.items())
    shown = webvtt([UtteranceRecord(1, text, 0.0, 20.0, sentences=(sentence,))], words=True)
    timed = re.findall(r"<00:00:(\d\d\.\d\d\d)>(\S+)", shown)
    assert len(timed) == len(spoken) - len(starts)  # the first word of each cue has the cue's time
    assert all(html.unescape(word) == text.split()[round(float(at) / 0.5)] for at, word in timed)


def test_a_word_longer_than_a_line_gives_no_wrong_times():
    text = f"See {'a' * 60} and then go on to the next of the many pages that there are."
    spoken = words(*((word, k * 0.5, k * 0.5 + 0.4) for k, word in enumerate(text.split())))
    sentence = Sentence(text, 0.0, len(spoken) * 0.5, spoken)
    assert [part for _, _, part in cues(sentence)] == [part for _, _, part in cues(Sentence(text, 0.0, 1.0))]
    assert "<00:" not in webvtt([UtteranceRecord(1, text, 0.0, 20.0, sentences=(sentence,))], words=True)
