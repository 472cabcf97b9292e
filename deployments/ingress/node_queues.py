"""Send queues of connections on other nodes of the cluster.

Serve may pass a request from the proxy of one node to an ingress replica on another. Only the proxy's node knows how
far its client lags, so an actor there reads that node's tables. It is started when a client is first not found on the
replica's own node, is shared by all ingress replicas, and ends with the one that started it.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextlib
import time
from typing import Any

import cachetools
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deployments.ingress.tcp_tables import TCP_TABLES, Client, unsent_bytes

COLLECT_S = 0.02  # questions of all responses within it become one call per node
ANSWER_TIMEOUT_S = 1.0
NODES_S = 10.0  # between two looks at the list of nodes
MAX_REMEMBERED = 4096  # connections whose node is known


class NodeTables:
    """The actor of one node."""

    def unsent(self, clients: set[Client]) -> dict[Client, int]:
        return unsent_bytes(clients, TCP_TABLES)


class NodeQueues:
    """Asks the other nodes of the cluster. Without Ray, or on one node, it returns no queues."""

    def __init__(self) -> None:
        self._actors: dict[str, asyncio.Task[Any]] = {}  # by node; each returns the handle
        self._node_of: cachetools.LRUCache[Client, str] = cachetools.LRUCache(MAX_REMEMBERED)
        self._wanted: set[Client] = set()
        self._answer: asyncio.Task[dict[Client, int]] | None = None
        self._nodes: list[str] = []
        self._listed_s = float("-inf")

    async def unsent(self, clients: set[Client]) -> dict[Client, int]:
        """Bytes in the send queue of each of the clients; without those that no other node has a connection with."""
        if not ray.is_initialized():
            return {}
        self._wanted |= clients
        if self._answer is None:
            self._answer = asyncio.create_task(self._ask())
        found = await asyncio.shield(self._answer)
        return {client: found[client] for client in clients if client in found}

    async def _ask(self) -> dict[Client, int]:
        await asyncio.sleep(COLLECT_S)
        wanted, self._wanted, self._answer = self._wanted, set(), None
        nodes = await self._other_nodes()
        asked: dict[str, set[Client]] = {}
        for client in wanted:
            known = self._node_of.get(client)
            for node in [known] if known in nodes else nodes:
                asked.setdefault(node, set()).add(client)
        found: dict[Client, int] = {}
        for node, answer in zip(
            asked, await asyncio.gather(*(self._ask_node(*one) for one in asked.items())), strict=True
        ):
            self._node_of.update(dict.fromkeys(answer, node))
            found |= answer
        for client in wanted - found.keys():
            self._node_of.pop(client, None)
        return found

    async def _other_nodes(self) -> list[str]:
        if time.monotonic() > self._listed_s + NODES_S:
            self._listed_s = time.monotonic()
            with contextlib.suppress(RayError, TimeoutError):  # while the GCS is away, the nodes are the old ones
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    self._nodes = await asyncio.to_thread(_list_other_nodes)
        return self._nodes

    async def _ask_node(self, node: str, clients: set[Client]) -> dict[Client, int]:
        """{} also if the actor does not answer in time: it may just start."""
        if node not in self._actors:
            self._actors[node] = asyncio.create_task(asyncio.to_thread(_start_actor, node))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                actor = await asyncio.shield(self._actors[node])
                answer: dict[Client, int] = await actor.unsent.remote(clients)
                return answer
        except TimeoutError:
            return {}
        except (RayError, ValueError):  # ended with the replica that started it, or with its node
            self._actors.pop(node, None)
            return {}


def _list_other_nodes() -> list[str]:
    own = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]


def _start_actor(node: str) -> Any:
    options = ray.remote(NodeTables).options(
        name=f"warmtalk_send_queues_{node}",
        get_if_exists=True,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return options.remote()
