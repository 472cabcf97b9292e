"""A recogniser behind any OpenAI-compatible `POST /v1/audio/transcriptions`: OpenAI's own, or a local server. No Ray.

The request is a form of `file` (WAV), `model`, `language`, `response_format`; the answer JSON: `{text}`, and with
`verbose_json` also `language`, `duration` and `segments` (OpenAI API reference, "Create transcription").
"""

from __future__ import annotations

import time
from typing import Any

import httpx
import numpy as np

from models.errors import AudioError, ConfigError, InputError, StageError
from models.openai_http import (
    Retry,
    Server,
    check_address,
    client_options,
    lost,
    refusal,
)
from models.recognition.base import RecognizedSegment, Task, Transcript
from models.speech.audio import encode_audio
from models.types import WHISPER_HZ, Float32

OPENAI_URL = "https://api.openai.com/v1"
FORMATS = ("verbose_json", "json")  # the first has times; newer models of OpenAI's know the second alone
PATHS: dict[str, str] = {"transcribe": "audio/transcriptions", "translate": "audio/translations"}
CHECK_URL = "Check base_url: it usually ends with /v1."
SERVER = Server(
    "The recognition server",
    key="Name its variable in options.api_key_env.",
    asked="the recording",
    instead="Send another, or a shorter one.",
)


class OpenAIRecognizer:
    """A `Recognizer`. Tries again where the server is overloaded or fails."""

    io_bound = True  # recordings are heard side by side: nothing is computed here

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
        """Prepare requests to `base_url` + `/audio/transcriptions`; nothing is sent before the first recording.

        api_key_env: the environment variable that holds the key; it must be named, so that a key never goes to a server
        that it was not meant for. response_format: `json` for models that give no times. timeout_s: without a byte.
        Raises ConfigError.
        """
        if response_format not in FORMATS:
            raise ConfigError(f"There is no format {response_format!r}.", f"Use one of {', '.join(FORMATS)}.")
        check_address(base_url)
        if tries < 1 or timeout_s <= 0:
            raise ConfigError("tries and timeout_s must be above 0.", "Mend Recognize's options.")
        client = httpx.Client(**client_options(base_url, api_key_env, "recognition server", timeout_s))
        return cls(client, model, response_format, tries)

    def transcribe(self, samples_16khz: Float32, language: str | None = None, task: Task = "transcribe") -> Transcript:
        """See `Recognizer`; what languages there are is the server's to say.

        Raises AudioError for no samples, InputError for what the server refuses, BusyError where it stays overloaded,
        and StageError where it fails or answers in another form.
        """
        samples = np.asarray(samples_16khz, np.float32)
        if samples.ndim != 1 or not len(samples):
            raise AudioError("There is no speech: no samples at all.", "Send sound of one channel.")
        if task not in PATHS:
            raise InputError(f"There is no task {task!r}.", f"Use {' or '.join(PATHS)}.")
        form = {"model": self._model, "response_format": self._format}
        if language and task == "transcribe":  # translations find it out themselves
            form["language"] = language
        sound = encode_audio(samples, WHISPER_HZ, "wav")
        for attempt in range(self._tries):
            try:
                return _transcript(self._request(PATHS[task], form, sound), len(samples) / WHISPER_HZ, language or "")
            except Retry as retry:
                if attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                time.sleep(retry.pause_s(attempt))
        raise AssertionError("tries is at least 1")

    def _request(self, path: str, form: dict[str, str], sound: bytes) -> Any:
        """The answer's JSON. Raises Retry and WarmTalkError."""
        try:
            answer = self._client.post(path, data=form, files={"file": ("speech.wav", sound, "audio/wav")})
        except httpx.TransportError as error:
            raise lost(SERVER, error) from error
        if answer.status_code != 200:
            raise refusal(SERVER, answer, answer.content)
        try:
            return answer.json()
        except ValueError as error:
            kind = answer.headers.get("content-type", "no type")
            raise StageError(f"The recognition server answered with {kind} instead of JSON.", CHECK_URL) from error


def _transcript(answer: Any, duration_s: float, language: str) -> Transcript:
    """An answer of either format. Raises StageError."""
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
