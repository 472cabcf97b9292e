"""Both clients prepare an avatar over real connections: a server without room is asked again, with the whole file."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from warmtalk import AsyncClient, Busy, Client, Prepared, Progress, Unreachable

VIDEO = os.urandom(3 * 2**20 + 7)  # more than the buffers of a connection hold
REPORT = [{"step": "finding faces", "done": 1, "total": 2}, {"report": {"frames": 2}}]


@dataclass
class Door:
    """A server that refuses with (status, Retry-After) once it has read so many bytes of the body; then it prepares."""

    refusals: list[tuple[int, str, int]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    grows: Path | None = None  # a file that grows while it is sent

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        status, retry_after, most = self.refusals.pop(0) if self.refusals else (200, "", 2**40)
        head, _, body = self._read(connection, b"", lambda data: b"\r\n\r\n" in data).partition(b"\r\n\r\n")
        self.heads.append(head)
        if self.grows:
            with self.grows.open("ab") as file:
                file.write(b"more")
        length = int(next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))[15:])
        wanted = min(length, most)
        self.bodies.append(self._read(connection, body, lambda data: len(data) >= wanted))
        error = {"error": {"code": "busy", "message": "It is full.", "remedy": "Wait."}}
        lines = [error] if status != 200 else REPORT
        answer = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        fields = f"Content-Length: {len(answer)}\r\nConnection: close\r\n"
        fields += f"Retry-After: {retry_after}\r\n" if retry_after else ""
        connection.sendall(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode() + answer)
        if len(self.bodies[-1]) < length:  # as servers do: the rest is taken, and of no interest
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**20):
                pass

    def _read(self, connection: socket.socket, data: bytes, enough: Callable[[bytes], bool]) -> bytes:
        parts = [data]
        while not enough(b"".join(parts)) and (part := connection.recv(2**20)):
            parts.append(part)
        return b"".join(parts)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def url(door: Door) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=door.serve, args=(listening,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert not thread.is_alive()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "me.mp4"
    path.write_bytes(VIDEO)
    return path


@pytest.fixture(params=["sync", "async"])
def prepare(request: pytest.FixtureRequest, url: str) -> Callable[..., Prepared]:
    def waiting(video: Path, server: str = url, **options: Any) -> Prepared:
        with Client(server, **options) as asked:
            return asked.prepare(video, "me", told.append, fps=30)

    async def awaiting(video: Path, server: str = url, **options: Any) -> Prepared:
        async with AsyncClient(server, **options) as asked:
            return await asked.prepare(video, "me", told.append, fps=30)

    told: list[Progress] = []
    if request.param == "sync":
        return waiting
    return lambda *arguments, **options: asyncio.run(awaiting(*arguments, **options))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("read", [0, 100_000, 2**40], ids=["before", "amid", "behind"])
def test_a_server_without_room_is_asked_again_with_the_whole_file(
    prepare: Any, door: Door, video: Path, waits: list[float], status: int, read: int
) -> None:
    door.refusals = [(status, "2", read), (status, "", read)]
    assert prepare(video) == Prepared("me", {"frames": 2})
    assert waits == [2.0, 1.0]  # what the server asked for; else the second of the client's own
    assert len(door.bodies) == 3 and door.bodies[-1] == VIDEO
    for head in door.heads:
        assert head.startswith(b"POST /avatars?avatar_id=me&fps=30 ")
        assert f"content-length: {len(VIDEO)}".encode() in head.lower() and b"transfer-encoding" not in head.lower()


def test_the_file_is_sent_as_long_as_it_was_announced(prepare: Any, door: Door, video: Path) -> None:
    door.grows = video
    assert prepare(video) == Prepared("me", {"frames": 2})
    assert door.bodies == [VIDEO]


def test_as_often_as_other_calls_and_no_more(prepare: Any, door: Door, video: Path, waits: list[float]) -> None:
    door.refusals = [(429, "0.5", 0)] * 9
    with pytest.raises(Busy, match="It is full. Wait."):
        prepare(video, tries=2)
    assert len(door.heads) == 2 and waits == [0.5]


def test_a_wait_beyond_the_timeout_is_not_begun(
    prepare: Any, door: Door, video: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmtalk.client.calls.LONG_S", 1.5)
    door.refusals = [(503, "1", 0), (503, "9", 0)]
    with pytest.raises(Busy):
        prepare(video)
    assert len(door.heads) == 2 and waits == [1.0]  # the 9 s would have ended too late


@pytest.mark.parametrize("refusals", [[(500, "", 0)], [(502, "", 2**40)], [(422, "1", 0)]])
def test_what_may_have_been_begun_or_cannot_be_used_is_not_sent_again(
    prepare: Any, door: Door, video: Path, waits: list[float], refusals: Any
) -> None:
    door.refusals = list(refusals)
    with pytest.raises(Exception, match="It is full"):
        prepare(video)
    assert len(door.heads) == 1 and waits == []


def test_what_nobody_took_is_sent_again(prepare: Any, video: Path, waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unreachable, match="cannot be reached"):
        prepare(video, nobody)
    assert waits == [0.5, 1.0]


def test_a_missing_file_is_found_before_anything_is_sent(prepare: Any, door: Door, tmp_path: Path) -> None:
    began_s = time.monotonic()
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "none.mp4")
    assert door.heads == [] and time.monotonic() - began_s < 2
