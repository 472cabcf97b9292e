"""A session's transcript as WebVTT captions. Knows no files and no HTTP."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from models.stitch.index import Sentence, Utterance

LINE_CHARS, CUE_LINES = 42, 2  # the BBC's subtitle guidelines: two lines that the eye takes in at once
SHORTEST_CUE_S = 0.2  # of what was cut just after it began


def webvtt(transcript: Iterable[Utterance]) -> str:
    """WebVTT (W3C) with a cue for each sentence, long ones in several cues, timed by their share of the letters.

    An utterance without sentences (a recording, or of an older session) has none. One that was cut ends where it was
    cut, with a dash.
    """
    blocks = ["WEBVTT"]
    for utterance in transcript:
        for number, sentence in enumerate(utterance.sentences):
            cut = utterance.interrupted and number == len(utterance.sentences) - 1
            blocks += [_block(start_s, end_s, text) for start_s, end_s, text in cues(sentence, cut)]
    return "\n\n".join(blocks) + "\n"


def cues(sentence: Sentence, cut: bool = False) -> list[tuple[float, float, str]]:
    """(start, end, text) of a sentence's cues, at most CUE_LINES lines each."""
    lines = textwrap.wrap(sentence.text + (" —" if cut else ""), LINE_CHARS)
    texts = ["\n".join(lines[k : k + CUE_LINES]) for k in range(0, len(lines), CUE_LINES)]
    letters = sum(map(len, texts))
    duration_s = max(sentence.end_s - sentence.start_s, SHORTEST_CUE_S)
    out, begun = [], 0
    for text in texts:
        start_s = sentence.start_s + duration_s * begun / letters
        begun += len(text)
        out.append((start_s, sentence.start_s + duration_s * begun / letters, text))
    return out


def _block(start_s: float, end_s: float, text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_time(start_s)} --> {_time(end_s)}\n{escaped}"


def _time(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
