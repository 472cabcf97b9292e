"""Text to speech by any server with OpenAI's `POST /v1/audio/speech`: OpenAI or a local one.

One request per sentence: `{model, input, voice, response_format, speed}`. The answer is an audio file, or raw 16-bit
little-endian mono PCM, which is spoken while it arrives (OpenAI API reference, "Create speech").
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from models.errors import AudioError, ConfigError, StageError
from models.openai_http import (
    RetryableError,
    ServerTexts,
    check_base_url,
    client_options,
    connection_error,
    error_body,
    status_error,
)
from models.speech.audio import decode_audio, resample
from models.speech.readable import check_text
from models.speech.text import MAX_SENTENCE_CHARS, split_sentences
from models.tts.base import ENGINE_MAX_CHARS, check_speed, check_voice
from models.tts.streaming import speech_pieces
from models.types import Float32, Speech

OPENAI_URL = "https://api.openai.com/v1"
SAMPLE_RATE_HZ = 24_000  # of OpenAI's `pcm`; other formats are resampled to it
SPEEDS = (0.25, 4.0)  # OpenAI API reference
FORMATS = ("pcm", "wav", "mp3", "flac", "opus", "aac")
BLOCK_BYTES = 2**14  # a third of a second of pcm

SERVER = ServerTexts(
    "The speech server",
    key="Set options.api_key_env to the environment variable with a valid key.",
    refused="the text or the voice",
    instead="Change the text or the voice.",
)


class OpenAITTS:
    """A `TTSEngine`. Each sentence is one request, sent after the previous sentence has been yielded."""

    io_bound = True

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
        """Prepare requests to `base_url` + `/audio/speech`. Sends nothing before the first text.

        voices: names to accept besides `voice`; None accepts any and lets the server decide. api_key_env: the
        environment variable with the key; without it no key is sent, so that no key reaches the wrong server.
        response_format: only `pcm` streams. sample_rate_hz: of the server's pcm. timeout_s: longest wait for a
        connection or for further bytes. tries: per sentence. max_mb: largest answer for one sentence.

        Raises ConfigError: an option is wrong.
        """
        if response_format not in FORMATS:
            raise ConfigError(f"There is no response_format {response_format!r}.", f"Use one of {', '.join(FORMATS)}.")
        check_base_url(base_url)
        if tries < 1 or timeout_s <= 0 or sample_rate_hz <= 0 or max_mb <= 0:
            raise ConfigError(
                "tries, timeout_s, sample_rate_hz and max_mb must be above 0.", "Correct the options of TTS."
            )
        client = httpx.Client(**client_options(base_url, api_key_env, "speech server", timeout_s))
        names = list(dict.fromkeys([voice, *(voices or [])]))
        return cls(client, model, names, voices is not None, response_format, sample_rate_hz, tries, max_mb)

    def voices(self) -> list[str]:
        """The configured names; the first is the default."""
        return list(self._voices)

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> Iterator[Speech]:
        """Yield each sentence when it arrives: with `pcm` in pieces (models/tts/streaming.py), else as a whole.

        Raises at the call: TextError, InputError. While iterating: InputError if the server refuses the request,
        BusyError if it stays overloaded, StageError if it fails, breaks off, or does not answer with audio.
        """
        if self._strict:
            check_voice(voice, self._voices)
        check_speed(speed, *SPEEDS)
        sentences = split_sentences(check_text(text, ENGINE_MAX_CHARS, language=""), MAX_SENTENCE_CHARS)
        return self._speak(sentences, voice or self._voices[0], speed)

    def _speak(self, sentences: list[str], voice: str, speed: float) -> Iterator[Speech]:
        for index, sentence in enumerate(sentences):
            body = {"model": self._model, "input": sentence, "voice": voice, "response_format": self._format}
            blocks = self._blocks({**body, "speed": speed})
            last = index == len(sentences) - 1
            yield from speech_pieces(blocks, self.sample_rate_hz, sentence, last, speed, stream=self._format == "pcm")

    def _blocks(self, body: dict[str, Any]) -> Iterator[Float32]:
        """Yield blocks of float32 mono (n,).

        Retries if the server is overloaded, fails or breaks off, but not after the first block: another rendering would
        not continue the first one.
        """
        for attempt in range(self._tries):
            started = False
            try:
                for block in self._request(body):
                    started = True
                    yield block
                return
            except RetryableError as retry:
                if started or attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                time.sleep(retry.backoff_s(attempt))

    def _request(self, body: dict[str, Any]) -> Iterator[Float32]:
        with self._answer(body) as answer:
            if self._format == "pcm":
                yield from _samples(self._limited(answer))
                return
            data = b"".join(self._limited(answer))
        if _is_truncated_wav(data):
            raise RetryableError(StageError("The speech server's answer is incomplete.", "Read the server's log."))
        try:
            samples, rate_hz = decode_audio(data)
        except AudioError as error:
            raise StageError(
                f"The speech server's answer is not audio: {error.message}",
                f"Check that it supports response_format {self._format!r}.",
            ) from error
        yield resample(samples, rate_hz, self.sample_rate_hz)

    @contextmanager
    def _answer(self, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """An answer with status 200 whose body is not read yet. Raises RetryableError and WarmTalkError."""
        try:
            with self._client.stream("POST", "audio/speech", json=body) as answer:
                if answer.status_code != 200:
                    raise status_error(SERVER, answer, error_body(answer))
                kind = answer.headers.get("content-type", "")
                if kind.startswith(("text/", "application/json")):
                    raise StageError(f"The speech server answered with {kind} instead of audio.", "Check base_url.")
                yield answer
        except httpx.TransportError as error:
            raise connection_error(SERVER, error) from error

    def _limited(self, answer: httpx.Response) -> Iterator[bytes]:
        size = 0
        for part in answer.iter_bytes(BLOCK_BYTES):
            size += len(part)
            if size > self._max_bytes:
                raise StageError(f"The audio of one sentence exceeds {self._max_bytes / 2**20:g} MB.", "Raise max_mb.")
            yield part


def _samples(parts: Iterator[bytes]) -> Iterator[Float32]:
    """16-bit little-endian bytes in parts of any size → float32 in [-1, 1). Raises StageError if there are none."""
    data = rest = b""
    for part in parts:
        data = rest + part
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768.0
    if not data:
        raise StageError("The speech server's answer is empty.", "Check that it supports response_format 'pcm'.")


def _is_truncated_wav(data: bytes) -> bool:
    """True if a WAV is shorter than its header says. The header of a streamed WAV has 0 or the maximum."""
    size = int.from_bytes(data[4:8], "little")
    return data[:4] == b"RIFF" and 0 < size < 0x7FFFFFFF and size + 8 > len(data)
