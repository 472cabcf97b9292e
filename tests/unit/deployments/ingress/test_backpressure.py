"""Backpressure: a file is sent no faster than the client reads, as seen in the kernel's send queues."""

import asyncio
import socket
from pathlib import Path

import pytest

from deployments.ingress import backpressure
from deployments.ingress.backpressure import SendQueues, paced_file
from deployments.ingress.tcp_tables import TCP_TABLES, _table_keys
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
ANN = ("10.0.0.7", 50_000)
DATA = bytes(k % 251 for k in range(10_000))


class FakeQueues(SendQueues):
    """The send queue of one connection. unsent_bytes: None if this machine does not have the connection."""

    def __init__(self, unsent_bytes: int | None) -> None:
        self.unsent_bytes, self.checks = unsent_bytes, 0

    async def unsent(self, clients):
        self.checks += 1
        assert clients == {ANN}
        return {} if self.unsent_bytes is None else {ANN: self.unsent_bytes}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backpressure, "READ_BYTES", 100)
    monkeypatch.setattr(backpressure, "CHECK_BYTES", 1000)
    path = tmp_path / "video.mp4"
    path.write_bytes(DATA)
    return path.open("rb")


async def read_all(parts) -> bytes:
    return b"".join([part async for part in parts])


async def test_a_range_is_read_in_parts_and_the_file_is_closed(file):
    parts = [part async for part in paced_file(file, 50, 9_990, ANN, FakeQueues(0))]
    assert b"".join(parts) == DATA[50:9_990]
    assert max(map(len, parts)) == 100 and file.closed


async def test_sending_pauses_while_the_client_does_not_read(file):
    queues, received = FakeQueues(backpressure.MAX_UNSENT_BYTES + 1), bytearray()

    async def receive():
        async for part in paced_file(file, 0, 10_000, ANN, queues):
            received.extend(part)

    receiving = asyncio.create_task(receive())
    await asyncio.sleep(600)
    assert len(received) == 1000 and queues.checks > 1000
    queues.unsent_bytes = backpressure.MAX_UNSENT_BYTES
    await receiving
    assert len(received) == 10_000


async def test_the_file_is_closed_when_the_client_leaves_during_a_pause(file):
    receiving = asyncio.create_task(read_all(paced_file(file, 0, 10_000, ANN, FakeQueues(10**9))))
    await asyncio.sleep(1)
    receiving.cancel()
    await asyncio.wait({receiving})
    assert receiving.cancelled() and file.closed


@pytest.mark.parametrize("client", [None, ANN])
async def test_without_a_known_connection_nothing_is_limited(file, client):
    queues = FakeQueues(None)
    assert await read_all(paced_file(file, 0, 10_000, client, queues)) == DATA
    assert queues.checks == (0 if client is None else 9)


# --- the kernel's tables

linux = pytest.mark.skipif(not TCP_TABLES[0].is_file(), reason="needs Linux's table of connections")


@linux
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_unsent_bytes_are_those_that_a_client_has_not_read(family):
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip(f"no {address} here")
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as client, server.accept()[0] as sender:
            client_address = client.getsockname()[:2]
            assert await SendQueues().unsent({client_address}) == {client_address: 0}
            sender.setblocking(False)
            sent = 0
            while True:
                try:
                    sent += sender.send(b"x" * 65536)
                except BlockingIOError:
                    break
            unsent = (await SendQueues().unsent({client_address}))[client_address]
            assert 0 < unsent <= sent
            received = 0
            while received < sent:
                received += len(client.recv(1 << 20))
            assert (await SendQueues().unsent({client_address}))[client_address] == 0


@linux
async def test_an_unknown_client_has_no_queue(tmp_path):
    assert await SendQueues().unsent({("192.0.2.1", 9)}) == {}
    assert await SendQueues().unsent({("no address", 9)}) == {}
    assert await SendQueues((tmp_path / "missing",)).unsent({("127.0.0.1", 9)}) == {}


async def test_addresses_are_written_as_in_the_kernels_tables():
    assert _table_keys(("127.0.0.1", 8765)) == ["0100007F:223D", "0000000000000000FFFF00000100007F:223D"]
    assert _table_keys(("::1", 80)) == ["00000000000000000000000001000000:0050"]
