"""models.geometry: crops along a transform, and transforms of points."""

import cv2
import numpy as np
import pytest

from models.geometry import apply, as_complex, fit_similarity, invert, similarity_matrix, warp
from tests.support.avatar import astronaut, similarity


def test_the_identity_returns_the_picture_itself() -> None:
    picture = astronaut()[:256, :256]
    assert np.array_equal(warp(picture, np.eye(2, 3)), picture)


def test_a_crop_at_integer_positions_is_exact() -> None:
    shift = np.array([[1.0, 0, -20], [0, 1, -30]])
    assert np.array_equal(warp(astronaut(), shift), astronaut()[30:286, 20:276])


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_a_large_face_is_averaged(factor: int) -> None:
    """A checkerboard of single pixels becomes grey; plain interpolation would leave stripes."""
    side = 256 * factor
    board = np.repeat(((np.indices((side, side)).sum(0) % 2) * 255).astype(np.uint8)[..., None], 3, 2)
    scale = 1 / factor
    transform = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
    crop = warp(board, transform).astype(float)
    assert abs(crop.mean() - 127.5) < 2
    assert crop.std() < (1 if factor % 2 == 0 else 128 / factor**2 + 1)


@pytest.mark.parametrize("scale", [0.3, 0.45, 0.8, 1.0, 2.2])
def test_a_crop_agrees_with_its_transform(scale: float) -> None:
    """The centre of mass of a blurred dot is within 0.05 crop px of the transformed point, at any scale."""
    frame = np.zeros((900, 900, 3), np.uint8)
    dot = np.array([431.0, 388.0])
    cv2.circle(frame, (431, 388), 20, (255, 255, 255), -1)
    frame = cv2.GaussianBlur(frame, (0, 0), 6)
    transform = similarity((256, 256), 12, scale) @ np.array([[1, 0, -431 + 127.5], [0, 1, -388 + 127.5], [0, 0, 1]])
    crop = warp(frame, transform)[..., 0].astype(float)
    y, x = np.indices(crop.shape)
    centre = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
    assert np.abs(centre - apply(transform, dot)).max() < 0.05


def test_a_transform_and_its_inverse_cancel() -> None:
    transforms = np.stack([similarity((512, 512), a, 0.4 + a / 10, a, -a) for a in range(1, 8)])
    points = np.random.default_rng(0).uniform(0, 512, (7, 68, 2))
    assert np.abs(apply(invert(transforms), apply(transforms, points)) - points).max() < 1e-9


def test_a_fit_recovers_known_similarities() -> None:
    transforms = np.stack([similarity((512, 512), a, 0.4 + a / 10, a, -a) for a in range(1, 8)])
    points = np.random.default_rng(0).uniform(0, 512, (68, 2))
    targets = np.stack([apply(transform, points) for transform in transforms])
    fitted = similarity_matrix(*fit_similarity(as_complex(points), as_complex(targets)))
    assert fitted.shape == (7, 2, 3) and np.abs(fitted - transforms).max() < 1e-9
