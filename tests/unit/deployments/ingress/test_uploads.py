"""Uploads are deleted with their request, however that ends, and those of a dead process by the next upload."""

import asyncio
import subprocess
import sys
import threading

import pytest

from configs.schema import IngressConfig
from deployments.ingress.app import api
from deployments.ingress.uploads import Uploads
from models.errors import BusyError, InterruptedSpeech
from tests.support.ingress import (
    SPOKEN,
    EndlessStitch,
    Handle,
    VirtualSocket,
    make_replica,
    send_partly,
)
from tests.support.uploads import left_uploads
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
pytestmark = pytest.mark.usefixtures("virtual_time")


@pytest.fixture
def replica_of(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    return lambda **handles: make_replica(monkeypatch, **handles)


@pytest.mark.parametrize("error", [BusyError("Busy.", "Wait."), InterruptedSpeech("Interrupted.", "Again.")])
@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_after_an_error_of_the_stage_nothing_is_left(replica_of, error, query):
    stitch = Handle(speak=[error])
    replica_of(stitch=stitch)
    status, _ = await send_partly(f"/speak/audio{query}", b"RIFF", repeat_s=0.1, repeats=2)
    assert (status, stitch.uploads, left_uploads()) == (error.status, [b"RIFF" * 3], [])


async def speak_audio(query: str, send) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/speak/audio",
        "raw_path": b"/speak/audio",
        "query_string": query.encode(),
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("here", 80),
        "client": None,
    }
    arriving = [{"type": "http.request", "body": b"RIFF", "more_body": False}]

    async def receive():
        return arriving.pop(0) if arriving else await asyncio.sleep(3600)

    await api(scope, receive, send)


async def test_a_client_that_leaves_while_its_recording_waits_leaves_nothing(replica_of):
    stitch = EndlessStitch()
    replica_of(stitch=stitch)

    async def send(message):
        pass

    request = asyncio.create_task(speak_audio("", send))
    await asyncio.sleep(1.0)
    assert len(left_uploads()) == 2, "the file and its folder wait"
    request.cancel()
    await asyncio.wait({request})
    assert left_uploads() == [] and stitch.speeches[0].cancelled


async def test_a_client_that_leaves_before_the_first_byte_of_a_stream_leaves_nothing(replica_of):
    """Then the stream is never begun, so that its own clean-up does not run."""
    stitch = Handle(speak=list(SPOKEN))
    replica_of(stitch=stitch)

    async def send(message):
        raise OSError("the client has left")

    with pytest.raises(Exception):
        await speak_audio("stream=true", send)
    assert stitch.uploads == [b"RIFF"] and left_uploads() == []


async def test_a_stream_keeps_its_upload_until_its_end(replica_of):
    replica_of(stitch=Handle(speak=list(SPOKEN)))
    seen: list[tuple[bytes, int]] = []

    async def send(message):
        seen.append((message.get("body", b""), len(left_uploads())))

    await speak_audio("stream=true", send)
    assert b"".join(body for body, _ in seen) == b"initonetwo" and left_uploads() == []
    assert all(count == 2 for body, count in seen if body)


async def test_a_socket_that_closes_leaves_neither_parts_nor_waiting_recordings(replica_of):
    replica = replica_of(stitch=EndlessStitch())
    socket = VirtualSocket(replica)
    for last in (True, True, False):
        socket.send(type="audio", last=last)
        socket._incoming.put_nowait({"type": "websocket.receive", "bytes": b"RIFF"})
    await asyncio.sleep(1.0)
    assert len(left_uploads()) == 6
    await socket.leave()
    assert left_uploads() == []


async def test_a_recording_for_which_too_many_commands_run_is_deleted(replica_of, monkeypatch):
    monkeypatch.setattr("deployments.ingress.websocket.connection.MAX_COMMANDS", 1)
    socket = VirtualSocket(replica_of(stitch=EndlessStitch()))
    for _ in range(2):
        socket.send(type="audio")
        socket._incoming.put_nowait({"type": "websocket.receive", "bytes": b"RIFF"})
    await asyncio.sleep(1.0)
    assert [kind for _, kind in socket.events].count("failed") == 1 and len(left_uploads()) == 2
    await socket.leave()


OTHER = """
import asyncio, os
from configs.schema import IngressConfig
from deployments.ingress.uploads import Uploads
asyncio.run(Uploads(IngressConfig()).create())
os._exit(1)
"""


async def test_uploads_of_a_dead_process_are_deleted_by_the_next_one(replica_of, tmp_path):
    uploads = Uploads(IngressConfig())
    mine = await uploads.create()
    subprocess.run([sys.executable, "-c", OTHER], check=False)
    assert len(left_uploads()) == 4
    new = await uploads.create()
    assert {path for path in left_uploads() if path.is_file()} == {mine, new}


async def test_a_cancelled_write_ends_before_the_upload_is_deleted(replica_of, monkeypatch):
    """Otherwise the thread would create the file again."""
    uploads, events, go_on = Uploads(IngressConfig()), [], threading.Event()
    path = await uploads.create()

    def slow(path, data):
        events.append("begins")
        go_on.wait(10)
        events.append("ends")

    monkeypatch.setattr("deployments.ingress.uploads._append", slow)
    writing = asyncio.create_task(uploads.append(path, b"data"))
    while not events:
        await asyncio.sleep(0)
    writing.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not writing.done()
    go_on.set()
    await asyncio.wait({writing})
    assert events == ["begins", "ends"] and writing.cancelled()
