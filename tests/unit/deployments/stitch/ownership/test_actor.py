"""The directory behind calls, and its client, over a fake Ray actor."""

import asyncio
import time

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from deployments.stitch.ownership import actor as module
from deployments.stitch.ownership.actor import DirectoryActor, DirectoryClient, DirectoryError
from deployments.stitch.ownership.directory import GATHER_S, Load, Report, SessionUse
from tests.support.stitch import Method
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

LISTED = {"r0": None, "r1": None}


@pytest.fixture
async def actor(monkeypatch):
    actor = DirectoryActor()
    actor._directory._now = time.monotonic
    actor._directory._started_s = time.monotonic()
    yield actor
    if actor._ending is not None:
        actor._ending.cancel()


async def test_a_new_directory_assigns_nothing_before_every_replica_has_said_what_it_owns(actor):
    route = asyncio.create_task(actor.route("alice", LISTED))
    await actor.report(Report("r0", Load(), {}))
    await asyncio.sleep(0.5)
    assert not route.done()
    await actor.report(Report("r1", Load(), {"alice": SessionUse()}))
    assert (await route).replica == "r1"


async def test_it_waits_for_a_replica_that_is_dead_or_silent_no_longer_than_a_limit(actor):
    await actor.report(Report("r0", Load(), {}))
    begin_s = time.monotonic()
    assert (await actor.route("alice", LISTED, ["r1"])).replica == "r0" and time.monotonic() == begin_s
    assert (await actor.route("ben", {"r2": None})).replica == "r2"
    assert GATHER_S <= time.monotonic() - begin_s < GATHER_S + 0.2


async def test_it_ends_when_nobody_calls_it(actor, monkeypatch):
    killed = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(module.ray, "kill", lambda me: loop.call_soon_threadsafe(killed.set))
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: type("Context", (), {"current_actor": "me"}))
    begin_s = time.monotonic()
    await actor.update({})
    await asyncio.sleep(module.IDLE_S / 2)
    await actor.claim("alice", "r0")
    await killed.wait()
    assert time.monotonic() - begin_s == pytest.approx(1.5 * module.IDLE_S, abs=1)


class FakeActor:
    def __init__(self, answer) -> None:
        self.answer = answer
        self.claim = Method(self._claim, lambda work: work)

    async def _claim(self, *arguments):
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer == "never":
            await asyncio.sleep(1e6)
        return self.answer, arguments


@pytest.fixture
def client(monkeypatch):
    client = DirectoryClient("app")
    client.actors = []
    monkeypatch.setattr(client, "_connect", lambda: client.actors.pop(0))
    return client


async def test_the_client_connects_once(client):
    client.actors = [FakeActor(1)]
    assert [await client.call("claim", "alice", "r0") for _ in range(2)] == [(1, ("alice", "r0"))] * 2


@pytest.mark.parametrize("answer", ["never", ActorUnavailableError("it restarts", b"1" * 16), asyncio.CancelledError()])
async def test_a_directory_that_does_not_answer_is_an_error_and_is_asked_again(client, answer):
    """Ray also raises CancelledError from a call whose actor was lost."""
    actor = FakeActor(answer)
    client.actors = [actor]
    begin_s = time.monotonic()
    with pytest.raises(DirectoryError, match="claim"):
        await client.call("claim", "alice", "r0")
    assert time.monotonic() - begin_s <= module.CALL_TIMEOUT_S
    actor.answer = 2
    assert (await client.call("claim", "alice", "r0"))[0] == 2


async def test_a_directory_that_has_ended_is_started_again(client):
    client.actors = [FakeActor(ActorDiedError()), FakeActor(3)]
    with pytest.raises(DirectoryError):
        await client.call("claim", "alice", "r0")
    assert (await client.call("claim", "alice", "r0"))[0] == 3


async def test_a_caller_that_is_cancelled_gets_no_error_of_the_directory(client):
    client.actors = [FakeActor("never")]
    call = asyncio.create_task(client.call("claim", "alice", "r0"))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def test_each_application_has_its_own_directory():
    assert DirectoryClient("one")._name != DirectoryClient("two")._name
