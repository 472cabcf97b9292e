"""Whether lips are closed where speech closes them: at p, b and m. Works on lip gaps, knows no pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

CLOSED_SHARE = 0.12  # of the way from the rest gap to a wide-open mouth
WIDE_PERCENTILE = 98.0  # what counts as wide open
REST_PERCENTILE = 10.0  # what counts as rest where nothing is silent: speech shuts the lips at least so often
NEAR_FRAMES = 2  # frames this near to a closure are no control for it


def closed_below(gap: Float64, silent: Bool) -> float:
    """The gap under which lips count as closed, from gaps `(n,)` that show rest and wide-open mouths.

    Rest is the median in silence, or a low percentile where nothing is silent.
    """
    rest = float(np.median(gap[silent])) if silent.any() else float(np.percentile(gap, REST_PERCENTILE))
    return rest + CLOSED_SHARE * (float(np.percentile(gap, WIDE_PERCENTILE)) - rest)


def within_one_frame(closed: Bool) -> Bool:
    """Whether a frame or one beside it is closed: a closure may fall a frame beside its sound."""
    near: Bool = closed | np.r_[closed[1:], False] | np.r_[False, closed[:-1]]
    return near


def controls(frames: int, closures: Sequence[int], silent: Bool) -> list[int]:
    """Speech frames that are not near a closure, against which closures are held."""
    near = {k + d for k in closures for d in range(-NEAR_FRAMES, NEAR_FRAMES + 1)}
    return [k for k in range(NEAR_FRAMES, frames - NEAR_FRAMES) if not silent[k] and k not in near]


def closed_at(gap: Float64, closures: Sequence[int], below: float) -> Bool:
    """Of each closure, whether the lips are closed in its frame or one beside it."""
    return within_one_frame(gap < below)[list(closures)]
