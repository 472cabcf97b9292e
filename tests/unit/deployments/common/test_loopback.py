"""The gRPC server of a replica listens on 127.0.0.1 only on a Ray of `warmtalk serve`."""

import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import psutil
import pytest
from ray.serve._private import replica

from deployments.common.loopback import VARIABLE, bind_replicas


@pytest.fixture
def serve(monkeypatch):
    """Serve's module, with its function that adds a port."""
    module = SimpleNamespace(add_port_to_grpc_server=replica.add_port_to_grpc_server)
    monkeypatch.setitem(sys.modules, "ray.serve._private.replica", module)
    monkeypatch.setenv(VARIABLE, "1")
    return module


async def listening_address(module) -> str:
    """Where a server listens that is started as Serve starts it."""
    server = grpc.aio.server()
    port = module.add_port_to_grpc_server(server, "[::]:0")
    await server.start()
    (found,) = {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.laddr and c.laddr.port == port}
    await server.stop(None)
    return str(found).removeprefix("::ffff:")


async def test_the_server_listens_on_loopback_only(serve):
    assert await listening_address(serve) == "::"
    bind_replicas()
    bind_replicas()  # a second import changes nothing
    assert await listening_address(serve) == "127.0.0.1"


async def test_on_a_cluster_it_listens_on_all_addresses(serve, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    bind_replicas()
    assert serve.add_port_to_grpc_server is replica.add_port_to_grpc_server


def test_serve_still_opens_its_port_with_this_function():
    """Else the port would be open to everybody again."""
    source = Path(replica.__file__).read_text(encoding="utf-8")
    assert source.count('add_port_to_grpc_server(self._server, "[::]:0")') == 1
