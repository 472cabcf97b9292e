"""Converts a session's transcript to WebVTT captions."""

from __future__ import annotations

import html
import itertools
import re
import textwrap
from collections.abc import Iterable

from models.stitch.index import Sentence, UtteranceRecord
from models.types import Word

LINE_CHARS, CUE_LINES = 42, 2  # maximum size of a cue, after the BBC's subtitle guidelines
CUT = "—"  # marks an interrupted sentence
SHORTEST_CUE_S = 0.2  # for a sentence that was interrupted just after its start


def webvtt(transcript: Iterable[UtteranceRecord], words: bool = False) -> str:
    """WebVTT (W3C) with a cue per sentence, from its first sound to its last. Long sentences become several cues.

    An utterance without sentences (audio input, or an old session) has no cues. An interrupted utterance ends with a
    dash at the time of the interruption. words: add a timestamp before each word whose time is known.
    """
    blocks = ["WEBVTT"]
    for utterance in transcript:
        for number, sentence in enumerate(utterance.sentences):
            cut = utterance.interrupted and number == len(utterance.sentences) - 1
            for start_s, end_s, text in cues(sentence, cut):
                timed = words and not _breaks(sentence.text)
                inside = [w for w in sentence.words if start_s < w.start_s < end_s] if timed else []
                unspoken = 1 if cut and text.endswith(CUT) and end_s >= sentence.end_s else 0
                blocks.append(f"{_time(start_s)} --> {_time(end_s)}\n{_timed(text, inside, unspoken)}")
    return "\n\n".join(blocks) + "\n"


def cues(sentence: Sentence, cut: bool = False) -> list[tuple[float, float, str]]:
    """(start, end, text) of a sentence's cues, at most CUE_LINES lines each.

    A cue starts with its first word if word times are known, else in proportion to the number of letters.
    """
    # breaking a token at a hyphen would shift the word times after it
    lines = textwrap.wrap(sentence.text + (f" {CUT}" if cut else ""), LINE_CHARS, break_on_hyphens=False)
    texts = ["\n".join(lines[k : k + CUE_LINES]) for k in range(0, len(lines), CUE_LINES)]
    end_s = max(sentence.end_s, sentence.start_s + SHORTEST_CUE_S)
    starts_s = _word_times(sentence, texts) or _proportional(sentence.start_s, end_s, texts)
    return list(zip(starts_s, [*starts_s[1:], end_s], texts, strict=True))


def _word_times(sentence: Sentence, texts: list[str]) -> list[float] | None:
    """The start of the first word of each text; None if unknown."""
    times = {at: word.start_s for at, word in zip(_first_tokens(sentence), sentence.words, strict=True)}
    firsts = list(itertools.accumulate((len(text.split()) for text in texts), initial=0))[:-1]
    if not texts or any(at not in times for at in firsts[1:]) or not sentence.words or _breaks(sentence.text):
        return None
    return [sentence.start_s, *(times[at] for at in firsts[1:])]


def _breaks(text: str) -> bool:
    """Whether a token is longer than a line and is split: the text shown then has more tokens than the sentence."""
    return any(len(token) > LINE_CHARS for token in text.split())


def _first_tokens(sentence: Sentence) -> list[int]:
    """The index of each word's first token: a word may contain several, such as a dash that stands alone."""
    return list(itertools.accumulate((len(word.text.split()) for word in sentence.words), initial=0))[:-1]


def _proportional(start_s: float, end_s: float, texts: list[str]) -> list[float]:
    """Start times of the texts in proportion to the number of letters."""
    letters = list(itertools.accumulate(map(len, texts), initial=0))
    return [start_s + (end_s - start_s) * before / letters[-1] for before in letters[:-1]]


def _timed(text: str, inside: list[Word], unspoken: int) -> str:
    """The escaped text with a timestamp before each word of `inside`; the last `unspoken` tokens are not words."""
    parts = re.split(r"(\s+)", text)
    tokens = [k for k in range(0, len(parts), 2) if parts[k]]
    out = [html.escape(part, quote=False) for part in parts]
    at = len(tokens) - unspoken
    for word in reversed(inside):
        at -= len(word.text.split())
        if at > 0:
            out[tokens[at]] = f"<{_time(word.start_s)}>{out[tokens[at]]}"
    return "".join(out)


def _time(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
