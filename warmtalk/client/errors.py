"""What a call can raise. Each says what happened and what to do next, in the server's own words where it has some.

ServerError
├── Unreachable    no answer came: the server is down, or the network
├── Busy           429, 503: queues are full; tried again already
├── NotFound       404
├── Refused        other 4xx: what was sent cannot be used
│   └── Unauthorized   401: the server wants a key, or another one: `api_key`, or $WARMTALK_API_KEY
└── ChatFailed     a chat job that ended without an answer
"""

from __future__ import annotations

import json
from typing import Any


class ServerError(Exception):
    """code: stable and short. message: one sentence. remedy: one sentence, or "". status: of HTTP, 0 where none."""

    def __init__(self, code: str, message: str, remedy: str = "", status: int = 0) -> None:
        super().__init__(code, message, remedy, status)
        self.code, self.message, self.remedy, self.status = code, message, remedy, status

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class Unreachable(ServerError):
    """No answer came."""


class Busy(ServerError):
    """The server has no room at the moment."""


class NotFound(ServerError):
    """There is no such session, avatar or job."""


class Refused(ServerError):
    """What was sent cannot be used."""


class Unauthorized(Refused):
    """The server wants a key, or another one."""


class ChatFailed(ServerError):
    """A chat job ended without an answer."""


def error_of(status: int, body: bytes) -> ServerError:
    """The error of an answer that is not 2xx; whatever a proxy may have put in its place included."""
    said: dict[str, Any] = {}
    try:
        said = json.loads(body)["error"]
        code, message, remedy = str(said["code"]), str(said["message"]), str(said.get("remedy", ""))
    except (ValueError, KeyError, TypeError):
        code, message, remedy = f"http_{status}", f"The server answered {status}.", "Look at its log."
    return _kind(status)(code, message, remedy, status)


def _kind(status: int) -> type[ServerError]:
    if status in (429, 503):
        return Busy
    if status == 401:
        return Unauthorized
    if status == 404:
        return NotFound
    return Refused if 400 <= status < 500 else ServerError
