"""Timeouts and retries of an API call, the same for both clients: they only differ in how they send and sleep."""

from __future__ import annotations

import time
from typing import Any

import httpx

from warmtalk.client.calls import ApiCall
from warmtalk.client.errors import ServerError, Unreachable, error_of

BACKOFF_S = 0.5  # doubled at each attempt
MAX_WAIT_S = 10.0  # upper limit for the server's Retry-After
CONNECT_TIMEOUT_S = 5.0


class Attempts:
    """The attempts of one call: the request's arguments, and after a failure the pause before the next attempt."""

    def __init__(self, call: ApiCall[Any], tries: int, timeout_s: float) -> None:
        self._call, self._tries, self._made = call, tries, 0
        self._timeout_s = call.timeout_s or timeout_s
        self._end_s = time.monotonic() + self._timeout_s

    def arguments(self) -> dict[str, Any]:
        """Arguments of httpx's `build_request` for the next attempt."""
        self._made += 1
        return {**self._call.arguments(), "timeout": timeouts(self._timeout_s)}

    def pause_after_error(self, error: httpx.TransportError) -> float:
        """Seconds to wait after no answer came. Raises Unreachable if the call must not be repeated."""
        may_retry = self._call.idempotent or isinstance(error, httpx.ConnectError)
        if self._is_last() or not may_retry:
            raise unreachable(error) from error
        return self._backoff_s()

    def pause_after_refusal(self, answer: httpx.Response, body: bytes) -> float:
        """Seconds to wait after an answer that is not 2xx. Raises the ServerError of the answer instead of a retry."""
        pause_s = self._retry_after_s(answer)
        too_late = time.monotonic() + pause_s > self._end_s
        if self._is_last() or too_late or not self._call.may_retry(answer.status_code):
            raise error_of(answer.status_code, body)
        return pause_s

    def _is_last(self) -> bool:
        return self._made == self._tries or not self._call.replayable

    def _backoff_s(self) -> float:
        return BACKOFF_S * 2.0 ** (self._made - 1)

    def _retry_after_s(self, answer: httpx.Response) -> float:
        try:
            wait_s = float(answer.headers["retry-after"])
        except (KeyError, ValueError):
            wait_s = self._backoff_s()
        return min(max(wait_s, 0.0), MAX_WAIT_S)


def timeouts(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))


def unreachable(error: httpx.TransportError) -> Unreachable:
    if isinstance(error, httpx.TimeoutException):
        remedy = "Raise timeout_s, or read the server's log."
        return Unreachable("timeout", "The server did not answer in time.", remedy)
    remedy = "Check its address; `warmtalk serve` starts one."
    return Unreachable("unreachable", f"The server cannot be reached: {str(error).rstrip('.')}.", remedy)


def broken_off(error: httpx.TransportError) -> Unreachable:
    return Unreachable("broken_off", f"The connection broke during the answer: {error}.", "Try again.")


def parsed_json(data: bytes, status: int) -> Any:
    """The JSON of an answer. Raises ServerError."""
    try:
        return httpx.Response(200, content=data).json()
    except ValueError as error:
        raise ServerError("bad_answer", "The answer is not JSON.", "Check the address.", status) from error
