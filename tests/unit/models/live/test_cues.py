"""Cues and captions: times by the sound itself, and per viewer on its own clock."""

import numpy as np
import pytest

from models.live.cues import Caption, CaptionTracker, Cue, add_cue, cues_between
from models.types import Speech, Word

RATE = 1000


def speech(lead_s: float, sound_s: float, tail_s: float, text: str = "Hello there.", words: bool = True) -> Speech:
    parts = (np.zeros(round(lead_s * RATE)), np.full(round(sound_s * RATE), 0.3), np.zeros(round(tail_s * RATE)))
    half = lead_s + sound_s / 2
    known = (Word("Hello", lead_s, half), Word("there.", half, lead_s + sound_s)) if words else ()
    return Speech(np.concatenate(parts).astype(np.float32), RATE, text, words=known)


def said(*at: tuple[float, Speech]) -> list[Cue]:
    cues: list[Cue] = []
    for at_s, part in at:
        add_cue(cues, part, at_s)
    return cues


def test_a_sentence_lasts_from_its_first_sound_to_its_last():
    one, two = said((0.0, speech(0.1, 1.0, 0.4)), (1.52, speech(0.2, 0.5, 0.4, "Two.", False)))
    assert (one.number, one.start_s, one.end_s) == (1, pytest.approx(0.1), pytest.approx(1.1))
    assert (two.number, two.start_s, two.end_s) == (2, pytest.approx(1.72), pytest.approx(2.22))
    assert one.words == (Word("Hello", 0.1, 0.6), Word("there.", 0.6, 1.1)) and two.words == ()


def test_a_sentence_in_several_segments_is_one_cue():
    (cue,) = said((0.0, speech(0.1, 0.9, 0.0)), (1.0, speech(0.0, 0.7, 0.3, "")), (2.0, speech(0.0, 0.0, 0.5, "")))
    assert (cue.text, cue.start_s, cue.end_s) == ("Hello there.", pytest.approx(0.1), pytest.approx(1.7))
    assert said((0.0, speech(0.1, 0.9, 0.0, ""))) == []  # audio input


def test_cues_between_two_times_are_relative_to_the_first():
    cues = said((0.0, speech(0.1, 1.0, 0.1)), (1.2, speech(0.1, 1.0, 0.1, "Two.")))
    (inside,) = cues_between(cues, 0.64, 0.8)
    assert (inside.start_s, inside.end_s) == (pytest.approx(-0.54), pytest.approx(0.46))
    assert inside.words[1].start_s == pytest.approx(-0.04)
    assert [cue.number for cue in cues_between(cues, 1.0, 1.4)] == [1, 2] and cues_between(cues, 1.12, 1.28) == ()


def live_fragments(cues: list[Cue], end_s: float) -> list[tuple[float, tuple[Cue, ...]]]:
    """(start in the utterance, cues) of live fragments of 160 ms."""
    return [(k * 0.16, cues_between(cues, k * 0.16, (k + 1) * 0.16)) for k in range(round(end_s / 0.16))]


def test_each_sentence_is_sent_once_in_the_time_of_the_viewer():
    captions, sent = CaptionTracker(), []
    for at_s, cues in live_fragments(said((0.0, speech(0.1, 1.0, 0.1)), (1.2, speech(0.1, 1.0, 0.1, "Two."))), 2.4):
        sent += captions.update(cues, 7, 10 + at_s)
    assert sent == [
        Caption(1, "Hello there.", pytest.approx(10.1), pytest.approx(11.1), sent[0].words),
        Caption(2, "Two.", pytest.approx(11.3), pytest.approx(12.3), sent[1].words),
    ]
    assert sent[0].words[1].start_s == pytest.approx(10.6)
    assert captions.update((), 0, 12.4) == ()  # it had already ended


def test_a_viewer_who_joins_during_a_sentence_gets_it():
    late = live_fragments(said((0.0, speech(0.1, 1.0, 0.1))), 1.2)[3:]
    captions = CaptionTracker()
    (caption,) = [news for at_s, cues in late for news in captions.update(cues, 7, at_s - late[0][0])]
    assert (caption.text, caption.start_s, caption.end_s) == ("Hello there.", 0.0, pytest.approx(0.62))


def test_a_delay_moves_the_words_that_follow():
    captions, sent = CaptionTracker(), []
    for at_s, cues in live_fragments(said((0.0, speech(0.1, 1.0, 0.1))), 1.2):
        if at_s == pytest.approx(0.48):
            sent += [*captions.update((), 7, 0.48, 0.16), *captions.update((), 7, 0.64, 0.16)]
        sent += captions.update(cues, 7, at_s + (0.32 if at_s > 0.4 else 0.0))
    assert [(c.id, c.start_s, c.end_s) for c in sent] == [(1, 0.1, pytest.approx(end_s)) for end_s in (1.1, 1.26, 1.42)]
    heard, waited = sent[-1].words
    assert (heard.start_s, waited.start_s) == (pytest.approx(0.1), pytest.approx(0.6 + 0.32))
    assert captions.update((), 0, 1.44) == ()


def test_an_interrupted_caption_ends_with_the_words_that_were_heard():
    captions = CaptionTracker()
    for at_s, cues in live_fragments(said((0.0, speech(0.1, 1.0, 0.1))), 0.48):
        captions.update(cues, 7, at_s)
    (cut,) = captions.update((), 0, 0.48)
    assert (cut.id, cut.text, cut.end_s, cut.cut) == (1, "Hello", pytest.approx(0.48), True)
    assert cut.words == (Word("Hello", pytest.approx(0.1), pytest.approx(0.48)),)
    assert captions.update((), 0, 0.64) == ()  # sent once
    assert cut.as_json() == {
        "id": 1,
        "text": "Hello",
        "start_s": 0.1,
        "end_s": 0.48,
        "words": [{"text": "Hello", "start_s": 0.1, "end_s": 0.48}],
        "cut": True,
    }


def test_captions_of_two_utterances_have_different_ids():
    captions = CaptionTracker()
    first = captions.update(said((0.0, speech(0.0, 0.1, 0.06))), 7, 0.0)
    second = captions.update(said((0.0, speech(0.0, 0.1, 0.06))), 8, 5.0)
    assert (first[0].id, second[0].id, second[0].start_s) == (1, 2, 5.0)
