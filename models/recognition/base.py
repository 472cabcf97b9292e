"""The protocol of speech recognition engines: audio in, text with times out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from models.types import Float32

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class RecognizedSegment:
    """A part of the recognised text; times are seconds from the first sample.

    logprob: mean natural logarithm of the tokens' probabilities. no_speech: probability, 0 to 1, that there is no
    speech. Both are None if the engine does not give them.
    """

    text: str
    start_s: float
    end_s: float
    logprob: float | None = None
    no_speech: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The recognised text, empty if there was no speech. language: ISO 639-1, empty if not known."""

    text: str
    language: str = ""
    duration_s: float = 0.0
    segments: tuple[RecognizedSegment, ...] = ()


class Recognizer(Protocol):
    """Converts speech to text.

    The class method `load(**options)` creates an engine from the options in the stage's config. One thread uses it,
    unless it has the attribute `io_bound = True`: then it waits for a server, and several threads may use it at once.
    """

    def transcribe(self, samples_16khz: Float32, language: str | None = None, task: Task = "transcribe") -> Transcript:
        """Recognise float32 mono `(n,)` in [-1, 1] at 16 kHz, of any length.

        language: ISO 639-1; None: the engine detects it. task: `translate` gives English text.

        Raises AudioError: the samples are empty or not float mono. InputError: unknown language or task.
        """
        ...
