"""Both clients upload a video over real sockets: what is retried, and that every attempt sends the whole file."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from warmtalk import AsyncClient, Busy, Client, Prepared, Progress, Unreachable

VIDEO = os.urandom(3 * 2**20 + 7)  # more than the socket buffers hold
REPORT = [{"step": "finding faces", "done": 1, "total": 2}, {"report": {"frames": 2}}]


@dataclass
class UploadServer:
    """Answers with the `refusals` (status, Retry-After, bytes of the body read before it answers), then accepts."""

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
        if len(self.bodies[-1]) < length:  # real servers also read and drop the rest
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**20):
                pass

    def _read(self, connection: socket.socket, data: bytes, enough: Callable[[bytes], bool]) -> bytes:
        parts = [data]
        while not enough(b"".join(parts)) and (part := connection.recv(2**20)):
            parts.append(part)
        return b"".join(parts)


@pytest.fixture
def server() -> UploadServer:
    return UploadServer()


@pytest.fixture
def url(server: UploadServer) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.serve, args=(listening,), daemon=True)
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
    def waiting(video: Path, address: str = url, **options: Any) -> Prepared:
        with Client(address, **options) as asked:
            return asked.prepare(video, "me", reported.append, fps=30)

    async def awaiting(video: Path, address: str = url, **options: Any) -> Prepared:
        async with AsyncClient(address, **options) as asked:
            return await asked.prepare(video, "me", reported.append, fps=30)

    reported: list[Progress] = []
    if request.param == "sync":
        return waiting
    return lambda *arguments, **options: asyncio.run(awaiting(*arguments, **options))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("read", [0, 100_000, 2**40], ids=["before the body", "within it", "after it"])
def test_a_busy_server_is_retried_with_the_whole_file(
    prepare: Any, server: UploadServer, video: Path, waits: list[float], status: int, read: int
) -> None:
    server.refusals = [(status, "2", read), (status, "", read)]
    assert prepare(video) == Prepared("me", {"frames": 2})
    assert waits == [2.0, 1.0]  # Retry-After, then the second step of the backoff
    assert len(server.bodies) == 3 and server.bodies[-1] == VIDEO
    for head in server.heads:
        assert head.startswith(b"POST /avatars?avatar_id=me&fps=30 ")
        assert f"content-length: {len(VIDEO)}".encode() in head.lower() and b"transfer-encoding" not in head.lower()


def test_a_growing_file_is_sent_with_its_announced_length(prepare: Any, server: UploadServer, video: Path) -> None:
    server.grows = video
    assert prepare(video) == Prepared("me", {"frames": 2})
    assert server.bodies == [VIDEO]


def test_uploads_obey_the_number_of_tries(prepare: Any, server: UploadServer, video: Path, waits: list[float]) -> None:
    server.refusals = [(429, "0.5", 0)] * 9
    with pytest.raises(Busy, match="It is full. Wait."):
        prepare(video, tries=2)
    assert len(server.heads) == 2 and waits == [0.5]


def test_a_retry_that_would_exceed_the_timeout_is_not_made(
    prepare: Any, server: UploadServer, video: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmtalk.client.calls.SPEECH_TIMEOUT_S", 1.5)
    server.refusals = [(503, "1", 0), (503, "9", 0)]
    with pytest.raises(Busy):
        prepare(video)
    assert len(server.heads) == 2 and waits == [1.0]  # waiting 9 s would exceed 1.5 s


@pytest.mark.parametrize("refusals", [[(500, "", 0)], [(502, "", 2**40)], [(422, "1", 0)]])
def test_an_upload_is_not_retried_after_other_errors(
    prepare: Any, server: UploadServer, video: Path, waits: list[float], refusals: Any
) -> None:
    server.refusals = list(refusals)
    with pytest.raises(Exception, match="It is full"):
        prepare(video)
    assert len(server.heads) == 1 and waits == []


def test_a_refused_connection_is_retried(prepare: Any, video: Path, waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(Unreachable, match="cannot be reached"):
        prepare(video, nobody)
    assert waits == [0.5, 1.0]


def test_a_missing_file_is_reported_before_a_request(prepare: Any, server: UploadServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "none.mp4")
    assert server.heads == []
