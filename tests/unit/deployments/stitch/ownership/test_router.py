"""The router of Stitch over fake replicas and a directory in this process, without Ray."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deployments.common.messages import SpeakRequest
from deployments.stitch.ownership import router as module
from deployments.stitch.ownership.directory import CONFIRM_S, SILENT_S, Load, Report, SessionUse
from deployments.stitch.ownership.router import SessionRouter
from tests.support.cluster import LocalDirectory
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

STITCH = DeploymentID("Stitch", "app")


class Replica:
    """As Serve's RunningReplica."""

    max_ongoing_requests = 1000

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, STITCH)
        self._replica_info = SimpleNamespace(name=name)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


R0, R1, R2 = (Replica(f"r{number}") for number in range(3))


@pytest.fixture
def directory() -> LocalDirectory:
    return LocalDirectory()


def make_router(directory: LocalDirectory, *replicas: Replica) -> SessionRouter:
    router = SessionRouter(
        deployment_id=STITCH,
        handle_source=DeploymentHandleSource.REPLICA,
        create_replica_wrapper_func=lambda info: Replica(info.name),
        get_curr_time_s=time.time,
    )
    router._directory = directory
    router.update_replicas(list(replicas))
    return router


def request(session_id: str, *arguments) -> PendingRequest:
    return PendingRequest(list(arguments), {}, RequestMetadata("1", "1", call_method="speak", session_id=session_id))


async def route(router: SessionRouter, session_id: str, *arguments) -> str:
    """The id of the replica that a request is sent to."""
    chosen = await router._choose_replica_for_request(request(session_id, *arguments))
    return chosen.replica_id.unique_id


def asked(directory: LocalDirectory) -> int:
    return directory.calls.count("route")


async def test_a_known_session_costs_no_call(directory):
    router = make_router(directory, R0, R1)
    first = await route(router, "alice")
    assert [await route(router, "alice") for _ in range(20)] == [first] * 20
    assert asked(directory) == 1


async def test_an_owner_is_checked_from_time_to_time_and_no_request_waits_for_that(directory):
    router = make_router(directory, R0, R1)
    assert await route(router, "alice") == "r0"
    directory.directory._entries["alice"].owner = "r1"
    await asyncio.sleep(module.REFRESH_S + 1)
    call, answer = directory.call, asyncio.Event()

    async def slow(method, *arguments, timeout_s=1.0):
        await answer.wait()
        return await call(method, *arguments)

    directory.call = slow
    assert [await route(router, "alice") for _ in range(3)] == ["r0"] * 3
    answer.set()
    await asyncio.sleep(0.1)
    assert await route(router, "alice") == "r1" and asked(directory) == 2


async def test_requests_of_a_new_session_share_one_call(directory):
    router = make_router(directory, R0, R1)
    replicas = await asyncio.gather(*(route(router, "alice") for _ in range(20)))  # they have the same request id
    assert len(set(replicas)) == 1 and asked(directory) == 1


async def test_two_routers_agree_also_when_replicas_are_added(directory):
    one, two = make_router(directory, R0, R1), make_router(directory, R0, R1)
    first = {session: await route(one, session) for session in "abcdef"}
    assert set(first.values()) == {"r0", "r1"}
    two.update_replicas([R0, R1, R2])
    assert {session: await route(two, session) for session in "abcdef"} == first
    assert await route(two, "g") == "r2"
    assert await route(one, "g") == "r2"  # which is not on its list yet


async def test_a_request_without_a_session_goes_to_any_listed_replica(directory):
    router = make_router(directory, R0, R1)
    assert await router.choose_replicas([R0, R1], request("")) == [[R0, R1]]
    assert await route(router, "") in ("r0", "r1") and asked(directory) == 0


@pytest.mark.parametrize("session_id", ["", "alice"])
async def test_while_a_replica_is_full_it_is_not_asked_without_a_pause(directory, session_id):
    full = Replica("r0")
    full.max_ongoing_requests, probes = 0, []

    async def get_queue_len(*, deadline_s: float) -> int:
        probes.append(time.monotonic())
        return 0

    full.get_queue_len = get_queue_len
    routing = asyncio.create_task(route(make_router(directory, full), session_id))
    await asyncio.sleep(10.0)
    assert 15 < len(probes) < 40  # with up to half a second in between
    routing.cancel()


async def test_requests_reach_a_draining_owner_until_it_releases_the_session(directory):
    router = make_router(directory, R1)
    assert await route(router, "alice") == "r1"
    router.update_replicas([R0])
    await asyncio.sleep(CONFIRM_S)
    assert await route(router, "alice") == "r1" and await route(router, "new") == "r0"
    await directory.call("release", "r1", "alice", True)
    assert await route(router, "alice") == "r0"


async def test_a_router_that_started_later_reaches_a_draining_owner_too(directory):
    older = make_router(directory, R1)
    assert await route(older, "alice") == "r1"
    older.update_replicas([R0])
    assert await route(make_router(directory, R0), "alice") == "r1"


async def test_a_draining_owner_is_reached_while_no_other_replica_runs(directory):
    router = make_router(directory, R1)
    assert await route(router, "alice") == "r1"
    router.update_replicas([])
    async with asyncio.timeout(1.0):
        assert await route(router, "alice") == "r1"
    new = asyncio.create_task(route(router, "new"))
    await asyncio.sleep(1.0)
    assert not new.done()
    router.update_replicas([R2])
    assert await new == "r2"


async def test_the_session_of_a_dead_replica_goes_to_another(directory):
    router, other = make_router(directory, R1), make_router(directory, R0, R1)
    assert await route(router, "alice") == await route(other, "alice") == "r1"
    router.update_replicas([R0, R1])
    router.on_replica_actor_died(R1.replica_id)
    assert await route(router, "alice") == "r0"
    other.on_replica_actor_died(R1.replica_id)
    assert await route(other, "alice") == "r0"


@pytest.mark.parametrize("notice", ["on_replica_actor_died", "on_replica_actor_unavailable"])
async def test_a_departed_replica_whose_process_ended_gets_no_request(directory, notice):
    router = make_router(directory, R1)
    await route(router, "alice")
    router.update_replicas([R0])
    assert await route(router, "alice") == "r1"
    getattr(router, notice)(R1.replica_id)
    assert await route(router, "alice") == "r0"


async def test_a_listed_replica_that_cannot_be_reached_for_a_moment_keeps_its_sessions(directory):
    router = make_router(directory, R0, R1)
    assert await route(router, "alice") == "r0"
    router.on_replica_actor_unavailable(R0.replica_id)
    assert await route(router, "alice") == "r0"


async def test_an_owner_that_no_router_has_described_is_waited_for_until_it_is_gone(directory):
    directory.directory.report(Report("r9", Load(), {"alice": SessionUse(speaking=True)}))
    router, begin_s = make_router(directory, R0), time.monotonic()
    assert await route(router, "alice") == "r0"
    assert SILENT_S <= time.monotonic() - begin_s < SILENT_S + 1.0 and not router._dead


async def test_an_owner_whose_process_has_ended_is_taken_as_dead(directory):
    older, router = make_router(directory, R1), make_router(directory, R0)
    assert await route(older, "alice") == "r1"
    older.update_replicas([R0])

    def ended(info) -> None:
        raise ValueError("no such actor")

    router.create_replica_wrapper = ended
    async with asyncio.timeout(1.0):
        assert await route(router, "alice") == "r0"


async def test_a_replica_that_returns_to_the_list_is_not_taken_for_the_owner(directory):
    """It has handed its sessions over while it applied a new user_config."""
    router = make_router(directory, R0, R1)
    assert await route(router, "alice") == "r0"
    router.update_replicas([R1])
    await directory.call("release", "r0", "alice", True)
    directory.directory.route("alice", {"r1": None})
    router.update_replicas([R0, R1])
    assert await route(router, "alice") == "r1"


async def test_a_refused_request_asks_again(directory):
    router = make_router(directory, R0, R1)
    assert await route(router, "alice") == "r0"
    directory.directory._entries["alice"].owner = "r1"
    assert await route(router, "alice", SpeakRequest("alice")) == "r0"
    assert await route(router, "alice", SpeakRequest("alice", moves=1)) == "r1"
    assert await route(router, "alice") == "r1"


async def test_without_a_directory_all_routers_choose_the_same_replica_and_say_so_once(directory, caplog):
    routers = [make_router(directory, R0, R1, R2), make_router(directory, R2, R1, R0)]
    for other in ("a", "b"):
        await route(routers[0], other)
    known = await route(routers[0], "carol")
    assert known == "r2"
    directory.down = True
    assert await route(routers[0], "carol") == known
    sessions = [f"s{number}" for number in range(30)]
    placed = [[await route(router, session) for session in sessions] for router in routers]
    assert placed[0] == placed[1] and set(placed[0]) == {"r0", "r1", "r2"}
    await asyncio.sleep(module.KNOWN_S)
    assert [await route(router, "carol") for router in routers] == [known, "r0"]  # the second one has never asked
    await asyncio.sleep(module.DOWN_S)
    await route(routers[0], "another")
    assert sum("by hash" in record.message for record in caplog.records) == 2  # one per router
    directory.down = False
    await asyncio.sleep(module.DOWN_S)
    directory.directory.report(Report("r1", Load(), {"s0": SessionUse(speaking=True)}))
    assert [await route(router, "s0") for router in routers] == ["r1", "r1"]  # what the replica says counts


async def test_without_a_directory_a_draining_owner_keeps_the_sessions_that_are_known(directory):
    router = make_router(directory, R1)
    assert await route(router, "alice") == "r1"
    router.update_replicas([R0])
    directory.down = True
    assert await route(router, "alice") == "r1"


async def test_a_directory_that_is_new_is_told_the_list_again(directory):
    router = make_router(directory, R0, R1)
    await route(router, "alice")
    directory.calls.clear()
    directory.directory = LocalDirectory().directory
    await route(router, "ben")
    await asyncio.sleep(0.1)
    assert directory.calls == ["route", "update"]


async def test_many_requests_wait_for_the_directory_at_a_time(directory):
    """A session whose owner is known does not wait for others."""
    router = make_router(directory, R0)
    await route(router, "carol")
    answer = asyncio.Event()
    call = directory.call

    async def slow(method, *arguments, timeout_s=1.0):
        await answer.wait()
        return await call(method, *arguments)

    directory.call = slow
    waiting = [asyncio.create_task(route(router, f"s{number}")) for number in range(50)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(0.1):
        assert await route(router, "carol") == "r0"
    answer.set()
    assert set(await asyncio.gather(*waiting)) == {"r0"}


def test_the_private_parts_of_serve_that_the_router_overrides_exist():
    overridden = {name for name in vars(SessionRouter) if name in vars(RequestRouter) and name.startswith("_")}
    assert overridden >= {
        "_choose_replicas_with_backoff",
        "_select_from_candidate_replicas",
        "_add_pending_request_to_indices",
        "_remove_pending_request_from_indices",
        "_get_pending_request_matching_internal_request_id",
    }
    assert isinstance(RequestRouter.max_num_routing_tasks, property)
    assert "_replica_info" in RunningReplica.__init__.__code__.co_names
