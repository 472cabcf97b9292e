"""The routes of the ingress over fake stages, without Ray."""

import asyncio
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException
from starlette.testclient import TestClient

from deployments.common.messages import SpeakEvent
from deployments.ingress.app import api
from deployments.ingress.deployment import Ingress

PlainIngress = next(kind for kind in Ingress.__mro__ if "reconfigure" in vars(kind))  # without Serve's wrapper

SUMMARY = {"session_id": "default", "frames": 25}
SPOKEN = [SpeakEvent(b"init"), SpeakEvent(b"one", 4), SpeakEvent(b"two", 8), SpeakEvent(summary=SUMMARY)]


class Events:
    """A streaming response: yields `items`, and raises those that are errors.

    As in Serve, `cancel` raises the error of a call that could not be sent to a replica.
    """

    def __init__(self, items) -> None:
        self.items, self.cancelled = list(items), False
        self.not_sent: RayServeException | None = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, RayServeException):
            self.not_sent = item
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True
        if self.not_sent is not None:
            raise self.not_sent


class Answers(list):
    """The answers of a method, one per call."""


class Handle:
    """A deployment handle. answers: the result of each method. `calls` and `streams` record what happened.

    uploads: the content of the uploads that calls named, which the ingress deletes afterwards.
    """

    def __init__(self, **answers) -> None:
        self.answers, self.calls, self.streams, self.uploads = answers, [], [], []

    def options(self, **options):
        return self

    def __getattr__(self, name: str):
        return SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name: str, arguments: tuple):
        self.calls.append((name, arguments))
        upload = getattr(arguments[0], "audio_path", arguments[0]) if arguments else ""
        if isinstance(upload, str) and Path(upload).is_file():
            self.uploads.append(Path(upload).read_bytes())
        answer = self.answers[name]
        if isinstance(answer, Answers):
            answer = answer.pop(0)
        if isinstance(answer, list):
            self.streams.append(Events(answer))
            return self.streams[-1]

        async def give():
            if isinstance(answer, Exception):
                raise answer
            return answer

        return give()


class EndlessSpeech:
    """A stream of speech that lasts until it is cancelled, or until its text stream ends."""

    def __init__(self) -> None:
        self.cancelled = False
        self.text_ended = asyncio.Event()

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.text_ended.wait()
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


class EndlessStitch(Handle):
    """Stitch with speech that does not end by itself. `speeches` are those of the calls of `speak`."""

    def __init__(self) -> None:
        super().__init__(session={}, feed=None)
        self.speeches: list[EndlessSpeech] = []

    def _call(self, name: str, arguments: tuple):
        if name == "speak":
            self.calls.append((name, arguments))
            self.speeches.append(EndlessSpeech())
            return self.speeches[-1]
        if name == "feed" and arguments[-1]:
            self.speeches[-1].text_ended.set()
        return super()._call(name, arguments)


def run_now(coroutine):
    """The result of a coroutine that never waits, also where an event loop runs already."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the coroutine waits for something")


def make_replica(monkeypatch, stitch=None, avatars=None, tts=None, chat=None, recognize=None, config=None):
    """The replica that the routes are bound to, until the test ends. config: of the ingress."""
    replica = PlainIngress(stitch or Handle(), avatars or Handle(), tts or Handle(), chat or Handle(), recognize)
    run_now(replica.reconfigure(config or {}))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=replica))
    return replica


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(stitch=…, avatars=…, config=…) → a client of the routes. `client.replica` is the ingress replica."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))

    def start(stitch=None, avatars=None, config=None, tts=None, chat=None, recognize=None) -> TestClient:
        client = TestClient(api, raise_server_exceptions=False)
        client.replica = make_replica(monkeypatch, stitch, avatars, tts, chat, recognize, config)
        return client

    return start


def error_of(answer) -> dict:
    """The error of a response, which has the form that all errors have."""
    assert answer.json().keys() == {"error"} and "Traceback" not in answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "remedy", "request_id"} and error["message"].endswith(".")
    return error


async def send_partly(
    path: str,
    data: bytes,
    leaves: bool = False,
    headers: dict[str, str] | None = None,
    repeat_s: float = 0.0,
    repeats: int = 10**6,
) -> tuple[int, bytes]:
    """(status, body) of a POST whose body stops after `data`, or whose client leaves then.

    repeat_s: `data` is sent again after each such time, `repeats` times, and then the body is complete.
    """
    path, _, query = path.partition("?")
    given = headers or {"content-type": "application/json"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("here", 80),
        "client": None,
    }
    arriving = [{"type": "http.request", "body": data, "more_body": True}]
    arriving += [{"type": "http.disconnect"}] if leaves else []
    sent: list[dict] = []

    async def receive():
        nonlocal repeats
        if arriving or not repeat_s:
            return arriving.pop(0) if arriving else await asyncio.sleep(3600)
        await asyncio.sleep(repeat_s)
        repeats -= 1
        return {"type": "http.request", "body": data, "more_body": repeats > 0}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(Exception):  # nothing is sent to a client that has left
        await api(scope, receive, send)
    return sent[0]["status"] if sent else 0, b"".join(message.get("body", b"") for message in sent)


async def finish_background(replica: Any) -> None:
    """Wait until everything is spoken that goes on after its response."""
    await asyncio.gather(*replica._background)


class VirtualSocket:
    """A client of /sessions/alice/ws on the loop of the test, also in virtual time.

    events: (seconds since it connected, type) of what it receives.
    """

    def __init__(self, replica: Any) -> None:
        self.replica = replica
        self.events: list[tuple[float, str]] = []
        self.sent: list[dict] = []
        self._incoming: asyncio.Queue[dict] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._began_s = asyncio.get_running_loop().time()
        scope = {
            "type": "websocket",
            "path": "/sessions/alice/ws",
            "raw_path": b"/sessions/alice/ws",
            "query_string": b"",
            "headers": [],
            "scheme": "ws",
            "server": ("here", 80),
            "client": None,
            "subprotocols": [],
        }
        self._app = asyncio.create_task(api(scope, self._incoming.get, self._send))

    async def _send(self, message: dict) -> None:
        self.sent.append(message)
        kind = json.loads(message["text"])["type"] if message.get("text") else message["type"]
        self.events.append((asyncio.get_running_loop().time() - self._began_s, kind))

    def send(self, **command: Any) -> None:
        self._incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(command)})

    def is_open(self) -> bool:
        return not self._app.done()

    async def closed_after_s(self, timeout_s: float) -> float:
        """When the server closes it. Raises TimeoutError if it stays open."""
        async with asyncio.timeout(timeout_s):
            await asyncio.wait({self._app})
        assert self.events[-1][1] == "websocket.close"
        return self.events[-1][0]

    async def leave(self) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        async with asyncio.timeout(60.0):
            await asyncio.wait({self._app})
