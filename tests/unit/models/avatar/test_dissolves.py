"""models.avatar.dissolves: one shot that shows through another, and what only looks like it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.known_motion import known_motion
from models.avatar.dissolves import find_dissolves, thumb, with_dissolves
from models.types import UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity, swaying

SIZE = (512, 480)


def other() -> UInt8:
    return cv2.resize(astronaut(), SIZE, interpolation=cv2.INTER_AREA)


def speaker(count: int) -> list[UInt8]:
    """A head that sways."""
    picture = cv2.resize(hopper(), SIZE, interpolation=cv2.INTER_AREA)
    return [moved(picture, transform) for transform in swaying(picture, count)]


def dissolve(frames: int, at: int, count: int = 90) -> list[UInt8]:
    """A swaying head, and from frame `at` on another picture, in so many frames."""
    share = np.clip((np.arange(count) - at + 1) / (frames + 1), 0, 1)
    after, sway = other(), speaker(count)
    return [cv2.addWeighted(one, 1 - t, after, t, 0) for one, t in zip(sway, share, strict=True)]


def found(frames: list[UInt8]) -> list[int]:
    return [middle for _, middle, _ in find_dissolves([thumb(frame) for frame in frames])]


@pytest.mark.parametrize("frames", [8, 16, 25])
@pytest.mark.parametrize("at", [28, 40])
def test_a_dissolve_is_found_where_it_is_half_over(frames: int, at: int) -> None:
    (middle,) = found(dissolve(frames, at))
    assert middle == pytest.approx(at + frames / 2, abs=2)


def test_a_hard_cut_is_none() -> None:
    assert found([*speaker(40), *[other()] * 40]) == []


def test_fast_motion_is_none() -> None:
    """A pan of a frame's width in a second, a quick nod, a zoom to twice the size, and a moving, rolling head."""
    wide = np.concatenate([speaker(1)[0], other()], axis=1)
    assert found([wide[:, 20 * k : 20 * k + 512] for k in range(26)] + [other()] * 10) == []
    path = 12 * np.concatenate([np.zeros(26), np.arange(6), np.arange(6)[::-1], np.zeros(26)])
    assert found([moved(hopper(), similarity((480, 512), 0, 1, 0, dy)) for dy in path]) == []
    zoom = np.concatenate([np.ones(20), np.linspace(1, 2, 15), np.full(20, 2.0)])
    assert found([moved(hopper(), similarity((480, 512), 0, scale, 0, 0)) for scale in zoom]) == []
    assert found(list(known_motion(160, 60, cut=None).frames())) == []


def test_light_that_is_dimmed_or_turned_up_is_none() -> None:
    for gains in (np.linspace(1, 0.3, 20), np.linspace(0.4, 1.0, 12)):
        levels = np.concatenate([np.full(30, gains[0]), gains, np.full(30, gains[-1])])
        lit = [np.clip(f * g, 0, 255).astype(np.uint8) for f, g in zip(speaker(len(levels)), levels, strict=True)]
        assert found(lit) == []


def test_a_clip_too_short_to_hold_one_has_none() -> None:
    assert find_dissolves([]) == [] and found(dissolve(8, 4, 20)) == []


def test_a_dissolve_joins_the_cuts_unless_one_was_seen_in_it() -> None:
    thumbs = [thumb(frame) for frame in dissolve(16, 40)]
    (middle,) = [middle for _, middle, _ in find_dissolves(thumbs)]
    assert with_dissolves([5, 80], thumbs) == [5, middle, 80]
    assert with_dissolves([5, 44], thumbs) == [5, 44]
