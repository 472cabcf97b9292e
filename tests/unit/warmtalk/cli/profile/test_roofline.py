"""What bounds a stage, from figures with a known answer."""

from __future__ import annotations

import pytest

from models.runtime.ceilings import Ceilings
from warmtalk.cli.profile.roofline import CallCost, Network, judge

DEVICE = Ceilings("cuda", "float16", flop_s=100e12, bytes_s=1e12, launch_s=5e-6)


def speeds(fixed_s: float, frame_s: float, sizes=(1, 4, 16, 64)) -> dict[int, float]:
    return {n: n / (fixed_s + frame_s * n) for n in sizes}


def test_the_cost_of_a_call_is_found_from_its_speeds() -> None:
    cost = CallCost.fit(speeds(0.02, 0.001))
    assert (cost.fixed_s, cost.frame_s) == pytest.approx((0.02, 0.001))
    assert cost.fixed_share(20) == pytest.approx(0.5)
    assert CallCost.fit({8: 100.0}) == CallCost(0.0, 0.01)
    assert CallCost.fit({1: 100.0, 4: 90.0}).fixed_s == 0  # never negative


@pytest.mark.parametrize(
    ("rate", "fixed_s", "network", "wait", "bound"),
    [
        (600.0, 0.0, Network(100.0, 100.0, 16), 0.0, "compute"),  # 60 of 100 TFLOP/s, 60 of 1,000 GB/s
        (600.0, 0.0, Network(10.0, 1000.0, 16), 0.0, "memory"),
        (600.0, 0.0, Network(10.0, 9000.0, 16), 0.0, "memory"),  # more than the device can: from caches
        (600.0, 0.0, Network(1.0, 10.0, 16), 0.0, "launch/overhead"),  # far below both
        (600.0, 0.1, Network(100.0, 100.0, 16), 0.0, "launch/overhead"),  # a tenth of a second whatever the frames
        (600.0, 0.1, Network(100.0, 100.0, 16), 0.8, "queue"),
        (600.0, 0.0, None, 0.0, "unknown"),
    ],
)
def test_the_bound_of_a_stage(rate, fixed_s, network, wait, bound) -> None:
    found = judge(rate, 16, CallCost(fixed_s, 1 / rate), network, DEVICE if network else None, wait)
    assert found.bound == bound and found.why
    if bound == "compute":
        assert (found.share, found.flop_per_byte, found.gflop_s) == (0.6, 1000.0, 60_000.0)
