"""Where a live stream goes on at another replica, and waiting for its viewers."""

import asyncio
import time

import pytest

from deployments.common.clocks import own_host
from deployments.common.messages import LiveResume
from deployments.stitch.live.registry import MAX_WAY_S, LiveRegistry, _due_in_s
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def resume(host: str, wall_s: float = 0.0) -> LiveResume:
    """Sent now: position 100 is due in 0.1 s. wall_s: by how much the sender's wall clock is ahead."""
    return LiveResume(100, 0.1, host, time.monotonic(), time.time() + wall_s)


async def test_on_one_host_the_clock_goes_on_exactly_whatever_its_wall_clock_says():
    sent = resume(own_host(), wall_s=3600)
    await asyncio.sleep(0.7)
    assert _due_in_s(sent) == pytest.approx(-0.6)


@pytest.mark.parametrize(("ahead_s", "due_in_s"), [(0.0, -0.6), (0.05, -0.55), (-3600, 0.1 - MAX_WAY_S), (3600, 0.1)])
async def test_between_hosts_the_wall_clocks_measure_the_way_within_limits(ahead_s, due_in_s):
    sent = resume("another host", ahead_s)
    await asyncio.sleep(0.7)
    assert _due_in_s(sent) == pytest.approx(due_in_s)


async def test_waiting_for_viewers_that_do_not_come_ends():
    begin_s = time.monotonic()
    await LiveRegistry().wait_for_viewers("alice", 5.0)
    assert time.monotonic() - begin_s == pytest.approx(5.0)
