"""Unsent bytes of this machine's TCP connections, from Linux's tables. On other systems, none are known."""

import ipaddress
from collections.abc import Collection
from pathlib import Path

Client = tuple[str, int]  # address and port, as in the ASGI scope

TCP_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def unsent_bytes(clients: Collection[Client], tables: tuple[Path, ...] = TCP_TABLES) -> dict[Client, int]:
    """Bytes in the send queue of each of the clients; without those that this machine has no connection with."""
    wanted = {key: client for client in clients for key in _table_keys(client)}
    found: dict[Client, int] = {}
    for table in tables:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if (client := wanted.get(fields[2])) is not None:
                found[client] = max(found.get(client, 0), int(fields[4].split(":")[0], 16))
    return found


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
