"""Send queues on other nodes: which nodes are asked, how often, and what happens when one does not answer."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from deployments.ingress import backpressure, node_queues
from deployments.ingress.backpressure import MAX_UNSENT_BYTES, SendQueues, paced_file
from deployments.ingress.node_queues import ANSWER_TIMEOUT_S, NODES_S, NodeQueues
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
ANN, BOB, NOBODY = ("10.0.0.7", 50_000), ("10.0.0.8", 50_001), ("10.0.0.9", 50_002)


class Node:
    """A node with some connections. calls: what its actor was asked."""

    def __init__(self, **unsent: int) -> None:
        self.unsent_bytes = {{"ann": ANN, "bob": BOB}[name]: count for name, count in unsent.items()}
        self.calls: list[set] = []
        self.starts, self.error, self.hangs = 0, None, False
        self.unsent = SimpleNamespace(remote=self._unsent)

    async def _unsent(self, clients):
        self.calls.append(set(clients))
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return {client: self.unsent_bytes[client] for client in clients if client in self.unsent_bytes}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Node]:
    """Two other nodes: a has Ann's connection, b Bob's."""
    found = {"a": Node(ann=7), "b": Node(bob=9)}

    def start(name: str) -> Node:
        found[name].starts += 1
        return found[name]

    monkeypatch.setattr(node_queues, "_list_other_nodes", lambda: list(found))
    monkeypatch.setattr(node_queues, "_start_actor", start)
    monkeypatch.setattr(node_queues.ray, "is_initialized", lambda: True)
    return found


async def test_all_nodes_are_asked_until_one_has_the_connection(nodes):
    queues = NodeQueues()
    assert await queues.unsent({ANN, NOBODY}) == {ANN: 7}
    assert await queues.unsent({ANN}) == {ANN: 7}
    assert (nodes["a"].calls, nodes["b"].calls) == ([{ANN, NOBODY}, {ANN}], [{ANN, NOBODY}])
    nodes["b"].unsent_bytes[ANN] = nodes["a"].unsent_bytes.pop(ANN) + 1  # another connection with the same address
    assert await queues.unsent({ANN}) == {}
    assert await queues.unsent({ANN}) == {ANN: 8}


async def test_questions_of_many_responses_become_one_call_per_node(nodes):
    queues = NodeQueues()
    answers = await asyncio.gather(*(queues.unsent({client}) for client in (ANN, BOB) * 50))
    assert answers == [{ANN: 7}, {BOB: 9}] * 50
    assert nodes["a"].calls == nodes["b"].calls == [{ANN, BOB}]


async def test_a_question_during_a_call_gets_an_answer_of_its_own(nodes):
    queues = NodeQueues()
    nodes["a"].hangs = True
    first = asyncio.create_task(queues.unsent({ANN}))
    await asyncio.sleep(ANSWER_TIMEOUT_S / 2)
    assert not first.done()
    nodes["a"].hangs = False
    assert await queues.unsent({ANN}) == {ANN: 7}


async def test_a_node_that_does_not_answer_delays_the_others_by_a_second(nodes):
    queues, loop = NodeQueues(), asyncio.get_running_loop()
    nodes["a"].hangs = True
    began_s = loop.time()
    assert await queues.unsent({ANN, BOB}) == {BOB: 9}
    assert loop.time() - began_s == pytest.approx(ANSWER_TIMEOUT_S, abs=0.1)


async def test_an_actor_that_ended_is_started_again(nodes):
    queues = NodeQueues()
    assert await queues.unsent({ANN}) == {ANN: 7}
    nodes["a"].error = ActorDiedError()
    assert await queues.unsent({ANN}) == {}
    nodes["a"].error = None
    assert await queues.unsent({ANN}) == {ANN: 7}
    assert (nodes["a"].starts, nodes["b"].starts) == (2, 1)


async def test_new_nodes_are_found_and_lost_ones_are_no_longer_asked(nodes):
    queues, lost = NodeQueues(), nodes["a"]
    assert await queues.unsent({ANN}) == {ANN: 7}
    del nodes["a"]
    nodes["c"] = Node(ann=3)
    await asyncio.sleep(NODES_S + 1)
    assert await queues.unsent({ANN}) == {ANN: 3}
    assert len(lost.calls) == 1


async def test_without_ray_nothing_is_asked(nodes, monkeypatch):
    monkeypatch.setattr(node_queues.ray, "is_initialized", lambda: False)
    assert await NodeQueues().unsent({ANN}) == {} and nodes["a"].calls == []


async def test_a_file_is_sent_no_faster_than_a_client_of_another_node_reads(nodes, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(backpressure, "READ_BYTES", 100)
    monkeypatch.setattr(backpressure, "CHECK_BYTES", 1000)
    (tmp_path / "video.mp4").write_bytes(bytes(5_000))
    received, queues = 0, SendQueues((tmp_path / "no table",), NodeQueues())
    nodes["a"].unsent_bytes[ANN] = MAX_UNSENT_BYTES + 1

    async def receive() -> None:
        nonlocal received
        async for part in paced_file((tmp_path / "video.mp4").open("rb"), 0, 5_000, ANN, queues):
            received += len(part)

    receiving = asyncio.create_task(receive())
    await asyncio.sleep(60)
    assert received == 1000
    nodes["a"].unsent_bytes[ANN] = 0
    await receiving
    assert received == 5000
