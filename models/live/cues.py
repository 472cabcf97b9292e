"""What is heard when: sentences as cues, and what a viewer who joins anywhere is told of them. Pure.

Every live piece carries the cues that sound in it, in seconds from its own first frame. So a viewer needs nothing that
came before: who joins in the middle of a sentence, misses pieces, or sees the head wait, is told the times that hold on
its own clock; and a sentence that ends sooner than it should have was cut there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.tts.streaming import sound_bounds
from models.types import Speech, Word

SAME_S = 0.02  # half a frame: times that differ by less are the same


@dataclass(frozen=True, slots=True)
class Cue:
    """A sentence as it is heard, from its first sound to its last, in seconds of somebody's clock.

    number: from 1, within its utterance. words: where the voice knows them, else none.
    """

    number: int
    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()

    def shifted(self, by_s: float) -> Cue:
        """The same on a clock that shows `by_s` more."""
        words = tuple(Word(word.text, word.start_s + by_s, word.end_s + by_s) for word in self.words)
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s, words=words)

    def truncated(self, end_s: float) -> Cue:
        """What was heard of it up to a time: words that had begun."""
        end_s = max(self.start_s, min(self.end_s, end_s))
        words = tuple(replace(w, end_s=min(w.end_s, end_s)) for w in self.words if w.start_s < end_s)
        text = " ".join(word.text for word in words) if self.words else self.text
        return replace(self, text=text, end_s=end_s, words=words)


@dataclass(frozen=True, slots=True)
class Caption:
    """What a viewer is told of a sentence, in seconds of its own stream; a later one of the same id replaces it.

    cut: it was interrupted where it ends; text and words are then those that were heard.
    """

    id: int
    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()
    cut: bool = False

    def as_json(self) -> dict[str, Any]:
        """As JSON: times to the millisecond."""
        words = [{"text": w.text, "start_s": round(w.start_s, 3), "end_s": round(w.end_s, 3)} for w in self.words]
        times = {"start_s": round(self.start_s, 3), "end_s": round(self.end_s, 3)}
        return {"id": self.id, "text": self.text, **times, "words": words, "cut": self.cut}


def add_cue(cues: list[Cue], speech: Speech, at_s: float) -> None:
    """Add the sentence of a segment that begins at `at_s`; a segment without text goes on with the sentence before."""
    begin, end = sound_bounds(speech.samples, speech.sample_rate_hz)
    start_s, end_s = at_s + begin / speech.sample_rate_hz, at_s + end / speech.sample_rate_hz
    if speech.text:
        words = tuple(Word(w.text, w.start_s + at_s, w.end_s + at_s) for w in speech.words)
        cues.append(Cue(len(cues) + 1, speech.text, start_s, end_s, words))
    elif cues and end > begin:
        cues[-1] = replace(cues[-1], end_s=end_s)


def cues_between(cues: Sequence[Cue], start_s: float, end_s: float) -> tuple[Cue, ...]:
    """The cues that sound within a span, moved to a clock that is 0 at its start."""
    return tuple(cue.shifted(-start_s) for cue in cues if cue.start_s < end_s and cue.end_s > start_s)


class CaptionTracker:
    """What one viewer has been told."""

    def __init__(self) -> None:
        self._told: dict[int, Caption] = {}  # of the latest utterance, by the number of the cue
        self._utterance = 0
        self._ids = itertools.count(1)

    def take(self, cues: Sequence[Cue], utterance: int, at_s: float, held_s: float = 0.0) -> tuple[Caption, ...]:
        """What is new with a piece that is shown from `at_s` on.

        utterance: its number, 0 where nobody speaks. held_s: how long speech waits in it.
        """
        news: list[Caption] = []
        if utterance != self._utterance:
            news += [_cut(told, at_s) for told in self._told.values() if told.end_s > at_s + SAME_S]
            self._told, self._utterance = {}, utterance
        if held_s:
            waiting = [_cue(n, told) for n, told in self._told.items() if told.end_s > at_s + SAME_S]
            cues = [cue.shifted(held_s - at_s) for cue in waiting]
        for cue in cues:
            known, here = self._told.get(cue.number), cue.shifted(at_s)
            if known is None:  # it may have begun before this viewer came
                self._told[cue.number] = Caption(
                    next(self._ids), here.text, max(0.0, here.start_s), here.end_s, here.words
                )
            elif abs(known.end_s - here.end_s) > SAME_S:  # what was heard of it stays where it was
                heard = [word for word in known.words if word.start_s < at_s]
                words = (*heard, *here.words[len(heard) :])
                self._told[cue.number] = replace(known, end_s=here.end_s, words=words)
            else:
                continue
            news.append(self._told[cue.number])
        return tuple(news)


def _cue(number: int, told: Caption) -> Cue:
    return Cue(number, told.text, told.start_s, told.end_s, told.words)


def _cut(told: Caption, end_s: float) -> Caption:
    heard = _cue(0, told).truncated(end_s)
    return Caption(told.id, heard.text, heard.start_s, heard.end_s, heard.words, cut=True)
