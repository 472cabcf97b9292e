"""A detour of idle motion: on the grid, within its length, without a visible jump."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from deployments.common.paths import builtin_avatars
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.live.detour import detour
from models.live.timeline import IdleGrid

KEEP = 37  # frames: the default, 1.5 s


def shown(grid: IdleGrid, leave: int, path: list[int], join: int) -> np.ndarray:
    """Positions of the frames, from the last before `leave` to the first after the detour."""
    return np.array([leave - 1, *(at + k for at in path for k in range(grid.frames_at(at))), join])


def thumbnails(length: int):
    """The thumbnails of an avatar whose frame k has grey level k."""
    return lambda position: np.float32([ping_pong(position, 1, length)[0]])


def test_after_whole_periods_no_jump_is_needed():
    grid = IdleGrid.of(41, 25)
    assert detour(grid, 8, 8 + 5 * grid.loop, 40, 200, thumbnails(41)) == []
    assert detour(grid, 8, 24 + 5 * grid.loop, 40, 200, thumbnails(41)) == [8, 12, 16, 20]


@pytest.mark.parametrize("join", range(1000, 1090, 8))
def test_a_detour_with_enough_time_has_no_jump(join):
    length, grid = 41, IdleGrid.of(41, 25)
    join = grid.ceil(join)
    path = detour(grid, 8, join, 40, 200, thumbnails(length))
    frames = ping_pong(0, 4000, length)[shown(grid, 8, path, join)]
    assert np.abs(np.diff(frames)).max() <= 2
    assert all(grid.floor(at) == at for at in path) and len(path) <= 200 // 4


def test_a_detour_without_enough_time_has_several_small_jumps():
    length, grid = 401, IdleGrid.of(401, 25)
    path = detour(grid, 8, 4 * 99, 40, 40, thumbnails(length))
    frames = ping_pong(0, 4000, length)[shown(grid, 8, path, 4 * 99)]
    assert len(path) == 10 and np.abs(np.diff(frames)).max() < 80  # 40 of 388 frames are shown


def test_a_detour_of_the_presenter_looks_like_its_own_motion():
    """One jump between the most similar frames would be 2.6 grey levels (median), up to 7.5."""
    avatar = AvatarStore(Path("/nowhere"), builtin_avatars()).load("presenter", latents=False)
    assert avatar.frames is not None
    small = np.stack([avatar.frames[k][::8, ::8] for k in range(len(avatar))]).astype(np.float32)
    usual = max(float(np.abs(a - b).mean()) for a, b in itertools.pairwise(small))
    grid, timeline = IdleGrid.of(len(avatar), avatar.fps), ping_pong(0, 4000, len(avatar))
    jumps, kept = [], []
    for until in range(201, 3000, 231):
        leave, join = grid.ceil(until % 300), grid.ceil(300 + until)
        path = detour(grid, leave, join, 2 * KEEP - 24, 6 * KEEP, lambda at: small[timeline[at]][..., 1])
        frames = small[timeline[shown(grid, leave, path, join)]]
        jumps.append(max(float(np.abs(a - b).mean()) for a, b in itertools.pairwise(frames)))
        kept.append(4 * len(path))
    assert np.median(jumps) <= usual and max(jumps) < 1.5 * usual
    assert np.mean(kept) < 90
