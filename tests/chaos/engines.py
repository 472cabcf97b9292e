"""Engines of the chaos graph: no networks, so that a replica starts in seconds and renders far faster than real time.

Each asks `faults.strike` before a call. Every session speaks with a tone of its own pitch, so that speech which reaches
another session is heard there, and every character of a text takes two frames, so that a lost frame is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from models.recognition.base import Transcript
from models.speech.readable import check_text
from models.speech.text import split_sentences
from models.types import CROP_PX, RESTORED_PX, Float16, Speech, UInt8
from tests.chaos.faults import strike

RATE_HZ, FPS = 24_000, 25
FRAMES_PER_CHARACTER = 2
VAE = "chaos"  # the fingerprint of LipSync and of the avatar
LOUDNESS = 0.3


def expected_frames(text: str) -> int:
    """The number of video frames of a text."""
    return sum(FRAMES_PER_CHARACTER * len(sentence) for sentence in split_sentences(check_text(text)))


class Tone:
    """A voice: a tone, 80 ms per character. The name of the voice is its pitch in Hz."""

    sample_rate_hz = RATE_HZ
    any_voice = True

    @classmethod
    def load(cls) -> Tone:
        return cls()

    def voices(self) -> list[str]:
        return ["400"]

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        sentences = split_sentences(check_text(text))
        for number, sentence in enumerate(sentences, 1):
            strike("TTS", 1)
            count = FRAMES_PER_CHARACTER * len(sentence) * RATE_HZ // FPS
            samples = LOUDNESS * np.sin(2 * np.pi * float(voice or 400) * np.arange(count) / RATE_HZ)
            yield Speech(samples.astype(np.float32), RATE_HZ, sentence, last=number == len(sentences))


class Faces:
    """A lip-sync engine: grey faces."""

    vae_fingerprint = VAE

    @classmethod
    def load(cls, *paths: Any, **options: Any) -> Faces:
        import torch  # noqa: F401 - for the errors of `strike`, which must not wait for it

        return cls()

    def generate(self, latents: Float16, windows: Float16) -> UInt8:
        strike("LipSync", len(latents))
        return np.full((len(latents), CROP_PX, CROP_PX, 3), 128, np.uint8)


class Restorer:
    """A restoration engine: a constant face of 512 px."""

    @classmethod
    def load(cls, **options: Any) -> Restorer:
        import torch  # noqa: F401 - for the errors of `strike`, which must not wait for it

        return cls()

    def restore(self, faces: UInt8, strength: float = 1.0) -> UInt8:
        strike("Enhance", len(faces))
        return np.full((len(faces), RESTORED_PX, RESTORED_PX, 3), 128, np.uint8)


class Recognizer:
    """A recognition engine that hears the same in everything."""

    @classmethod
    def load(cls, **options: Any) -> Recognizer:
        return cls()

    def transcribe(self, samples: Any, language: str | None = None, task: str = "transcribe") -> Transcript:
        strike("Recognize", 1)
        return Transcript("I hear a tone.", "en", len(samples) / 16_000)


class Windows:
    """What a WhisperFeatures of zeros returns: as a tensor, as far as AudioFeatures uses it."""

    def __init__(self, count: int) -> None:
        self._values = np.zeros((count, 50, 384), np.float32)

    def cpu(self) -> Windows:
        return self

    def numpy(self) -> Any:
        return self._values


class Encoder:
    """A WhisperFeatures of zeros."""

    def windows(self, samples: Any, fps: int = FPS, *arguments: Any) -> Windows:
        strike("AudioFeatures", 1)
        return Windows(len(samples) * fps // 16_000)

    windows_in_context = windows
