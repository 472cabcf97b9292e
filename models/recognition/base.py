"""What a speech recogniser is: sound in, text with its times out. Knows no chat, no HTTP and no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from models.types import Float32

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class RecognizedSegment:
    """A stretch of speech, seconds from the first sample. The two figures are None where an engine has none.

    logprob: mean natural logarithm of the probability of its tokens. no_speech: the engine's own doubt, 0 to 1, that
    anything was said around it.
    """

    text: str
    start_s: float
    end_s: float
    logprob: float | None = None
    no_speech: float | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said; `text` is empty where nothing was. language: ISO 639-1, empty where it is not known."""

    text: str
    language: str = ""
    duration_s: float = 0.0
    segments: tuple[RecognizedSegment, ...] = ()


class Recognizer(Protocol):
    """Hears speech.

    An engine is made by its class method `load(**options)`, with the options of the stage's config. One thread uses it,
    unless it has an attribute `io_bound = True`: it waits for a server, and several threads may use it at once.
    """

    def transcribe(self, samples_16khz: Float32, language: str | None = None, task: Task = "transcribe") -> Transcript:
        """Text of float32 mono `(n,)` in [-1, 1] at 16 kHz, of any length.

        language: ISO 639-1; None lets the engine find out. task: `translate` gives English. Raises AudioError for
        samples that are none, InputError for a language or a task that the engine does not know.
        """
        ...
