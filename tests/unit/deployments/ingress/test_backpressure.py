"""A file on its way to a client: whole, closed behind its last byte, and never far ahead of what the client takes."""

import asyncio
from pathlib import Path

import pytest

from deployments.ingress import backpressure as sending
from deployments.ingress.backpressure import file_parts
from deployments.ingress.send_queues import SendQueues

ANN = ("10.0.0.7", 50_000)


class Queues(SendQueues):
    """Of one connection, on which so many bytes wait; None: it is not this machine's."""

    def __init__(self, waiting: int | None) -> None:
        self.waiting, self.looks = waiting, 0

    async def unsent(self, clients):
        self.looks += 1
        assert clients == {ANN}
        return {} if self.waiting is None else {ANN: self.waiting}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sending, "READ_CHUNK", 100)
    monkeypatch.setattr(sending, "LOOK_BYTES", 1000)
    monkeypatch.setattr(sending, "LOOK_S", 0.001)
    path = tmp_path / "video.mp4"
    path.write_bytes(bytes(k % 251 for k in range(10_000)))
    return path.open("rb")


async def test_a_range_is_read_in_parts_and_the_file_closed(file):
    parts = [part async for part in file_parts(file, 50, 9_990, ANN, Queues(0))]
    assert b"".join(parts) == bytes(k % 251 for k in range(10_000))[50:9_990]
    assert max(map(len, parts)) == 100 and file.closed


async def test_to_a_client_that_does_not_read_no_more_is_sent_until_it_does(file):
    queues, got = Queues(sending.UNSENT_BYTES + 1), bytearray()

    async def take():
        async for part in file_parts(file, 0, 10_000, ANN, queues):
            got.extend(part)

    taking = asyncio.create_task(take())
    while queues.looks < 20:
        await asyncio.sleep(0.001)
    assert len(got) == 1000
    queues.waiting = sending.UNSENT_BYTES
    await asyncio.wait_for(taking, 10)
    assert len(got) == 10_000


async def test_who_leaves_meanwhile_leaves_no_open_file(file):
    parts = file_parts(file, 0, 10_000, ANN, Queues(10**9))
    taking = asyncio.create_task(_all(parts))
    await asyncio.sleep(0.02)
    taking.cancel()
    await asyncio.wait({taking})
    assert taking.cancelled() and file.closed


@pytest.mark.parametrize("client", [None, ANN])
async def test_where_nothing_is_known_of_the_connection_it_is_sent_at_once(file, client):
    queues = Queues(None)
    assert len(await _all(file_parts(file, 0, 10_000, client, queues))) == 10_000
    assert queues.looks == (0 if client is None else 9)


async def _all(parts) -> bytes:
    return b"".join([part async for part in parts])
