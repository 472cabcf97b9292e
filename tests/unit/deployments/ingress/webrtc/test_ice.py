"""What a client writes into its offer makes the server send packets to nobody but that client."""

import asyncio
import contextlib
import re
import select
import socket

import pytest

from configs.schema import IceServer, IngressConfig
from deployments.ingress.webrtc import ice as ice_module
from deployments.ingress.webrtc.ice import MAX_PERMISSIONS, MAX_SDP_BYTES, MAX_SOURCES, addresses, without_candidates
from deployments.ingress.webrtc.peers import Peers
from models.errors import InputError
from tests.unit.deployments.ingress.webrtc.test_peers import Client, live, share_in_order  # noqa: F401

aiortc = pytest.importorskip("aiortc")
aioice = pytest.importorskip("aioice")


class Sinks:
    """UDP sockets on addresses that a client names in its offer."""

    def __init__(self, count: int) -> None:
        self.host = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=False)[0]
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for sink in self.sockets:
            sink.bind((self.host, 0))

    def lines(self) -> str:
        """The candidates of an offer: host, server-reflexive and relay."""
        forms = ("udp {} typ host", "UDP {} typ srflx raddr 0.0.0.0 rport 9", "udp {} typ relay raddr :: rport 9")
        return "".join(
            f"a=candidate:{k} 1 {forms[k % 3].format(f'2122260223 {self.host} {sink.getsockname()[1]}')}\r\n"
            for k, sink in enumerate(self.sockets)
        )

    def reached(self) -> list[socket.socket]:
        return select.select(self.sockets, [], [], 0)[0]

    def close(self) -> None:
        for sink in self.sockets:
            sink.close()


async def test_the_candidates_of_an_offer_receive_nothing(live):  # noqa: F811
    """200 candidates made the server send 1,200 packets."""
    _, hubs, peers = live
    client, sinks = Client(), Sinks(200)
    offer = re.sub(r"^a=candidate:.*\r\n", sinks.lines(), await client.offer(), count=1, flags=re.M)
    _, answer = await peers.offer(offer, lambda: hubs.view("alice"))
    await asyncio.sleep(0.5)  # aioice would start a check every 20 ms
    assert sinks.reached() == []
    await client.connection.setRemoteDescription(aiortc.RTCSessionDescription(answer, "answer"))
    await client.seen(25)
    assert share_in_order(client.greys) > 0.8 and sinks.reached() == []
    await client.close()
    sinks.close()


def test_candidates_of_every_form_are_removed():
    kept = "v=0\r\nm=video 9 RTP 97\r\na=ice-ufrag:x\r\n"
    removed = (
        "a=candidate:1 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active\r\n"
        "a=candidate:1 1 UDP 1 2001:db8::1 5000 typ host\r\n"
        "a=candidate:2 1 udp 1 victim.example 80 typ host\r\n"
        "a=candidate:3 1 udp 1 a-b.local 80 typ host generation 0\n"
        "a=candidate:4\r\n"
        "a=remote-candidates:1 192.0.2.1 9\r\n"
        "a=end-of-candidates"
    )
    assert without_candidates(kept + removed) == kept
    assert addresses(kept + removed) == [("2001:db8::1", 5000)]


async def test_an_offer_larger_than_a_browser_makes_is_refused(live):  # noqa: F811
    _, hubs, peers = live
    client = Client()
    offer = await client.offer()
    with pytest.raises(InputError, match=f"at most {MAX_SDP_BYTES}"):
        await peers.offer(offer + "a=x\r\n" * (MAX_SDP_BYTES // 5), lambda: hubs.view("alice"))
    with pytest.raises(InputError, match="5 media sections; at most 4"):
        await peers.offer(offer + "m=video 9 UDP/TLS/RTP/SAVPF 97\r\n" * 3, lambda: hubs.view("alice"))
    assert hubs.viewers() == 0
    await client.close()


async def test_forged_sources_of_valid_checks_are_capped(live):  # noqa: F811
    """A client that knows the answer can sign checks, and forge their source addresses."""
    _, hubs, peers = live
    client, sinks = Client(), Sinks(3 * MAX_SOURCES)
    offer = await client.offer()
    _, answer = await peers.offer(offer, lambda: hubs.view("alice"))
    names = [re.search(r"a=ice-ufrag:(\S+)", sdp)[1] for sdp in (answer, offer)]
    password = re.search(r"a=ice-pwd:(\S+)", answer)[1]
    port = next(int(m[2]) for m in re.finditer(r"udp \d+ (\S+) (\d+) typ host", answer) if m[1] == sinks.host)
    for sink in sinks.sockets:
        stun = aioice.stun
        check = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
        check.attributes |= {"USERNAME": ":".join(names), "PRIORITY": 1, "ICE-CONTROLLING": 1}
        check.add_message_integrity(password.encode())
        sink.sendto(bytes(check), (sinks.host, port))
    await asyncio.sleep(0.5)
    checked = 0
    for sink in sinks.reached():
        sink.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                message = aioice.stun.parse_message(sink.recv(2048))
                if message.message_class == aioice.stun.Class.REQUEST:
                    checked += 1
                    break
    assert checked == MAX_SOURCES
    await client.close()
    sinks.close()


class TurnServer(asyncio.DatagramProtocol):
    """Answers every request with success and records what it is asked; relays nothing."""

    def __init__(self, answers: bool = True) -> None:
        self.answers, self.bound, self.other = answers, [], []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data, source) -> None:
        stun = aioice.stun
        try:
            message = stun.parse_message(data)
        except ValueError:
            self.other.append(data)
            return
        if message.message_method == stun.Method.CHANNEL_BIND:
            self.bound.append(message.attributes["XOR-PEER-ADDRESS"])
            if not self.answers:
                return
        elif message.message_method not in (stun.Method.ALLOCATE, stun.Method.REFRESH):
            self.other.append(message)
        answer = stun.Message(message.message_method, stun.Class.RESPONSE, message.transaction_id)
        relayed = ("192.0.2.9", 40_000)
        answer.attributes |= {"LIFETIME": 600, "XOR-MAPPED-ADDRESS": source, "XOR-RELAYED-ADDRESS": relayed}
        self.transport.sendto(bytes(answer), source)


@pytest.mark.parametrize("answers", [True, False])
async def test_a_turn_relay_is_told_the_clients_addresses_and_sends_them_nothing(live, monkeypatch, answers):  # noqa: F811
    """The relay would drop the client's checks without. A TURN server that stops to answer delays no more than 3 s."""
    _, hubs, _ = live
    monkeypatch.setattr(ice_module, "PERMIT_TIMEOUT_S", 0.3)
    transport, turn = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TurnServer(answers), local_addr=("127.0.0.1", 0)
    )
    url = f"turn:127.0.0.1:{transport.get_extra_info('sockname')[1]}?transport=udp"
    server = IceServer(urls=[url], username="a", credential="b")
    peers = Peers(lambda: IngressConfig(max_webrtc_viewers=2, ice_servers=[server]))
    lines = "".join(f"a=candidate:{k} 1 udp 9 198.51.100.{k} 5000 typ host\r\n" for k in range(3 * MAX_PERMISSIONS))
    client = Client()
    offer = re.sub(r"^a=candidate:.*\r\n", lines, await client.offer(), count=1, flags=re.M)
    peer_id, answer = await peers.offer(offer, lambda: hubs.view("alice"))
    assert "192.0.2.9 40000 typ relay" in answer
    assert sorted(set(turn.bound)) == sorted((f"198.51.100.{k}", 5000) for k in range(MAX_PERMISSIONS))
    await asyncio.sleep(0.2)
    assert turn.other == []
    await peers.end(peer_id)
    await client.close()
    transport.close()
