"""The three blends leave the frame unchanged outside the mask, do not flicker, and equal the slow solver."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from skimage import data

from models.stitch.blends import BLENDS, Level, correction_source, feather, multiband, poisson, solve

UNDER = np.ascontiguousarray(data.astronaut()[60:200, 140:310])  # (140, 170, 3): a face


def mask(shape: tuple[int, int] = (140, 170), edge: int = 21) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    cv2.ellipse(out, (shape[1] // 2, shape[0] // 2), (shape[1] // 3, shape[0] // 3), 0, 0, 360, 255, -1)
    return cv2.GaussianBlur(out, (edge, edge), 0)


def slow_solve(source: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The slow implementation: one sparse linear system, solved directly."""
    places = {tuple(at): k for k, at in enumerate(np.argwhere(inside))}
    system = lil_matrix((len(places), len(places)))
    for (y, x), k in places.items():
        system[k, k] = -4
        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if at in places:
                system[k, places[at]] = 1
    out = np.zeros(source.shape)
    for channel in range(source.shape[2]):
        out[inside, channel] = spsolve(system.tocsr(), source[inside, channel].astype(np.float64))
    return out


@pytest.mark.parametrize("shape", [(60, 70), (61, 83), (140, 158)])
def test_the_multigrid_solution_is_the_direct_one(shape: tuple[int, int]) -> None:
    weights = mask(shape, 15)
    over = cv2.resize(np.roll(UNDER, 9, 0), shape[::-1]).astype(np.float32) + 14
    difference = np.clip(over - cv2.resize(UNDER, shape[::-1]), -20, 20)
    source = correction_source(difference, weights.astype(np.float32) / 255)
    fast, slow = solve(source, weights > 0), slow_solve(source, weights > 0)
    assert np.abs(slow).max() > 5  # grey levels: the correction is not trivial
    assert np.abs(fast - slow).max() < 0.5


def test_a_large_region_is_solved_on_a_coarser_grid_within_a_level() -> None:
    weights = mask((140, 180), 31)
    y, x = np.mgrid[:140, :180].astype(np.float32)
    difference = (np.stack([8 + x / 40, 6 - y / 30, 0 * x], -1)).astype(np.float32)
    source = correction_source(difference, weights.astype(np.float32) / 255)
    fast, slow = solve(source, weights > 0), slow_solve(source, weights > 0)
    assert np.abs(slow).max() > 5
    assert np.abs(fast - slow).max() < 1


@pytest.mark.parametrize("mode", sorted(BLENDS))
def test_outside_the_mask_nothing_changes_and_the_frame_itself_blends_to_itself(mode: str) -> None:
    weights = mask()
    other = np.ascontiguousarray(UNDER[::-1])
    assert np.array_equal(BLENDS[mode](UNDER, other, weights)[weights == 0], UNDER[weights == 0])
    assert np.abs(BLENDS[mode](UNDER, UNDER, weights).astype(int) - UNDER).max() <= 1
    assert np.array_equal(BLENDS[mode](UNDER, other, np.zeros_like(weights)), UNDER)


def test_poisson_removes_a_tint_and_feather_keeps_it_in_the_middle() -> None:
    """A face 6 levels too red: feather keeps the tint in the middle, poisson takes the level of the frame."""
    red = np.clip(UNDER.astype(int) + np.array([6, 0, 0]), 0, 255).astype(np.uint8)
    middle = (slice(60, 80), slice(75, 95), 0)
    excess = [
        float((blend(UNDER, red, mask())[middle].astype(int) - UNDER[middle]).mean()) for blend in (feather, poisson)
    ]
    assert excess[0] == pytest.approx(6, abs=0.2)
    assert abs(excess[1]) < 2


def test_poisson_keeps_the_faces_own_gradients() -> None:
    """A pattern on the face is kept; its level comes from the frame."""
    flat, pattern = np.full((140, 170, 3), 120, np.uint8), np.full((140, 170, 3), 128, np.uint8)
    pattern[:, ::8] += 6
    out = poisson(flat, pattern, mask())[60:80, 60:110].astype(float)
    assert np.abs(np.diff(out[..., 0], axis=1)).max() == pytest.approx(6, abs=1)
    assert abs(out.mean() - 120.75) < 2.5  # feather gives 128.75


def test_multiband_blends_levels_widely_and_detail_narrowly() -> None:
    """Across a hard edge, a step in level is spread. Across a soft edge, fine detail changes within fewer pixels."""
    x = np.arange(170)
    dark, light = (np.full((128, 170, 3), level, np.uint8) for level in (100, 140))
    hard = np.repeat(np.clip((x - 84) * 85, 0, 255).astype(np.uint8)[None], 128, 0)
    out, plain = (blend(dark, light, hard)[64, :, 0].astype(int) for blend in (multiband, feather))
    assert ((out > 104) & (out < 136)).sum() > 2 * ((plain > 104) & (plain < 136)).sum()
    soft = np.repeat(np.clip((x - 45) * 3, 0, 255).astype(np.uint8)[None], 128, 0)
    striped = dark.copy()
    striped[::2] += 40
    fine = [
        np.abs(np.diff(blend(dark, striped, soft)[..., 0].astype(int), axis=0)).mean(0)
        for blend in (multiband, feather)
    ]
    widths = [int(((row > 4) & (row < 36)).sum()) for row in fine]
    assert widths[0] < 0.5 * widths[1]


@pytest.mark.parametrize("mode", sorted(BLENDS))
def test_noise_of_the_face_is_not_amplified(mode: str) -> None:
    """Independent noise per frame: the pasted frames change at most as much as the faces."""
    random = np.random.default_rng(3)
    noisy = [np.clip(UNDER + random.normal(0, 3, UNDER.shape), 0, 255).astype(np.uint8) for _ in range(2)]
    first, second = (BLENDS[mode](UNDER, face, mask()).astype(float) for face in noisy)
    inside = mask() > 0
    change = np.sqrt(((first - second)[inside] ** 2).mean())
    given = np.sqrt(((noisy[0].astype(float) - noisy[1])[inside] ** 2).mean())
    assert change <= 1.02 * given
    assert np.array_equal(BLENDS[mode](UNDER, noisy[0], mask()), BLENDS[mode](UNDER, noisy[0], mask()))


@pytest.mark.parametrize("shape", [(3, 3), (5, 40), (9, 8)])
@pytest.mark.parametrize("mode", sorted(BLENDS))
def test_small_regions_are_blended_too(mode: str, shape: tuple[int, int]) -> None:
    under, over = np.full((*shape, 3), 100, np.uint8), np.full((*shape, 3), 104, np.uint8)
    out = BLENDS[mode](under, over, np.full(shape, 255, np.uint8))
    assert out.shape == under.shape and out.min() >= 99 and out.max() <= 105


def crossed(level: Level | None, frames: int = 20) -> np.ndarray:
    """The mean level in the middle, `(n,)`, while a dark part moves across the mask's edge, as lips do."""
    middle = []
    for k in range(frames):
        face = np.clip(UNDER.astype(int) + 12, 0, 255).astype(np.uint8)
        face[86:116, 60:110] -= np.uint8(10 * (k % 2))
        middle.append(float(poisson(UNDER, face, mask(), level)[55:75, 70:100].astype(float).mean()))
    return np.array(middle)


def test_the_smoothed_level_does_not_flicker_when_lips_cross_the_edge() -> None:
    alone, steadied = (np.abs(np.diff(crossed(level), 2)).mean() for level in (None, Level()))
    assert alone > 0.5
    assert steadied < 0.25 * alone


def test_the_smoothed_level_follows_a_change_of_light_within_a_second() -> None:
    level, middle = Level(), np.s_[50:90, 70:100]
    for tint, frames in ((0, 1), (16, 25)):
        face = np.clip(UNDER.astype(int) + tint, 0, 255).astype(np.uint8)
        for _ in range(frames):
            out = poisson(UNDER, face, mask(), level)
    left = out[middle].astype(float) - poisson(UNDER, face, mask())[middle]
    assert abs(left.mean()) < 0.5
