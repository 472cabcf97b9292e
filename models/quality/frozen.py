"""Finds frames that repeat or freeze unintentionally."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

SAME_LEVELS = 0.03  # mean grey levels of change below which two frames are equal in any clip: coding noise is larger
SAME_SHARE = 0.1  # of the clip's median change, below which too: H.264 keeps refining a still picture
OWN_SHARE = 0.6  # of the source's own change at the same frames, where known, below which too
FROZEN_S = 0.12  # repeats that last this long are visible as a freeze


@dataclass(frozen=True, slots=True, eq=False)
class Freezes:
    """repeats: bool `(n,)`, frames that repeat the one before. longest: length of the longest freeze in frames, 0
    without one. at: the frame where it begins."""

    repeats: Bool
    longest: int
    at: int


def find_freezes(
    change: Float64,
    planned: Bool,
    fps: float,
    lasting: npt.NDArray[np.int64] | None = None,
    own: Float64 | None = None,
) -> Freezes:
    """Find unplanned repeats and the longest freeze.

    change: mean difference of each frame to the next in grey levels, `(n - 1,)`. planned: bool `(n,)`, frames that are
    meant to repeat the one before. lasting: display time of each frame in frames, `(n,)`; 1 by default. own: the change
    of the source's own frames, encoded the same way, `(n - 1,)`.
    """
    n = len(change) + 1
    expected = np.full(n - 1, np.median(change) * SAME_SHARE) if own is None else OWN_SHARE * own
    same = change < np.maximum(SAME_LEVELS, expected)
    repeats = np.concatenate([[False], same]) & ~planned
    held = np.zeros(n, np.int64) if lasting is None else lasting - 1
    longest, at, run = 0, 0, 0
    for k in range(n):
        run = run + 1 if repeats[k] else 0
        frozen = run + int(held[k])
        if frozen > longest:
            longest, at = frozen, max(0, k - run)
    if longest < round(FROZEN_S * fps):
        longest, at = 0, 0
    return Freezes(repeats | (held > 0), longest, at)
