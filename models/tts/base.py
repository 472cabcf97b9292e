"""The protocol of a voice. Knows nothing of faces, sessions, HTTP or Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from models.types import Speech


class TTSEngine(Protocol):
    """Speaks text a segment (a sentence) at a time.

    An engine is made by its class method `load(**options)`, with the options of the stage's config. One thread uses it,
    unless it has an attribute `io_bound = True`: it waits for a server, and several threads may use it at once.

    `any_voice = True`: what `voices()` does not name may be a voice all the same.

    An engine that fetches voices at their first use has a method `missing_voices() -> dict[str, int]`: the bytes to fetch, by
    the name of each voice that is not here; and `fetch_voice(voice)`, which raises WeightsError. Neither loads anything, and
    any thread may call them while another speaks.
    """

    sample_rate_hz: int

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield one Speech a sentence, the last with `last=True`. Raises TextError for empty or unspeakable text.

        An engine that streams may yield a sentence in pieces: all but its final one of whole seconds (models/tts/streaming.py).
        """
        ...

    def voices(self) -> list[str]:
        """Names that `speak` accepts as `voice`; the first is the default."""
        ...
