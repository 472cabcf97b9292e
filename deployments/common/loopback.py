"""Keeps the replicas of `warmtalk serve` off the network.

Ray's own ports listen on the node's address, which LocalGraph sets to 127.0.0.1. But each replica of Serve 2.60 also
has a gRPC server for calls of other replicas. It listens on all addresses and unpickles every message, so a client that
reaches it can run any code. Serve has no setting for its address. On a cluster, token authentication protects it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "WARMTALK_LOOPBACK"  # set by LocalGraph for the processes of its Ray
ALL_ADDRESSES = "[::]"


def bind_replicas() -> None:
    """Let the gRPC server of this replica listen on 127.0.0.1 only, if the variable is set. Runs before it starts."""
    replica: Any = sys.modules.get("ray.serve._private.replica")
    if replica is None or not os.environ.get(VARIABLE) or hasattr(replica.add_port_to_grpc_server, "loopback"):
        return
    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace(ALL_ADDRESSES, "127.0.0.1"))

    add_loopback_port.loopback = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = add_loopback_port
