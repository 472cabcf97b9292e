"""Backpressure towards clients, from the kernel's send queues.

Serve has none: its proxy reads a replica's response as fast as the replica yields it, and keeps in memory what the
client does not read. A few clients that request long sessions and never read would fill the machine's memory. But the
proxy runs on the same node as the replica, and Linux lists the unsent bytes of every TCP connection, so a replica can
find out how far a client lags. On other systems, or behind another proxy, nothing is known and nothing is limited.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

Client = tuple[str, int]  # address and port, as in the ASGI scope

TCP_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
READ_BYTES = 2**18  # per read of a file
CHECK_BYTES = 4 * 2**20  # sent between two reads of the send queue
MAX_UNSENT_BYTES = 512 * 2**10  # in the client's send queue; reading pauses above it
CHECK_S = 0.05  # between two reads; by then, bytes that Serve's proxy passes on have reached the client's connection


class SendQueues:
    """Unsent bytes of TCP connections, by the address of the client."""

    def __init__(self, tables: tuple[Path, ...] = TCP_TABLES) -> None:
        self._tables = tables

    async def unsent(self, clients: set[Client]) -> dict[Client, int]:
        """Bytes in the send queue of each of the clients; without those that this machine has no connection with."""
        if not clients:
            return {}
        return await asyncio.to_thread(self._read, clients)

    def _read(self, clients: set[Client]) -> dict[Client, int]:
        wanted = {key: client for client in clients for key in _table_keys(client)}
        found: dict[Client, int] = {}
        for table in self._tables:
            try:
                lines = table.read_text().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                if (client := wanted.get(fields[2])) is not None:
                    found[client] = max(found.get(client, 0), int(fields[4].split(":")[0], 16))
        return found


_QUEUES = SendQueues()


async def paced_file(
    file: BinaryIO, begin: int, end: int, client: Client | None, queues: SendQueues = _QUEUES
) -> AsyncIterator[bytes]:
    """The bytes from `begin` to `end` of a file, no faster than the client reads. Closes the file.

    A client without a known connection (None, or not of this machine) is not limited. One that pauses is never cut off:
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


def _table_keys(client: Client) -> list[str]:
    """The client's address as the kernel's tables write it: little-endian 32-bit words, a colon, the port."""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return []
    forms = [address.packed]
    if address.version == 4:
        forms.append(b"\0" * 10 + b"\xff\xff" + address.packed)  # an IPv4 client of an IPv6 socket
    return [f"{_little_endian_words(form)}:{client[1]:04X}" for form in forms]


def _little_endian_words(packed: bytes) -> str:
    return "".join(packed[k : k + 4][::-1].hex().upper() for k in range(0, len(packed), 4))
