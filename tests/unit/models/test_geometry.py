"""models.geometry: cutting crops out of frames."""

import cv2
import numpy as np
import pytest

from models.geometry import apply, invert, warp
from tests.support.avatar import astronaut, similarity


def test_the_identity_returns_the_picture_itself() -> None:
    picture = astronaut()[:256, :256]
    assert np.array_equal(warp(picture, np.eye(2, 3)), picture)


def test_a_crop_of_whole_pixels_is_exact() -> None:
    shift = np.array([[1.0, 0, -20], [0, 1, -30]])
    assert np.array_equal(warp(astronaut(), shift), astronaut()[30:286, 20:276])


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_a_large_face_is_averaged_not_skipped(factor: int) -> None:
    """A checkerboard of single pixels turns grey, where plain interpolation would keep stripes of it."""
    side = 256 * factor
    board = np.repeat(((np.indices((side, side)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, 2)
    scale = 1 / factor
    transform = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
    crop = warp(board, transform).astype(float)
    assert abs(crop.mean() - 127.5) < 2
    assert crop.std() < (1 if factor % 2 == 0 else 128 / factor**2 + 1)


@pytest.mark.parametrize("scale", [0.3, 0.45, 0.8, 1.0, 2.2])
def test_points_land_where_the_transform_says(scale: float) -> None:
    """The centre of a blurred dot, by its centre of mass, at any scale: within 0.05 crop px."""
    frame = np.zeros((900, 900, 3), np.uint8)
    dot = np.array([431.0, 388.0])
    cv2.circle(frame, (431, 388), 20, (255, 255, 255), -1)
    frame = cv2.GaussianBlur(frame, (0, 0), 6)
    transform = similarity((256, 256), 12, scale) @ np.array([[1, 0, -431 + 127.5], [0, 1, -388 + 127.5], [0, 0, 1]])
    crop = warp(frame, transform)[..., 0].astype(float)
    y, x = np.indices(crop.shape)
    centre = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
    assert np.abs(centre - apply(transform, dot)).max() < 0.05


def test_there_and_back_is_the_same_place() -> None:
    transforms = np.stack([similarity((512, 512), a, 0.4 + a / 10, a, -a) for a in range(1, 8)])
    points = np.random.default_rng(0).uniform(0, 512, (7, 68, 2))
    assert np.abs(apply(invert(transforms), apply(transforms, points)) - points).max() < 1e-9
