"""Shared by the clients of OpenAI-compatible servers: options of the HTTP client, retries, and HTTP errors as ours."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from models.errors import BusyError, ConfigError, InputError, StageError, WarmTalkError

CONNECT_TIMEOUT_S = 5.0
BACKOFF_S = 0.5  # doubled at each try
MAX_WAIT_S = 10.0  # also if Retry-After asks for more: a viewer does not wait longer
MAX_ERROR_BYTES = 2**16  # bytes of an error's body that are read
MAX_QUOTED_CHARS = 200  # characters of the server's message that our error repeats


class RetryableError(Exception):
    """A failure that may not happen again. error: what to raise when no try is left. wait_s: from Retry-After."""

    def __init__(self, error: WarmTalkError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s

    def backoff_s(self, attempt: int) -> float:
        """Seconds to wait after try number `attempt`, counted from 0: Retry-After, or 0.5, 1, 2, … s."""
        return min(self.wait_s or BACKOFF_S * 2**attempt, MAX_WAIT_S)


@dataclass(frozen=True, slots=True)
class ServerTexts:
    """The words that error messages use for one kind of server.

    name: begins a sentence. key: the remedy for a refused key. refused, instead: what a 400 refuses, and its remedy.
    check: the remedy for any other status.
    """

    name: str
    key: str
    refused: str
    instead: str
    check: str = "Check base_url and model."


def check_base_url(base_url: str) -> None:
    """Raises ConfigError unless it begins with http:// or https://."""
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"base_url {base_url!r} is not a URL.", "Use a URL such as http://127.0.0.1:8000/v1.")


def client_options(base_url: str, api_key_env: str | None, server: str, timeout_s: float) -> dict[str, Any]:
    """Arguments for httpx.Client and httpx.AsyncClient.

    server: what an error calls it. timeout_s: limit for each connect, read and write, not for the whole answer.
    Raises ConfigError.
    """
    return {
        "base_url": base_url.rstrip("/") + "/",
        "headers": authorization(api_key_env, server),
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
    }


def authorization(api_key_env: str | None, server: str) -> dict[str, str]:
    """The Authorization header with the key in environment variable `api_key_env`; empty for None.

    Raises ConfigError if the variable is not set.
    """
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"The environment variable {api_key_env} is not set.",
            f"Set it to the API key of the {server} before Ray starts.",
        )
    return {"Authorization": f"Bearer {key}"}


def connection_error(server: ServerTexts, error: httpx.TransportError) -> RetryableError:
    """A failed connection or a timeout as an error to raise."""
    name = server.name[0].lower() + server.name[1:]
    if isinstance(error, httpx.TimeoutException):
        return RetryableError(StageError(f"{server.name} did not answer in time.", "Raise timeout_s."))
    return RetryableError(
        StageError(f"The connection to {name} failed: {error}.", "Check the address and that the server runs.")
    )


def status_error(server: ServerTexts, answer: httpx.Response, body: bytes) -> Exception:
    """A status other than 200 as an error to raise: RetryableError for 429 and 5xx, else InputError or StageError.

    body: at least the first MAX_ERROR_BYTES of the answer's body.
    """
    reason, status, name = _error_message(body, answer.reason_phrase), answer.status_code, server.name
    if status == 429:
        return RetryableError(BusyError(f"{name} is overloaded: {reason}", "Try again later."), retry_after_s(answer))
    if status >= 500:
        return RetryableError(StageError(f"{name} failed with {status}: {reason}", "Read the server's log."))
    if status in (401, 403):
        return StageError(f"{name} refused the key ({status}).", server.key)
    if status in (400, 413, 422):
        return InputError(f"{name} refused {server.refused}: {reason}", server.instead)
    return StageError(f"{name} answered {status}: {reason}", server.check)


def _error_message(body: bytes, reason: str) -> str:
    """The message of a body of the form `{"error": {"message"}}`, else the status's reason phrase, as a sentence."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reason
    return as_sentence(message)


def as_sentence(message: object) -> str:
    """A server's message on one line, at most MAX_QUOTED_CHARS long, ending with a full stop."""
    words = " ".join(str(message).split())[:MAX_QUOTED_CHARS] or "no reason given"
    return words if words[-1] in ".!?" else words + "."


def error_body(answer: httpx.Response) -> bytes:
    """The beginning of a streamed answer's body, for `status_error`; empty if the connection fails."""
    try:
        return next(answer.iter_bytes(MAX_ERROR_BYTES), b"")
    except httpx.HTTPError:
        return b""


async def error_body_async(answer: httpx.Response) -> bytes:
    """The same for an asynchronous client; what has arrived if the connection fails."""
    data = b""
    with suppress(httpx.HTTPError):
        async for part in answer.aiter_bytes():
            data += part
            if len(data) >= MAX_ERROR_BYTES:
                break
    return data


def retry_after_s(answer: httpx.Response) -> float | None:
    """The Retry-After header in seconds; None if it is missing or a date."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
