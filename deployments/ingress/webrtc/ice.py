"""Restricts ICE: what a client writes into its offer never makes this server send packets anywhere.

The candidates of an offer are addresses that the client chose, and aioice would send some six packets to each of them.
They are not needed: the client sends its own connectivity checks to the addresses of the answer, and only a client that
knows the answer can sign one. So aioice learns the client's address from the source of its first valid check
(RFC 8445, 7.3.1.3, peer-reflexive candidates).
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Callable
from typing import Any

from models.errors import InputError

MAX_SDP_BYTES = 64 * 2**10  # an offer of a browser has 5 to 8 KB
MAX_SECTIONS = 4  # video, audio, data channel; without BUNDLE, each gets sockets of its own
MAX_SOURCES = 16  # addresses that valid checks of one client may come from: each gets up to seven packets
PERMIT_TIMEOUT_S = 3.0
MAX_PERMISSIONS = 8  # addresses that a TURN server of the config is asked to accept packets from
OFFER_REMEDY = "Offer to receive one video, one audio and one data channel."
# The end of the candidates must be removed as well: it would end the connection before the client's first check.
CANDIDATES = re.compile(r"^a=(?:candidate:|remote-candidates:|end-of-candidates)[^\r\n]*(?:\r?\n|\Z)", re.M)
ADDRESS = re.compile(r"^a=candidate:\S+ \d+ udp \d+ (\S+) (\d+) ", re.M | re.I)


def check_offer(sdp: str) -> None:
    """Raises InputError for an offer that is larger than any of a browser or has more media sections."""
    if len(sdp) > MAX_SDP_BYTES:
        raise InputError(f"The offer has {len(sdp)} bytes; at most {MAX_SDP_BYTES} are allowed.", OFFER_REMEDY)
    if (sections := len(re.findall(r"^m=", sdp, re.M))) > MAX_SECTIONS:
        raise InputError(f"The offer has {sections} media sections; at most {MAX_SECTIONS} are allowed.", OFFER_REMEDY)


def without_candidates(sdp: str) -> str:
    return CANDIDATES.sub("", sdp)


def addresses(sdp: str) -> list[tuple[str, int]]:
    """The first MAX_PERMISSIONS different IP addresses of the offer's UDP candidates, with a port of each."""
    found: dict[str, tuple[str, int]] = {}
    for match in ADDRESS.finditer(sdp):
        with contextlib.suppress(ValueError):  # a multicast DNS name of a browser that hides its addresses
            found.setdefault(str(ipaddress.ip_address(match[1])), (match[1], int(match[2])))
        if len(found) == MAX_PERMISSIONS:
            break
    return list(found.values())


def connections(peer_connection: Any) -> list[Any]:
    """The aioice connections of an aiortc RTCPeerConnection; one if all its media are bundled."""
    transports = [t.sender.transport for t in peer_connection.getTransceivers()]
    transports += [peer_connection.sctp.transport] if peer_connection.sctp else []
    return list({id(dtls): dtls.transport._connection for dtls in transports if dtls is not None}.values())


def limit_sources(ice: Any) -> None:
    """Ignore checks from more than MAX_SOURCES addresses: the source of a UDP packet can be forged."""
    check = ice.check_incoming

    def check_incoming(message: Any, source: tuple[str, int], protocol: Any) -> None:
        known = {(candidate.host, candidate.port) for candidate in ice.remote_candidates}
        if source in known or len(known) < MAX_SOURCES:
            check(message, source, protocol)

    ice.check_incoming = check_incoming


async def permit(ice: Any, clients: list[tuple[str, int]]) -> None:
    """Let the TURN relays of this connection accept packets from these addresses (RFC 8656, 12). Sends them nothing.

    An address that the TURN server refuses, or a TURN server that does not answer in time, is no error: other
    addresses may do.
    """
    relays = [p.transport._TurnTransport__inner_protocol for p in ice._protocols if p.local_candidate.type == "relay"]
    for relay in relays:
        relay._send = _not_empty(relay._send)
    binding = asyncio.gather(*(r.send_data(b"", client) for r in relays for client in clients), return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(binding, PERMIT_TIMEOUT_S)


def _not_empty(send: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """`send_data(b"")` asks for the permission first, and then sends an empty packet of 4 bytes: drop that packet."""
    return lambda data: send(data) if len(data) > 4 else None
