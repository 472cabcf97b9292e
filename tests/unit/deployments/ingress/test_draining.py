"""An ingress replica that is being stopped ends its endless streams while their sessions are silent."""

import asyncio

import pytest

from deployments.ingress.draining import CHECK_S, CONFIRMATIONS, LAST_CONFIRMATIONS, Draining
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

NOTICED_S = CHECK_S * CONFIRMATIONS


class Replicas:
    def __init__(self, *listed: str) -> None:
        self.listed = set(listed)

    async def __call__(self) -> set[str]:
        return self.listed


@pytest.fixture
async def start():
    """start(replicas) → Draining of the replica `me`."""
    started = []

    def make(replicas: Replicas, me: str = "me") -> Draining:
        started.append(Draining(replicas, lambda: me))
        started[-1].start()
        return started[-1]

    yield make
    for draining in started:
        if draining._watching is not None:
            draining._watching.cancel()


async def test_a_replica_that_is_taken_off_the_list_is_being_stopped(start):
    replicas = Replicas("me", "other")
    draining = start(replicas)
    await asyncio.sleep(10 * CHECK_S)
    assert not draining.begun.is_set()
    replicas.listed = {"other"}
    await asyncio.sleep(NOTICED_S + 0.1)
    assert draining.begun.is_set()


async def test_a_replica_that_leaves_the_list_for_a_moment_goes_on(start):
    replicas = Replicas("me", "other")
    draining = start(replicas)
    await asyncio.sleep(CHECK_S + 0.1)
    replicas.listed = {"other"}
    await asyncio.sleep(CHECK_S)
    replicas.listed = {"me", "other"}
    await asyncio.sleep(10 * CHECK_S)
    assert not draining.begun.is_set()


@pytest.mark.parametrize("others", [set(), {"other"}])
async def test_a_replica_that_has_not_been_listed_yet_is_not_being_stopped(start, others):
    draining = start(Replicas(*others))
    await asyncio.sleep(10 * CHECK_S)
    assert not draining.begun.is_set()


async def test_the_last_replica_serves_its_viewers_until_another_one_runs(start):
    replicas = Replicas("me")
    draining = start(replicas)
    await asyncio.sleep(2 * CHECK_S)
    replicas.listed = set()
    await asyncio.sleep(10 * CHECK_S)
    assert not draining.begun.is_set()
    replicas.listed = {"new"}
    await asyncio.sleep(NOTICED_S + 0.1)
    assert draining.begun.is_set()


async def test_when_the_application_is_deleted_the_last_replica_does_not_wait_for_ever(start):
    replicas = Replicas("me")
    draining = start(replicas)
    await asyncio.sleep(2 * CHECK_S)
    replicas.listed = set()
    await asyncio.sleep(CHECK_S * (LAST_CONFIRMATIONS + 1))
    assert draining.begun.is_set()


async def test_an_unanswered_question_says_nothing(start):
    replicas = Replicas("me")
    draining = start(replicas)
    await asyncio.sleep(2 * CHECK_S)
    replicas.listed = None
    await asyncio.sleep(100 * CHECK_S)
    assert not draining.begun.is_set()


async def test_outside_of_serve_nothing_is_asked(start):
    assert start(Replicas(), me="")._watching is None
