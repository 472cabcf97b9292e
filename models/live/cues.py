"""Sentences with times (cues), and the captions that a viewer of a live stream receives.

Every live fragment carries the cues that sound in it, with times relative to its first frame. So a viewer needs no
earlier data: it can join in the middle of a sentence, miss fragments or see a delay, and still gets times on its own
clock. A sentence that ends earlier than announced was interrupted there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.tts.streaming import sound_bounds
from models.types import Speech, Word

SAME_S = 0.02  # half a frame: times that differ by less count as equal


@dataclass(frozen=True, slots=True)
class Cue:
    """A sentence from its first sound to its last, in seconds of the clock that the context defines.

    number: position within its utterance, from 1. words: empty if the TTS engine gives no word times.
    """

    number: int
    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()

    def shifted(self, by_s: float) -> Cue:
        """The same cue on a clock that is `by_s` ahead."""
        words = tuple(Word(word.text, word.start_s + by_s, word.end_s + by_s) for word in self.words)
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s, words=words)

    def truncated(self, end_s: float) -> Cue:
        """The part that was heard up to `end_s`: words that started before it."""
        end_s = max(self.start_s, min(self.end_s, end_s))
        words = tuple(replace(w, end_s=min(w.end_s, end_s)) for w in self.words if w.start_s < end_s)
        text = " ".join(word.text for word in words) if self.words else self.text
        return replace(self, text=text, end_s=end_s, words=words)


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence as sent to a viewer, in seconds of the viewer's stream. A later caption with the same id replaces it.

    cut: the sentence was interrupted at `end_s`; text and words contain only what was heard.
    """

    id: int
    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()
    cut: bool = False

    def as_json(self) -> dict[str, Any]:
        """A JSON object, with times rounded to milliseconds."""
        words = [{"text": w.text, "start_s": round(w.start_s, 3), "end_s": round(w.end_s, 3)} for w in self.words]
        times = {"start_s": round(self.start_s, 3), "end_s": round(self.end_s, 3)}
        return {"id": self.id, "text": self.text, **times, "words": words, "cut": self.cut}


def add_cue(cues: list[Cue], speech: Speech, at_s: float) -> None:
    """Append the sentence of a segment that starts at `at_s`. A segment without text extends the last sentence."""
    begin, end = sound_bounds(speech.samples, speech.sample_rate_hz)
    start_s, end_s = at_s + begin / speech.sample_rate_hz, at_s + end / speech.sample_rate_hz
    if speech.text:
        words = tuple(Word(w.text, w.start_s + at_s, w.end_s + at_s) for w in speech.words)
        cues.append(Cue(len(cues) + 1, speech.text, start_s, end_s, words))
    elif cues and end > begin:
        cues[-1] = replace(cues[-1], end_s=end_s)


def cues_between(cues: Sequence[Cue], start_s: float, end_s: float) -> tuple[Cue, ...]:
    """The cues that sound between two times, relative to `start_s`."""
    return tuple(cue.shifted(-start_s) for cue in cues if cue.start_s < end_s and cue.end_s > start_s)


class CaptionTracker:
    """Tracks which captions one viewer has received."""

    def __init__(self) -> None:
        self._sent: dict[int, Caption] = {}  # captions of the current utterance, by cue number
        self._utterance = 0
        self._ids = itertools.count(1)

    def update(self, cues: Sequence[Cue], utterance: int, at_s: float, delay_s: float = 0.0) -> tuple[Caption, ...]:
        """The captions that are new or changed with a live fragment that starts at `at_s`.

        utterance: its number, 0 if nobody speaks. delay_s: how long the fragment delays the rest of the speech.
        """
        news: list[Caption] = []
        # 1. another utterance: the sentences of the previous one end here
        if utterance != self._utterance:
            news += [_truncated(sent, at_s) for sent in self._sent.values() if sent.end_s > at_s + SAME_S]
            self._sent, self._utterance = {}, utterance
        # 2. a delay: the sentences that have not ended move
        if delay_s:
            delayed = [_cue(n, sent) for n, sent in self._sent.items() if sent.end_s > at_s + SAME_S]
            cues = [cue.shifted(delay_s - at_s) for cue in delayed]
        # 3. new sentences, and changed ends
        for cue in cues:
            sent, here = self._sent.get(cue.number), cue.shifted(at_s)
            if sent is None:  # the sentence may have started before this viewer joined
                self._sent[cue.number] = Caption(
                    next(self._ids), here.text, max(0.0, here.start_s), here.end_s, here.words
                )
            elif abs(sent.end_s - here.end_s) > SAME_S:  # words already heard keep their times
                heard = [word for word in sent.words if word.start_s < at_s]
                words = (*heard, *here.words[len(heard) :])
                self._sent[cue.number] = replace(sent, end_s=here.end_s, words=words)
            else:
                continue
            news.append(self._sent[cue.number])
        return tuple(news)


def _cue(number: int, sent: Caption) -> Cue:
    return Cue(number, sent.text, sent.start_s, sent.end_s, sent.words)


def _truncated(sent: Caption, end_s: float) -> Caption:
    heard = _cue(0, sent).truncated(end_s)
    return Caption(sent.id, heard.text, heard.start_s, heard.end_s, heard.words, cut=True)
