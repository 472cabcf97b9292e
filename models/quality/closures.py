"""Measures whether the lips close where speech requires it, at p, b and m, from lip gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

CLOSED_SHARE = 0.12  # of the range from the rest gap to a wide-open mouth
WIDE_PERCENTILE = 98.0  # of the gap: a wide-open mouth
REST_PERCENTILE = 10.0  # of the gap: rest, if there is no silence; speech closes the lips at least that often
NEAR_FRAMES = 2  # frames this near to a closure are not used as controls


def closed_below(gap: Float64, silent: Bool) -> float:
    """Return the gap below which lips count as closed, from gaps `(n,)` of a clip with speech.

    Rest is the median gap in silence, or a low percentile if there is no silence.
    """
    rest = float(np.median(gap[silent])) if silent.any() else float(np.percentile(gap, REST_PERCENTILE))
    return rest + CLOSED_SHARE * (float(np.percentile(gap, WIDE_PERCENTILE)) - rest)


def within_one_frame(closed: Bool) -> Bool:
    """Return whether each frame or a neighbour is closed: a closure may be one frame off its sound."""
    near: Bool = closed | np.r_[closed[1:], False] | np.r_[False, closed[:-1]]
    return near


def controls(frames: int, closures: Sequence[int], silent: Bool) -> list[int]:
    """Return the speech frames that are not near a closure, with which closures are compared."""
    near = {k + d for k in closures for d in range(-NEAR_FRAMES, NEAR_FRAMES + 1)}
    return [k for k in range(NEAR_FRAMES, frames - NEAR_FRAMES) if not silent[k] and k not in near]


def closed_at(gap: Float64, closures: Sequence[int], below: float) -> Bool:
    """Return for each closure whether the lips are closed in its frame or a neighbour."""
    return within_one_frame(gap < below)[list(closures)]
