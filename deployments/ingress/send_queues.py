"""How much of what was sent to a client is still on this machine: the kernel's send queues. Knows nothing of viewers.

Serve's proxy gives no sign when a client stops reading: what a replica streams piles up in the proxy's memory. But the
proxy stands on the same node, and Linux says of every connection how many bytes wait to be sent. Elsewhere, or where
another proxy stands between, nothing is known and nothing is said.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import ipaddress
from pathlib import Path

Client = tuple[str, int]  # address and port, as the ASGI scope has them

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class SendQueues:
    """Looks up connections by the client's end."""

    def __init__(self, tables: tuple[Path, ...] = TABLES) -> None:
        self._tables = tables

    async def unsent(self, clients: set[Client]) -> dict[Client, int]:
        """Bytes that wait to be sent to each of the clients that this machine has a connection with."""
        if not clients:
            return {}
        return await asyncio.to_thread(self._read, clients)

    def _read(self, clients: set[Client]) -> dict[Client, int]:
        wanted = {key: client for client in clients for key in _keys(client)}
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


def _keys(client: Client) -> list[str]:
    """The client's end as the tables write it: 32-bit words in the machine's (little-endian) order, and the port."""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return []
    forms = [address.packed]
    if address.version == 4:
        forms.append(b"\0" * 10 + b"\xff\xff" + address.packed)  # an IPv4 client of an IPv6 socket
    return [f"{_words(form)}:{client[1]:04X}" for form in forms]


def _words(packed: bytes) -> str:
    return "".join(packed[k : k + 4][::-1].hex().upper() for k in range(0, len(packed), 4))
