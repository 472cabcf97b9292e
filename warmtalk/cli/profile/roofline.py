"""What a stage is bound by: its measured speed against the ceilings of the device that were measured beside it.

The roofline model: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52 (2009). A network needs at least the time of its operations at the highest rate of the device,
and of its memory traffic at the highest bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from models.runtime.ceilings import Ceilings

NEAR = 0.25  # share of a ceiling from which on it is the reason; real networks seldom reach 0.6
HALF = 0.5  # share of fixed costs in a call, or of waiting in a call, from which on they are the reason

Bound = Literal["compute", "memory", "launch/overhead", "queue", "unknown"]


@dataclass(frozen=True, slots=True)
class CallCost:
    """A call takes fixed_s + frame_s × frames."""

    fixed_s: float
    frame_s: float

    @classmethod
    def fit(cls, frames_per_s: Mapping[int, float]) -> CallCost:
        """frames_per_s: by frames per call, at least one. With one alone, fixed costs are unknown and count as 0."""
        frames = np.array(sorted(frames_per_s), np.float64)
        call_s = np.array([n / frames_per_s[int(n)] for n in frames])
        if len(frames) < 2:
            return cls(0.0, float(call_s[0] / frames[0]))
        # least squares of the relative error: a call of one frame counts as much as one of 64
        rows = np.stack([1 / call_s, frames / call_s], axis=1)
        fixed_s, frame_s = np.linalg.lstsq(rows, np.ones(len(frames)), rcond=None)[0]
        if fixed_s < 0 or frame_s < 0:
            return cls(0.0, float((call_s / frames).min()))
        return cls(float(fixed_s), float(frame_s))

    def fixed_share(self, frames: int) -> float:
        """The part of a call with this number of frames that does not depend on them, 0 to 1."""
        call_s = self.fixed_s + self.frame_s * frames
        return self.fixed_s / call_s if call_s else 0.0

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Network:
    """gflop, mb: per frame, in calls of `frames` frames."""

    gflop: float
    mb: float
    frames: int


@dataclass(frozen=True, slots=True)
class Roofline:
    """bound: with its reason in words. share: of the nearest ceiling that the stage reaches, 0 to 1.

    flop_per_byte: of the network. gflop_s: reached.
    """

    bound: Bound
    why: str
    share: float = 0.0
    flop_per_byte: float = 0.0
    gflop_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    frames_per_s: float,
    frames: int,
    cost: CallCost | None,
    network: Network | None,
    ceilings: Ceilings | None,
    wait_share: float = 0.0,
) -> Roofline:
    """frames_per_s: at `frames` per call. wait_share: of the queue in the time of a call under load."""
    share = flop_per_byte = gflop_s = 0.0
    needed, reached = None, 0.0
    if network is not None and ceilings is not None and frames_per_s:
        needed = ceilings.least_s(network.gflop * 1e9, network.mb * 1e6)
        reached = max(needed) * frames_per_s
        share = min(1.0, reached)
        flop_per_byte, gflop_s = network.gflop * 1e3 / max(network.mb, 1e-9), network.gflop * frames_per_s
    found = _bound(frames, cost, needed, reached, ceilings, wait_share)
    return Roofline(*found, round(share, 3), round(flop_per_byte, 2), round(gflop_s, 2))


def _bound(
    frames: int,
    cost: CallCost | None,
    needed: tuple[float, float] | None,
    share: float,
    ceilings: Ceilings | None,
    wait_share: float,
) -> tuple[Bound, str]:
    if wait_share >= HALF:
        return "queue", f"calls wait for {wait_share:.0%} of their time: more replicas or larger batches help"
    if cost is not None and (fixed := cost.fixed_share(frames)) >= HALF:
        return "launch/overhead", f"{fixed:.0%} of a call of {frames} frames does not depend on its frames"
    if needed is None or ceilings is None:
        return "unknown", "no network was counted, or the device was not measured"
    compute_s, memory_s = needed
    rate = f"{ceilings.flop_s / 1e9:,.0f} GFLOP/s in {ceilings.dtype}, {ceilings.bytes_s / 1e9:,.0f} GB/s"
    if share > 1:
        return (
            "memory",
            f"its operations move more than the device can ({rate}): fused, or from caches, up to its limit",
        )
    if share < NEAR:
        return "launch/overhead", f"it reaches {share:.0%} of the nearest ceiling ({rate}): small operations, copies"
    if compute_s >= memory_s:
        return "compute", f"it reaches {share:.0%} of the operations that the device can do ({rate})"
    return "memory", f"it reaches {share:.0%} of the traffic that the device can do ({rate})"
