"""Requests that several graph tests make, and waiting with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

TEXT = "Hello there. This is a test of the whole graph."


def speak(client: httpx.Client, text: str = TEXT, **options: Any) -> dict[str, Any]:
    answer = client.post("/speak", json={"text": text, **options})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer: a code, a message, a remedy and its request id, without a traceback."""
    assert "Traceback" not in answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "remedy", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return dict(error)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0, every_s: float = 0.05) -> Any:
    """Poll until the condition is true; return its value. Fails after `timeout_s`, which only a broken graph needs."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)
    return value
