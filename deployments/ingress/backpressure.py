"""A file's bytes on their way to a client, no faster than it takes them. Belongs to the ingress; knows no session.

What a replica yields and nobody takes stays in its memory, since Serve has no backpressure: a client that asks for a
long session and never reads would have all of it there, and a few of them the machine's memory.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO

from deployments.ingress.send_queues import Client, SendQueues

READ_CHUNK = 2**18  # bytes
LOOK_BYTES = 4 * 2**20  # are sent between two looks at what of them has been taken
UNSENT_BYTES = 512 * 2**10  # on the client's connection: then nothing more is read
LOOK_S = 0.05  # also what it takes to the client's connection from here, or more would be on its way than is seen

_QUEUES = SendQueues()


async def file_parts(
    file: BinaryIO, begin: int, end: int, client: Client | None, queues: SendQueues = _QUEUES
) -> AsyncIterator[bytes]:
    """The bytes from `begin` to `end` of a file, which is closed behind them.

    client: whose connection is looked at; where nothing is known of it (None, or it is not this machine's), it is taken
    to read. One that pauses keeps its place: a player does so while its viewer does.
    """
    with file:
        file.seek(begin)
        looked_at = begin
        while begin < end and (part := await asyncio.to_thread(file.read, min(READ_CHUNK, end - begin))):
            begin += len(part)
            yield part
            if client is not None and begin - looked_at >= LOOK_BYTES and begin < end:
                looked_at = begin
                await asyncio.sleep(LOOK_S)
                while (await queues.unsent({client})).get(client, 0) > UNSENT_BYTES:
                    await asyncio.sleep(LOOK_S)
