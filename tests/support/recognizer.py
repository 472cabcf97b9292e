"""A speech recognizer that reports the duration of a recording, for tests of the code around recognizers."""

from __future__ import annotations

from typing import Any, ClassVar

from models.errors import ConfigError, InputError
from models.recognition.base import RecognizedSegment, Transcript
from models.types import WHISPER_HZ


class DurationRecognizer:
    """Recognizes the duration in tenths of a second; nothing in silence. calls: (samples, language, task)."""

    loads: ClassVar[list[str]] = []
    calls: ClassVar[list[tuple[int, str | None, str]]] = []

    def __init__(self, unit: str) -> None:
        self.unit = unit

    @classmethod
    def load(cls, unit: str = "tenths") -> DurationRecognizer:
        if unit == "miles":
            raise ConfigError("There is no unit 'miles'.", "Use tenths.")
        cls.loads.append(unit)
        return cls(unit)

    def transcribe(self, samples_16khz: Any, language: str | None = None, task: str = "transcribe") -> Transcript:
        self.calls.append((len(samples_16khz), language, task))
        if language == "xx":
            raise InputError("There is no language 'xx'.", "Use en.")
        duration_s = len(samples_16khz) / WHISPER_HZ
        if abs(samples_16khz).max() < 1e-3:
            return Transcript("", "en", duration_s)
        half_s = round(duration_s / 2, 3)
        words = (f"{round(10 * duration_s)} {self.unit}.", "<b> & so on.")
        parts = (
            RecognizedSegment(words[0], 0.0, half_s, -0.2, 0.01),
            RecognizedSegment(words[1], half_s, round(duration_s, 3), -0.3, 0.02),
        )
        return Transcript(" ".join(words), language or "en", duration_s, parts)
