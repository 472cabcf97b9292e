"""A voice behind any OpenAI-compatible `POST /v1/audio/speech`: OpenAI's own, or a local server. Knows nothing of Ray.

The request is `{model, input, voice, response_format, speed}`, one a sentence. The answer is a sound file; or raw pcm,
16-bit little-endian mono, which is spoken while it still comes (OpenAI API reference, "Create speech").
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from models.errors import AudioError, ConfigError, InputError, StageError
from models.openai_http import (
    Retry,
    Server,
    check_address,
    client_options,
    head,
    lost,
    refusal,
)
from models.speech.audio import decode_audio, resample
from models.speech.text import MAX_SENTENCE_CHARS, check_text, split_sentences
from models.tts.streaming import speech_pieces
from models.types import Float32, Speech

OPENAI_URL = "https://api.openai.com/v1"
SAMPLE_RATE_HZ = 24_000  # of OpenAI's `pcm`; other formats say theirs and are brought to this one
SPEEDS = (0.25, 4.0)  # OpenAI API reference
ENGINE_MAX_CHARS = 100_000  # the TTS stage's own limit is lower
FORMATS = ("pcm", "wav", "mp3", "flac", "opus", "aac")
BLOCK_BYTES = 2**14  # a third of a second of pcm


SERVER = Server(
    "The speech server",
    key="Name its environment variable in options.api_key_env.",
    asked="the text or the voice",
    instead="Change the text or the voice.",
)


class OpenAITTS:
    """A `TTSEngine`. Each sentence is one request, sent when the one before it has been spoken."""

    io_bound = True  # utterances are spoken side by side: nothing is computed here

    def __init__(
        self,
        client: httpx.Client,
        model: str,
        voices: list[str],
        strict: bool,
        response_format: str,
        sample_rate_hz: int,
        tries: int,
        max_mb: float,
    ) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._client = client
        self._model = model
        self._voices = voices
        self._strict, self.any_voice = strict, not strict
        self._format = response_format
        self._tries = tries
        self._max_bytes = round(max_mb * 2**20)

    @classmethod
    def load(
        cls,
        base_url: str = OPENAI_URL,
        model: str = "gpt-4o-mini-tts",
        voice: str = "alloy",
        voices: list[str] | None = None,
        api_key_env: str | None = None,
        response_format: str = "pcm",
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        timeout_s: float = 30.0,
        tries: int = 3,
        max_mb: float = 64.0,
    ) -> OpenAITTS:
        """Prepare requests to `base_url` + `/audio/speech`; nothing is sent before the first text.

        voices: names to accept besides `voice`; None leaves it to the server to refuse. api_key_env: the environment
        variable that holds the key; it must be named, so that a key never goes to a server that it was not meant for.
        response_format: `pcm` streams; sample_rate_hz: of the server's pcm. timeout_s: without a byte. max_mb: of one
        sentence. Raises ConfigError.
        """
        if response_format not in FORMATS:
            raise ConfigError(f"There is no format {response_format!r}.", f"Use one of {', '.join(FORMATS)}.")
        check_address(base_url)
        if tries < 1 or timeout_s <= 0 or sample_rate_hz <= 0 or max_mb <= 0:
            raise ConfigError("tries, timeout_s, sample_rate_hz and max_mb must be above 0.", "Mend the TTS options.")
        client = httpx.Client(**client_options(base_url, api_key_env, "speech server", timeout_s))
        names = list(dict.fromkeys([voice, *(voices or [])]))
        return cls(client, model, names, voices is not None, response_format, sample_rate_hz, tries, max_mb)

    def voices(self) -> list[str]:
        """The configured names; the first is the default."""
        return list(self._voices)

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield each sentence as it comes: with `pcm` in pieces of whole seconds (models/tts/streaming.py), else whole.

        Raises TextError and InputError at the call; at an item InputError for what the server refuses, BusyError where
        it stays overloaded, and StageError where it fails, breaks off, or answers with something that is no sound.
        """
        if voice is not None and self._strict and voice not in self._voices:
            raise InputError(f"There is no voice {voice!r}.", f"Use one of {', '.join(self._voices)}.")
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise InputError(f"The speed {speed} is out of range.", f"Use a speed from {SPEEDS[0]} to {SPEEDS[1]}.")
        sentences = split_sentences(check_text(text, ENGINE_MAX_CHARS, language=""), MAX_SENTENCE_CHARS)
        return self._speak(sentences, voice or self._voices[0], speed)

    def _speak(self, sentences: list[str], voice: str, speed: float) -> Iterator[Speech]:
        for index, sentence in enumerate(sentences):
            body = {"model": self._model, "input": sentence, "voice": voice, "response_format": self._format}
            blocks = self._sound({**body, "speed": speed})
            last = index == len(sentences) - 1
            yield from speech_pieces(blocks, self.sample_rate_hz, sentence, last, speed, stream=self._format == "pcm")

    def _sound(self, body: dict[str, Any]) -> Iterator[Float32]:
        """Blocks of float32 mono (n,). Tries again where the server is overloaded, fails or breaks off, but never after
        sound has been given out: a second rendering would not fit on to the first."""
        for attempt in range(self._tries):
            given = False
            try:
                for block in self._request(body):
                    given = True
                    yield block
                return
            except Retry as retry:
                if given or attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                time.sleep(retry.pause_s(attempt))

    def _request(self, body: dict[str, Any]) -> Iterator[Float32]:
        with self._answer(body) as answer:
            if self._format == "pcm":
                yield from _samples(self._limited(answer))
                return
            data = b"".join(self._limited(answer))
        if _breaks_off(data):
            raise Retry(StageError("The speech server's answer broke off.", "Look at its log."))
        try:
            samples, rate_hz = decode_audio(data)
        except AudioError as error:
            raise StageError(
                f"The speech server's answer is not sound: {error.message}",
                f"Check that it knows response_format {self._format!r}.",
            ) from error
        yield resample(samples, rate_hz, self.sample_rate_hz)

    @contextmanager
    def _answer(self, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """An answer of status 200 whose body is still to come. Raises Retry and WarmTalkError."""
        try:
            with self._client.stream("POST", "audio/speech", json=body) as answer:
                if answer.status_code != 200:
                    raise refusal(SERVER, answer, head(answer))
                kind = answer.headers.get("content-type", "")
                if kind.startswith(("text/", "application/json")):
                    raise StageError(f"The speech server answered with {kind} instead of sound.", "Check base_url.")
                yield answer
        except httpx.TransportError as error:
            raise lost(SERVER, error) from error

    def _limited(self, answer: httpx.Response) -> Iterator[bytes]:
        size = 0
        for part in answer.iter_bytes(BLOCK_BYTES):
            size += len(part)
            if size > self._max_bytes:
                raise StageError(f"One sentence exceeds {self._max_bytes / 2**20:g} MB of sound.", "Raise max_mb.")
            yield part


def _samples(parts: Iterator[bytes]) -> Iterator[Float32]:
    """16-bit little-endian bytes, cut anywhere → float32 in [-1, 1). Raises StageError where there are none."""
    data = rest = b""
    for part in parts:
        data = rest + part
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768.0
    if not data:
        raise StageError("The speech server's answer is empty.", "Check that it knows response_format 'pcm'.")


def _breaks_off(data: bytes) -> bool:
    """Whether a WAV is shorter than its header says; a streamed one says 0 or the most that fits."""
    size = int.from_bytes(data[4:8], "little")
    return data[:4] == b"RIFF" and 0 < size < 0x7FFFFFFF and size + 8 > len(data)
