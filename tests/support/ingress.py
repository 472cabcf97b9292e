"""The routes of the ingress over fake handles, for the tests of what it answers: no Ray, no other process."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from deployments.common.messages import SpeakEvent
from deployments.ingress.deployment import Ingress
from deployments.ingress.responses import BoundedJson, api
from deployments.ingress.security.allowed_hosts import KnownHosts
from deployments.ingress.security.auth import Access
from deployments.ingress.security.origins import SameOrigin


class Events:
    """A streaming response: yields `items`, raising those that are errors."""

    def __init__(self, items) -> None:
        self.items, self.cancelled = list(items), False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True


class Turns(list):
    """Answers of a method, one a call."""


class Handle:
    """A deployment: `answers` says what each method gives; `asked` and `made` remember."""

    def __init__(self, **answers) -> None:
        self.answers, self.asked, self.made = answers, [], []

    def options(self, **options):
        return self

    def __getattr__(self, name: str):
        return SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name: str, arguments: tuple):
        self.asked.append((name, arguments))
        answer = self.answers[name]
        if isinstance(answer, Turns):
            answer = answer.pop(0)
        if isinstance(answer, list):
            self.made.append(Events(answer))
            return self.made[-1]

        async def give():
            if isinstance(answer, Exception):
                raise answer
            return answer

        return give()


SUMMARY = {"session_id": "default", "frames": 25}


SPOKEN = [SpeakEvent(b"init"), SpeakEvent(b"one", 4), SpeakEvent(b"two", 8), SpeakEvent(summary=SUMMARY)]


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(stitch=…, avatars=…, config=…) → a client of the routes, bound to an ingress over fake handles."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    for kind, name in (
        (BoundedJson, "max_bytes"),
        (Access, "keys"),
        (Access, "login_s"),
        (KnownHosts, "allowed"),
        (SameOrigin, "allowed"),
    ):
        monkeypatch.setattr(kind, name, getattr(kind, name))  # what a config sets ends with the test

    def start(stitch=None, avatars=None, config=None, tts=None, chat=None, recognize=None) -> TestClient:
        plain = next(kind for kind in Ingress.__mro__ if "_answer" in vars(kind))  # without Serve's wrapping
        served = plain(stitch or Handle(), avatars or Handle(), tts or Handle(), chat or Handle(), recognize)
        asyncio.run(served.reconfigure(config or {}))
        monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=served))
        return TestClient(api, raise_server_exceptions=False)

    return start


def error_of(answer) -> dict:
    assert answer.json().keys() == {"error"} and "Traceback" not in answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "remedy"} and error["message"].endswith(".")
    return error


async def half_sent(
    path: str,
    data: bytes,
    leaves: bool = False,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    drips_s: float = 0.0,
    drips: int = 10**6,
) -> tuple[int, bytes]:
    """(status, body) of a request whose body breaks off: the client leaves, or says nothing more; or with `drips_s`
    sends the same again so often, and so many times.
    """
    path, _, query = path.partition("?")
    given = headers or {"content-type": "application/json"}
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    scope |= {
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("here", 80),
        "client": None,
    }
    coming = [{"type": "http.request", "body": data, "more_body": True}]
    coming += [{"type": "http.disconnect"}] if leaves else []
    sent: list[dict] = []

    async def receive():
        nonlocal drips
        if coming or not drips_s:
            return coming.pop(0) if coming else await asyncio.sleep(60)
        await asyncio.sleep(drips_s)
        drips -= 1
        return {"type": "http.request", "body": data, "more_body": drips > 0}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(Exception):  # of a client that has left, nobody is told
        await api(scope, receive, send)
    return sent[0]["status"] if sent else 0, b"".join(message.get("body", b"") for message in sent)
