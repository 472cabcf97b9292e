"""models.quality.seam: seams and sharpness of pictures with known answers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from models.quality.seam import edge_of, seam_delta_e, sharpness_ratio, steps_along

WEIGHTS = np.zeros((120, 160), np.uint8)
WEIGHTS[30:90, 40:120] = 255
GREY = np.full((120, 160, 3), 119, np.uint8)  # L* 50


def lighter(levels: int) -> np.ndarray:
    picture = GREY.copy()
    picture[WEIGHTS == 255] += levels
    return picture


def test_the_same_picture_has_no_seam() -> None:
    noise = np.random.default_rng(0).integers(80, 140, GREY.shape, dtype=np.uint8)
    assert seam_delta_e(noise, noise.copy(), WEIGHTS) == 0


@pytest.mark.parametrize(("levels", "delta_e"), [(5, 1.95), (20, 7.7), (40, 15.2)])
def test_a_grey_step_is_its_difference_in_lightness(levels: int, delta_e: float) -> None:
    assert seam_delta_e(GREY, lighter(levels), WEIGHTS) == pytest.approx(delta_e, rel=0.04)


def test_an_edge_of_the_source_is_not_counted() -> None:
    assert seam_delta_e(lighter(20), lighter(25), WEIGHTS) == pytest.approx(1.9, abs=0.3)


def test_normals_point_inwards_and_steps_locate_the_seam() -> None:
    edge, normal = edge_of(WEIGHTS)
    left = edge[:, 0] == 40
    middle = left & (edge[:, 1] > 40) & (edge[:, 1] < 80)
    assert normal[middle] == pytest.approx(np.tile([1, 0], (middle.sum(), 1)), abs=0.01)
    picture = GREY.copy()
    picture[:, 40:80] += 20  # only the left half of the paste is lighter
    steps = steps_along(picture, edge, normal)
    assert steps[middle].mean() > 5 and steps[(edge[:, 0] > 100)].max() < 0.5


def test_an_empty_mask_has_no_seam() -> None:
    assert seam_delta_e(GREY, lighter(40), np.zeros_like(WEIGHTS)) == 0


def test_a_blurred_mouth_in_a_sharp_face_is_measured() -> None:
    face = np.random.default_rng(1).integers(60, 200, (120, 160, 3), dtype=np.uint8)
    mouth = WEIGHTS == 255
    assert sharpness_ratio(face, mouth, ~mouth) == pytest.approx(1, abs=0.05)
    soft = np.where(mouth[..., None], cv2.GaussianBlur(face, (0, 0), 2), face)
    assert sharpness_ratio(soft, mouth, ~mouth) < 0.3


def test_two_flat_regions_are_equally_sharp() -> None:
    assert sharpness_ratio(GREY, WEIGHTS == 255, WEIGHTS == 0) == 1
