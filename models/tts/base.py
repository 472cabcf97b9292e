"""The protocol of text-to-speech engines, and the checks that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from models.errors import InputError
from models.types import Speech

ENGINE_MAX_CHARS = 100_000  # longest text that an engine accepts; the TTS stage's own limit is lower


class TTSEngine(Protocol):
    """Speaks text segment by segment; a segment is a sentence.

    The class method `load(**options)` creates an engine from the options in the stage's config. One thread uses it.

    Optional attributes and methods:
    `language = "en"`: ISO 639-1 code; what a voice of this language cannot read is left out of each text, with a
    warning (models/speech/readable.py). Without it, all scripts are kept.
    `io_bound = True`: it waits for a server, so several threads may call it at once.
    `any_voice = True`: `speak` may also accept voices that `voices()` does not list.
    `missing_voices() -> dict[str, int]`: voices that would be downloaded at first use, with their size in bytes.
    `fetch_voice(voice)`: downloads one; raises WeightsError. Both load no model, and any thread may call them while
    another one speaks.
    """

    sample_rate_hz: int

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield one Speech per sentence, the final one with `last=True`.

        A streaming engine may yield a sentence in several pieces; all but the final piece of a sentence must last whole
        seconds (models/tts/streaming.py).

        Raises TextError: the text is empty or cannot be spoken.
        """
        ...

    def voices(self) -> list[str]:
        """Names that `speak` accepts as `voice`; the first is the default."""
        ...


def check_voice(voice: str | None, known: Sequence[str]) -> None:
    """Raises InputError unless `voice` is None or one of `known`."""
    if voice is not None and voice not in known:
        raise InputError(f"There is no voice {voice!r}.", f"Use one of {', '.join(known)}.")


def check_speed(speed: float, lowest: float, highest: float) -> None:
    """Raises InputError unless `speed` is a number from `lowest` to `highest`."""
    if not lowest <= speed <= highest:
        raise InputError(f"The speed {speed} is out of range.", f"Use a speed from {lowest} to {highest}.")
