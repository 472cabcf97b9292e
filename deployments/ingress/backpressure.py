"""Backpressure towards clients, from the kernel's send queues.

Serve has none: its proxy reads a replica's response as fast as the replica yields it, and keeps in memory what the
client does not read. A few clients that request long sessions and never read would fill the machine's memory. But the
proxy's machine lists the unsent bytes of every TCP connection, so a replica can find out how far a client lags: on its
own node by itself, on others through node_queues.py. On other systems than Linux, or behind another proxy, nothing is
known and nothing is limited.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from deployments.ingress.node_queues import NodeQueues
from deployments.ingress.tcp_tables import TCP_TABLES, Client, unsent_bytes

READ_BYTES = 2**18  # per read of a file
CHECK_BYTES = 4 * 2**20  # sent between two reads of the send queue
MAX_UNSENT_BYTES = 512 * 2**10  # in the client's send queue; reading pauses above it
CHECK_S = 0.05  # between two reads; by then, bytes that Serve's proxy passes on have reached the client's connection


class SendQueues:
    """Unsent bytes of TCP connections, by the address of the client."""

    def __init__(self, tables: tuple[Path, ...] = TCP_TABLES, elsewhere: NodeQueues | None = None) -> None:
        self._tables, self._elsewhere = tables, elsewhere

    async def unsent(self, clients: set[Client]) -> dict[Client, int]:
        """Bytes in the send queue of each of the clients; without those that no known machine has a connection with."""
        if not clients:
            return {}
        found = await asyncio.to_thread(unsent_bytes, clients, self._tables)
        if self._elsewhere is not None and (missing := clients - found.keys()):
            found |= await self._elsewhere.unsent(missing)
        return found


QUEUES = SendQueues(elsewhere=NodeQueues())


async def paced_file(
    file: BinaryIO, begin: int, end: int, client: Client | None, queues: SendQueues = QUEUES
) -> AsyncIterator[bytes]:
    """The bytes from `begin` to `end` of a file, no faster than the client reads. Closes the file.

    A client without a known connection (None, or not of this cluster) is not limited. One that pauses is never cut off:
    a player does so while its viewer pauses.
    """
    with file:
        file.seek(begin)
        checked_at = begin
        while begin < end and (part := await asyncio.to_thread(file.read, min(READ_BYTES, end - begin))):
            begin += len(part)
            yield part
            if client is not None and begin - checked_at >= CHECK_BYTES and begin < end:
                checked_at = begin
                await asyncio.sleep(CHECK_S)
                while (await queues.unsent({client})).get(client, 0) > MAX_UNSENT_BYTES:
                    await asyncio.sleep(CHECK_S)
