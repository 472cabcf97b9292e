"""Errors of the clients: what happened and what to do next, in the server's words if it sent any.

ServerError
├── Unreachable    no answer: the server or the network is down
├── Busy           429, 503: queues are full; raised after the retries
├── NotFound       404
├── Refused        other 4xx: the request is invalid
│   └── Unauthorized   401: the server requires a key, or another one: `api_key`, or $WARMTALK_API_KEY
└── ChatFailed     a chat job ended without an answer
"""

from __future__ import annotations

import json
from typing import Any


class ServerError(Exception):
    """code: short and stable. message, remedy: one sentence each, the remedy may be "". status: HTTP status or 0."""

    def __init__(self, code: str, message: str, remedy: str = "", status: int = 0) -> None:
        super().__init__(code, message, remedy, status)
        self.code, self.message, self.remedy, self.status = code, message, remedy, status

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class Unreachable(ServerError):
    """No answer came."""


class Busy(ServerError):
    """The server's queues are full."""


class NotFound(ServerError):
    """There is no such session, avatar or job."""


class Refused(ServerError):
    """The request is invalid."""


class Unauthorized(Refused):
    """The server requires a key, or another one."""


class ChatFailed(ServerError):
    """A chat job ended without an answer."""


def error_of(status: int, body: bytes) -> ServerError:
    """The error of an answer that is not 2xx; the body may be a proxy's."""
    try:
        sent: dict[str, Any] = json.loads(body)["error"]
        code, message, remedy = str(sent["code"]), str(sent["message"]), str(sent.get("remedy", ""))
    except (ValueError, KeyError, TypeError):
        code, message, remedy = f"http_{status}", f"The server answered with status {status}.", "Read its log."
    return _kind(status)(code, message, remedy, status)


def _kind(status: int) -> type[ServerError]:
    if status in (429, 503):
        return Busy
    if status == 401:
        return Unauthorized
    if status == 404:
        return NotFound
    return Refused if 400 <= status < 500 else ServerError
