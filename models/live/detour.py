"""The way of idle motion from one pose of the head to another, so that a pause can be shortened without a leap.

Idle motion is coded in pieces, each of which can follow on any other: the more alike what comes is to what would have
come, the less is seen of it (Video Textures, Schödl and others, 2000). Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.live.timeline import LIVE_FRAMES, IdleGrid
from models.types import Float32

JUMP = 0.2  # what a jump costs that nobody sees, in squares of what four frames of motion change
SPREAD = 48  # places all over the loop that are looked at besides what is near
LATER, SOONER = 0.1, 0.02  # and a piece more, or less, than was wanted

Look = Callable[[int], Float32]
Costs = npt.NDArray[np.float64]


def detour(grid: IdleGrid, leave: int, join: int, wanted: int, most: int, look: Look) -> list[int]:
    """Where the pieces begin that lead from `leave`, where the picture leaves its line, to `join`, where it goes on.

    Both lie on the grid. wanted, most: frames that it may take gladly, and at all. look: what the frame of a position
    looks like, an array of any one shape. The way is the cheapest by dynamic programming: a jump costs the square of
    its grey levels, so that many small ones are better than a large one, and none is best.
    """
    longest = max(0, min(most, join - leave) // LIVE_FRAMES)
    starts = _reachable(grid, leave, join, longest)
    looks = np.stack([look(start).ravel() for start in starts])  # (k, pixels)
    costs = _costs(grid, starts, looks)
    first, last = starts.index(leave % grid.loop), starts.index(join % grid.loop)
    nexts = [(start + grid.frames_at(start)) % grid.loop for start in starts]  # what would come behind each piece
    between = np.stack([costs[starts.index(at)] if at in starts else np.full(len(starts), np.inf) for at in nexts])
    way = _cheapest(costs[first], between[:, last], between, longest, wanted // LIVE_FRAMES, costs[first, last])
    base = leave - leave % grid.loop
    return [base + starts[piece] for piece in way]


def _reachable(grid: IdleGrid, leave: int, join: int, pieces: int) -> list[int]:
    """Starts within the loop, sorted: what `pieces` lead to from `leave` and back from `join`, also the other way."""
    found: set[int] = set()
    for position, ways in ((leave % grid.loop, 1), (join % grid.loop, -1)):
        near = {(position + ways * LIVE_FRAMES * step) % grid.loop for step in range(pieces + 2)}
        found |= {grid.floor(at) for at in near}
        found |= {grid.floor((grid.loop - at) % grid.loop) for at in near}
        found.add(position)
    for at in range(0, grid.loop, max(LIVE_FRAMES, grid.loop // SPREAD)):  # else far poses, and what looks like these
        start = grid.floor(at)
        found |= {start, (start + grid.frames_at(start)) % grid.loop}
    return sorted(found)


def _costs(grid: IdleGrid, starts: list[int], looks: Float32) -> Costs:
    """`(k, k)`: of showing the piece at starts[q] where that at starts[p] would come."""
    change = np.array([np.abs(looks - one).mean(axis=1) for one in looks], np.float64)
    along = [q for q in range(1, len(starts)) if starts[q - 1] + grid.frames_at(starts[q - 1]) == starts[q]]
    usual = float(np.mean([change[q - 1, q] for q in along])) if along else 0.0
    costs = JUMP + (change / max(usual, 1e-3)) ** 2
    np.fill_diagonal(costs, 0.0)
    return costs


def _cheapest(after: Costs, before: Costs, between: Costs, longest: int, wanted: int, cheapest: float) -> list[int]:
    """The pieces of the way. after: what each costs as the first, `(k,)`; before: as the last; between: `(k, k)`.

    cheapest: what no piece at all costs.
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
