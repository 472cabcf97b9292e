"""Speech recognition by any server with OpenAI's `POST /v1/audio/transcriptions`: OpenAI or a local one.

The request is a form with `file` (WAV), `model`, `language` and `response_format`. The answer is JSON: `{text}`, and
with `verbose_json` also `language`, `duration` and `segments` (OpenAI API reference, "Create transcription").
"""

from __future__ import annotations

import time
from typing import Any

import httpx
import numpy as np

from models.errors import AudioError, ConfigError, InputError, StageError
from models.openai_http import (
    RetryableError,
    ServerTexts,
    check_base_url,
    client_options,
    connection_error,
    status_error,
)
from models.recognition.base import RecognizedSegment, Task, Transcript
from models.speech.audio import encode_audio
from models.types import WHISPER_HZ, Float32

OPENAI_URL = "https://api.openai.com/v1"
FORMATS = ("verbose_json", "json")  # only the first has times; newer OpenAI models support only the second
PATHS: dict[str, str] = {"transcribe": "audio/transcriptions", "translate": "audio/translations"}
CHECK_URL = "Check base_url: it usually ends with /v1."
SERVER = ServerTexts(
    "The recognition server",
    key="Set options.api_key_env to the environment variable with a valid key.",
    refused="the recording",
    instead="Send a different or shorter recording.",
)


class OpenAIRecognizer:
    """A `Recognizer`. Retries if the server is overloaded or fails."""

    io_bound = True

    def __init__(self, client: httpx.Client, model: str, response_format: str, tries: int) -> None:
        self._client, self._model, self._format, self._tries = client, model, response_format, tries

    @classmethod
    def load(
        cls,
        base_url: str = OPENAI_URL,
        model: str = "whisper-1",
        api_key_env: str | None = None,
        response_format: str = "verbose_json",
        timeout_s: float = 60.0,
        tries: int = 3,
    ) -> OpenAIRecognizer:
        """Prepare requests to `base_url` + `/audio/transcriptions`. Sends nothing before the first recording.

        api_key_env: the environment variable with the key; without it no key is sent, so that no key reaches the wrong
        server. response_format: `json` for models that give no times. timeout_s: longest wait for a connection or for
        further bytes.

        Raises ConfigError: an option is wrong.
        """
        if response_format not in FORMATS:
            raise ConfigError(f"There is no response_format {response_format!r}.", f"Use one of {', '.join(FORMATS)}.")
        check_base_url(base_url)
        if tries < 1 or timeout_s <= 0:
            raise ConfigError("tries and timeout_s must be above 0.", "Correct the options of Recognize.")
        client = httpx.Client(**client_options(base_url, api_key_env, "recognition server", timeout_s))
        return cls(client, model, response_format, tries)

    def transcribe(self, samples_16khz: Float32, language: str | None = None, task: Task = "transcribe") -> Transcript:
        """See `Recognizer`. The server decides which languages it supports.

        Raises AudioError: no samples. InputError: unknown task, or the server refuses the request. BusyError: the
        server stays overloaded. StageError: it fails, or does not answer in OpenAI's format.
        """
        samples = np.asarray(samples_16khz, np.float32)
        if samples.ndim != 1 or not len(samples):
            raise AudioError("The audio has no samples, or more than one channel.", "Send mono audio.")
        if task not in PATHS:
            raise InputError(f"There is no task {task!r}.", f"Use {' or '.join(PATHS)}.")
        form = {"model": self._model, "response_format": self._format}
        if language and task == "transcribe":  # translations detect the language
            form["language"] = language
        wav = encode_audio(samples, WHISPER_HZ, "wav")
        for attempt in range(self._tries):
            try:
                return _transcript(self._request(PATHS[task], form, wav), len(samples) / WHISPER_HZ, language or "")
            except RetryableError as retry:
                if attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                time.sleep(retry.backoff_s(attempt))
        raise AssertionError("tries is at least 1")

    def _request(self, path: str, form: dict[str, str], wav: bytes) -> Any:
        """The answer's JSON. Raises RetryableError and WarmTalkError."""
        try:
            answer = self._client.post(path, data=form, files={"file": ("speech.wav", wav, "audio/wav")})
        except httpx.TransportError as error:
            raise connection_error(SERVER, error) from error
        if answer.status_code != 200:
            raise status_error(SERVER, answer, answer.content)
        try:
            return answer.json()
        except ValueError as error:
            kind = answer.headers.get("content-type", "no type")
            raise StageError(f"The recognition server answered with {kind} instead of JSON.", CHECK_URL) from error


def _transcript(answer: Any, duration_s: float, language: str) -> Transcript:
    """The answer in `json` or `verbose_json` format. Raises StageError."""
    try:
        segments = tuple(
            RecognizedSegment(
                str(entry["text"]).strip(),
                float(entry["start"]),
                float(entry["end"]),
                entry.get("avg_logprob"),
                entry.get("no_speech_prob"),
            )
            for entry in answer.get("segments") or ()
        )
        text = str(answer["text"]).strip()
        return Transcript(text, str(answer.get("language") or language), duration_s, segments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StageError("The recognition server's answer is not in OpenAI's form.", CHECK_URL) from error
