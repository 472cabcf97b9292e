"""A session's transcript as WebVTT captions. Knows no files and no HTTP."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable

from models.stitch.index import Sentence, UtteranceRecord
from models.types import Word

LINE_CHARS, CUE_LINES = 42, 2  # the BBC's subtitle guidelines: two lines that the eye takes in at once
CUT = "—"
SHORTEST_CUE_S = 0.2  # of what was cut just after it began


def webvtt(transcript: Iterable[UtteranceRecord], words: bool = False) -> str:
    """WebVTT (W3C) with a cue for each sentence, from its first sound to its last; long ones in several cues.

    An utterance without sentences (a recording, or of an older session) has none. One that was cut ends where it was
    cut, with a dash. words: with a timestamp before each word whose time the voice knows.
    """
    blocks = ["WEBVTT"]
    for utterance in transcript:
        for number, sentence in enumerate(utterance.sentences):
            cut = utterance.interrupted and number == len(utterance.sentences) - 1
            for start_s, end_s, text in cues(sentence, cut):
                timed = words and not _breaks(sentence.text)
                inside = [w for w in sentence.words if start_s < w.start_s < end_s] if timed else []
                unheard = 1 if cut and text.endswith(CUT) and end_s >= sentence.end_s else 0
                blocks.append(f"{_time(start_s)} --> {_time(end_s)}\n{_timed(text, inside, unheard)}")
    return "\n\n".join(blocks) + "\n"


def cues(sentence: Sentence, cut: bool = False) -> list[tuple[float, float, str]]:
    """(start, end, text) of a sentence's cues, at most CUE_LINES lines each.

    They change where their words are heard, or else by their share of the letters.
    """
    # a token that is broken would be two, and the words behind it shown at the times of those before them
    lines = textwrap.wrap(sentence.text + (f" {CUT}" if cut else ""), LINE_CHARS, break_on_hyphens=False)
    texts = ["\n".join(lines[k : k + CUE_LINES]) for k in range(0, len(lines), CUE_LINES)]
    end_s = max(sentence.end_s, sentence.start_s + SHORTEST_CUE_S)
    starts_s = _heard(sentence, texts) or _shared(sentence.start_s, end_s, texts)
    return list(zip(starts_s, [*starts_s[1:], end_s], texts, strict=True))


def _heard(sentence: Sentence, texts: list[str]) -> list[float] | None:
    """When the first word of each text is heard; None where that is not known."""
    times = {at: word.start_s for at, word in zip(_places(sentence), sentence.words, strict=True)}
    firsts = list(itertools.accumulate((len(text.split()) for text in texts), initial=0))[:-1]
    if not texts or any(at not in times for at in firsts[1:]) or not sentence.words or _breaks(sentence.text):
        return None
    return [sentence.start_s, *(times[at] for at in firsts[1:])]


def _breaks(text: str) -> bool:
    """Whether a token is too long for a line, and is broken: what is shown then has more tokens than was said."""
    return any(len(token) > LINE_CHARS for token in text.split())


def _places(sentence: Sentence) -> list[int]:
    """Which token of the text each word begins with: a word may hold marks that stand alone."""
    return list(itertools.accumulate((len(word.text.split()) for word in sentence.words), initial=0))[:-1]


def _shared(start_s: float, end_s: float, texts: list[str]) -> list[float]:
    letters = list(itertools.accumulate(map(len, texts), initial=0))
    return [start_s + (end_s - start_s) * begun / letters[-1] for begun in letters[:-1]]


def _timed(text: str, inside: list[Word], unheard: int) -> str:
    """The text, escaped, with a timestamp before each word of `inside`; behind the last come `unheard` tokens."""
    parts = re.split(r"(\s+)", text)
    tokens = [k for k in range(0, len(parts), 2) if parts[k]]
    out = [_escaped(part) for part in parts]
    at = len(tokens) - unheard
    for word in reversed(inside):
        at -= len(word.text.split())
        if at > 0:
            out[tokens[at]] = f"<{_time(word.start_s)}>{out[tokens[at]]}"
    return "".join(out)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
