"""Finds a path of idle motion from one head pose to another, so that a pause can be shortened without a visible jump.

Any idle fragment can follow any other. A jump is the less visible, the more similar the frame shown is to the frame
that would have come next (Video Textures, Schödl et al., 2000).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.live.timeline import LIVE_FRAMES, IdleGrid
from models.types import Float32

JUMP = 0.2  # cost of an invisible jump; unit: the square of the mean change over four frames of motion
SPREAD = 48  # candidate positions spread over the whole loop, beside those near both ends
LATER, SOONER = 0.1, 0.02  # cost of each fragment more, or fewer, than wanted

Thumbnail = Callable[[int], Float32]  # the appearance of the frame at a timeline position: an array of any fixed shape
Costs = npt.NDArray[np.float64]


def detour(grid: IdleGrid, leave: int, join: int, wanted: int, most: int, thumbnail: Thumbnail) -> list[int]:
    """The starts of the idle fragments to show between positions `leave` and `join`, both on the grid.

    wanted, most: the preferred and the largest number of frames. The path of the lowest cost is found by dynamic
    programming. The cost of a jump grows with the square of the difference in grey levels, so several small jumps are
    better than a large one, and no jump is best.
    """
    longest = max(0, min(most, join - leave) // LIVE_FRAMES)
    starts = _reachable(grid, leave, join, longest)
    looks = np.stack([thumbnail(start).ravel() for start in starts])  # (k, pixels)
    costs = _costs(grid, starts, looks)
    first, last = starts.index(leave % grid.loop), starts.index(join % grid.loop)
    nexts = [(start + grid.frames_at(start)) % grid.loop for start in starts]  # the natural successor of each fragment
    between = np.stack([costs[starts.index(at)] if at in starts else np.full(len(starts), np.inf) for at in nexts])
    path = _cheapest(costs[first], between[:, last], between, longest, wanted // LIVE_FRAMES, costs[first, last])
    base = leave - leave % grid.loop
    return [base + starts[k] for k in path]


def _reachable(grid: IdleGrid, leave: int, join: int, steps: int) -> list[int]:
    """Candidate starts in the loop, sorted: up to `steps` fragments after `leave` and before `join`, also mirrored."""
    found: set[int] = set()
    for position, direction in ((leave % grid.loop, 1), (join % grid.loop, -1)):
        near = {(position + direction * LIVE_FRAMES * step) % grid.loop for step in range(steps + 2)}
        found |= {grid.floor(at) for at in near}
        found |= {grid.floor((grid.loop - at) % grid.loop) for at in near}
        found.add(position)
    for at in range(0, grid.loop, max(LIVE_FRAMES, grid.loop // SPREAD)):  # also distant positions that may look alike
        start = grid.floor(at)
        found |= {start, (start + grid.frames_at(start)) % grid.loop}
    return sorted(found)


def _costs(grid: IdleGrid, starts: list[int], looks: Float32) -> Costs:
    """`(k, k)`: the cost of showing the fragment at starts[q] where the one at starts[p] would come."""
    change = np.array([np.abs(looks - one).mean(axis=1) for one in looks], np.float64)
    along = [q for q in range(1, len(starts)) if starts[q - 1] + grid.frames_at(starts[q - 1]) == starts[q]]
    usual = float(np.mean([change[q - 1, q] for q in along])) if along else 0.0
    costs = JUMP + (change / max(usual, 1e-3)) ** 2
    np.fill_diagonal(costs, 0.0)
    return costs


def _cheapest(after: Costs, before: Costs, between: Costs, longest: int, wanted: int, cheapest: float) -> list[int]:
    """The path of the lowest cost, as indices of fragments.

    after: cost of each fragment as the first one, `(k,)`. before: as the last one, `(k,)`. between: `(k, k)`.
    cheapest: the cost of an empty path.
    """
    spent, best = after, list[int]()
    cheapest += SOONER * wanted
    came: list[npt.NDArray[np.int64]] = []
    for length in range(1, longest + 1):
        whole = spent + before + SOONER * max(0, wanted - length)
        if whole.min() < cheapest:
            cheapest, best = float(whole.min()), [int(whole.argmin())]
            for source in reversed(came):
                best.insert(0, int(source[best[0]]))
        through = spent[:, None] + between + (LATER if length >= wanted else 0.0)
        came.append(through.argmin(axis=0))
        spent = through.min(axis=0)
    return best
