"""Send queues: a client that does not read is seen by what the kernel still holds for it."""

import socket

import pytest

from deployments.ingress.send_queues import TABLES, SendQueues, _keys

pytestmark = pytest.mark.skipif(not TABLES[0].is_file(), reason="needs Linux's table of connections")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_what_a_client_has_not_taken_is_counted(family):
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip(f"no {address} here")
        server.listen()
        with socket.create_connection(server.getsockname()[:2]) as lazy, server.accept()[0] as sender:
            lazy_at = lazy.getsockname()[:2]
            assert await SendQueues().unsent({lazy_at}) == {lazy_at: 0}
            sender.setblocking(False)
            sent = 0
            while True:
                try:
                    sent += sender.send(b"x" * 65536)
                except BlockingIOError:
                    break
            unsent = (await SendQueues().unsent({lazy_at}))[lazy_at]
            assert 0 < unsent <= sent
            taken = 0
            while taken < sent:
                taken += len(lazy.recv(1 << 20))
            assert (await SendQueues().unsent({lazy_at}))[lazy_at] == 0


async def test_an_unknown_client_has_no_queue(tmp_path):
    assert await SendQueues().unsent({("192.0.2.1", 9)}) == {}
    assert await SendQueues().unsent({("no address", 9)}) == {}
    assert await SendQueues((tmp_path / "missing",)).unsent({("127.0.0.1", 9)}) == {}


def test_addresses_are_written_as_the_kernel_does():
    assert _keys(("127.0.0.1", 8765)) == ["0100007F:223D", "0000000000000000FFFF00000100007F:223D"]
    assert _keys(("::1", 80)) == ["00000000000000000000000001000000:0050"]
