"""What clients of OpenAI-compatible servers share: a retry with its wait, the header of a key, refusals in words."""

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
LONGEST_WAIT_S = 10.0  # a server may ask for more with Retry-After; a viewer will not wait that long
ERROR_BYTES = 2**16  # of an error's body that are read
QUOTE_CHARS = 200  # of a server's own words in our error


class Retry(Exception):
    """What may be gone at the next try; `error` is what to raise where it is not."""

    def __init__(self, error: WarmTalkError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s

    def pause_s(self, attempt: int) -> float:
        """How long to wait behind the so-manyth try, counted from 0: what the server asks, or twice as long each."""
        return min(self.wait_s or BACKOFF_S * 2**attempt, LONGEST_WAIT_S)


@dataclass(frozen=True, slots=True)
class Server:
    """How errors speak of a server. name: begins a sentence. key: where its key is set. asked, instead: what it may
    refuse, and what to do then. check: what may be wrong where it answers anything else."""

    name: str
    key: str
    asked: str
    instead: str
    check: str = "Check base_url and model."


def check_address(base_url: str) -> None:
    """Raises ConfigError for what is no address."""
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"base_url {base_url!r} is not an address.", "It looks like http://127.0.0.1:8000/v1.")


def client_options(base_url: str, api_key_env: str | None, whose: str, timeout_s: float) -> dict[str, Any]:
    """Of an httpx client, plain or asynchronous. timeout_s: without a byte. Raises ConfigError."""
    return {
        "base_url": base_url.rstrip("/") + "/",
        "headers": authorization(api_key_env, whose),
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
    }


def lost(server: Server, error: httpx.TransportError) -> Retry:
    """What broke a connection, or kept it silent, as an error that may pass."""
    name = server.name[0].lower() + server.name[1:]
    if isinstance(error, httpx.TimeoutException):
        return Retry(StageError(f"{server.name} did not answer in time.", "Raise timeout_s."))
    return Retry(StageError(f"The connection to {name} failed: {error}.", "Check its address, and the server."))


def refusal(server: Server, answer: httpx.Response, body: bytes) -> Exception:
    """An answer's status as an error: Retry for 429 and 5xx, which may pass; InputError or StageError for the rest.

    body: of the answer, its first ERROR_BYTES at the least.
    """
    said, status, name = _said(body, answer.reason_phrase), answer.status_code, server.name
    if status == 429:
        return Retry(BusyError(f"{name} is overloaded: {said}", "Try again later."), retry_after_s(answer))
    if status >= 500:
        return Retry(StageError(f"{name} failed with {status}: {said}", "Look at its log."))
    if status in (401, 403):
        return StageError(f"{name} refused the key ({status}).", server.key)
    if status in (400, 413, 422):
        return InputError(f"{name} refused {server.asked}: {said}", server.instead)
    return StageError(f"{name} answered {status}: {said}", server.check)


def _said(body: bytes, reason: str) -> str:
    """The message of an error's body, `{"error": {"message"}}` where it has that form, as a sentence."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reason
    return sentence(message)


def sentence(said: object) -> str:
    """A server's own words, shortened to a sentence that can be quoted."""
    words = " ".join(str(said).split())[:QUOTE_CHARS] or "no reason given"
    return words if words[-1] in ".!?" else words + "."


def head(answer: httpx.Response) -> bytes:
    """The first of a streamed answer's body, as much as `refusal` wants; what has come where it breaks off."""
    try:
        return next(answer.iter_bytes(ERROR_BYTES), b"")
    except httpx.HTTPError:
        return b""


async def head_async(answer: httpx.Response) -> bytes:
    """As `head`, of an asynchronous client."""
    data = b""
    with suppress(httpx.HTTPError):
        async for part in answer.aiter_bytes():
            data += part
            if len(data) >= ERROR_BYTES:
                break
    return data


def authorization(api_key_env: str | None, whose: str) -> dict[str, str]:
    """The header with the key that this environment variable holds; none without a name. Raises ConfigError."""
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"The environment variable {api_key_env} is not set.", f"Set it to the {whose}'s key, where Ray starts."
        )
    return {"Authorization": f"Bearer {key}"}


def retry_after_s(answer: httpx.Response) -> float | None:
    """The seconds that an answer asks to wait; None where it says none, or a date."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
