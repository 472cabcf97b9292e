"""models.avatar.dissolves: blends of one shot into the next, and sequences that only resemble them."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from models.avatar.dissolves import find_dissolves, thumb, with_dissolves
from models.types import UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity, swaying

SIZE = (256, 240)
COUNT = 90


@cache
def portrait() -> UInt8:
    return cv2.resize(hopper(), SIZE, interpolation=cv2.INTER_AREA)


@cache
def other() -> UInt8:
    return cv2.resize(astronaut(), SIZE, interpolation=cv2.INTER_AREA)


@cache
def speaker() -> list[UInt8]:
    """A head that sways."""
    return [moved(portrait(), motion) for motion in swaying(portrait(), COUNT)]


def dissolve(frames: int, at: int) -> list[UInt8]:
    """A swaying head; from frame `at` on, it is blended into another picture within `frames` frames."""
    share = np.clip((np.arange(COUNT) - at + 1) / (frames + 1), 0, 1)
    return [cv2.addWeighted(one, 1 - t, other(), t, 0) for one, t in zip(speaker(), share, strict=True)]


def found(frames: list[UInt8]) -> list[int]:
    return [middle for _, middle, _ in find_dissolves([thumb(frame) for frame in frames])]


@pytest.mark.parametrize("frames", [8, 16, 25])
@pytest.mark.parametrize("at", [28, 40])
def test_a_dissolve_is_found_at_its_middle(frames: int, at: int) -> None:
    (middle,) = found(dissolve(frames, at))
    assert middle == pytest.approx(at + frames / 2, abs=2)


def test_a_hard_cut_is_not_a_dissolve() -> None:
    assert found([*speaker()[:40], *[other()] * 40]) == []


def test_fast_motion_is_not_a_dissolve() -> None:
    """A pan of a frame's width in a second, a quick nod, and a zoom to twice the size."""
    wide = np.concatenate([portrait(), other()], axis=1)
    assert found([wide[:, 10 * k : 10 * k + 256] for k in range(26)] + [other()] * 10) == []
    path = 6 * np.concatenate([np.zeros(26), np.arange(6), np.arange(6)[::-1], np.zeros(26)])
    assert found([moved(portrait(), similarity((240, 256), 0, 1, 0, dy)) for dy in path]) == []
    zoom = np.concatenate([np.ones(20), np.linspace(1, 2, 15), np.full(20, 2.0)])
    assert found([moved(portrait(), similarity((240, 256), 0, scale)) for scale in zoom]) == []
    assert found(speaker()) == []


def test_changing_light_is_not_a_dissolve() -> None:
    for gains in (np.linspace(1, 0.3, 20), np.linspace(0.4, 1.0, 12)):
        levels = np.concatenate([np.full(30, gains[0]), gains, np.full(30, gains[-1])])
        lit = [cv2.convertScaleAbs(frame, alpha=gain) for frame, gain in zip(speaker(), levels, strict=False)]
        assert found(lit) == []


def test_a_clip_shorter_than_a_dissolve_has_none() -> None:
    assert find_dissolves([]) == [] and found(dissolve(8, 4)[:20]) == []


def test_a_dissolve_is_added_to_the_cuts_unless_it_contains_one() -> None:
    thumbs = [thumb(frame) for frame in dissolve(16, 40)]
    (middle,) = [middle for _, middle, _ in find_dissolves(thumbs)]
    assert with_dissolves([5, 80], thumbs) == [5, middle, 80]
    assert with_dissolves([5, 44], thumbs) == [5, 44]
