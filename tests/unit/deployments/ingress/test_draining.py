"""An ingress replica that is being stopped ends its endless streams while their sessions are silent."""

import asyncio

import pytest

from deployments.ingress.draining import CHECK_S, CONFIRMATIONS, LAST_CONFIRMATIONS, Draining
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

BOTH, OTHER, ALONE, NOBODY = {"me", "other"}, {"other"}, {"me"}, set()
UNKNOWN = None  # the question was not answered


class Replicas:
    listed: set[str] | None

    async def __call__(self) -> set[str] | None:
        return self.listed


@pytest.mark.parametrize(
    ("lists", "stopped"),  # which replicas are listed, for how many checks
    [
        pytest.param([(BOTH, 10)], False, id="listed"),
        pytest.param([(BOTH, 10), (OTHER, CONFIRMATIONS + 0.1)], True, id="taken off the list"),
        pytest.param([(BOTH, 1.1), (OTHER, 1), (BOTH, 10)], False, id="off the list for a moment"),
        pytest.param([(NOBODY, 10)], False, id="not listed yet"),
        pytest.param([(OTHER, 10)], False, id="not listed yet beside another"),
        pytest.param([(ALONE, 2), (NOBODY, 10)], False, id="the last one"),
        pytest.param([(ALONE, 2), (NOBODY, 10), ({"new"}, CONFIRMATIONS + 0.1)], True, id="the last one is replaced"),
        pytest.param([(ALONE, 2), (NOBODY, LAST_CONFIRMATIONS + 1)], True, id="the application is deleted"),
        pytest.param([(ALONE, 2), (UNKNOWN, 100)], False, id="the question is not answered"),
    ],
)
async def test_a_replica_that_has_left_the_list_for_good_is_being_stopped(lists, stopped):
    replicas = Replicas()
    draining = Draining(replicas, lambda: "me")
    for k, (replicas.listed, checks) in enumerate(lists):
        if not k:
            draining.start()
        assert not draining.begun.is_set()
        await asyncio.sleep(checks * CHECK_S)
    assert draining.begun.is_set() == stopped
    draining._watching.cancel()


async def test_outside_of_serve_nothing_is_asked():
    draining = Draining(Replicas(), lambda: "")
    draining.start()
    assert draining._watching is None
