"""models.restore.align: faces are laid onto the FFHQ template and pasted back without moving."""

import cv2
import numpy as np
import pytest

from models.avatar.store import AvatarStore
from models.geometry import apply, invert
from models.restore.align import (
    FFHQ_512,
    align,
    five_points,
    paste_aligned,
    restore_aligned,
    soft_square,
    to_template,
    upsampled,
)
from tests.support.paths import ROOT

BUILTIN = ROOT / "models" / "embedded" / "avatars"


@pytest.fixture(scope="module")
def presenter():
    return AvatarStore(BUILTIN).load("presenter", latents=False)


def pattern(size: int) -> np.ndarray:
    """Smooth waves that differ at every position."""
    y, x = np.mgrid[:size, :size] / size * 2 * np.pi
    waves = np.stack([np.sin(3 * x + y), np.cos(2 * y - x), np.sin(4 * y) * np.cos(3 * x)], -1)
    return np.round(127.5 + 110 * waves).astype(np.uint8)


def test_five_points_are_eye_centres_nose_tip_and_mouth_corners() -> None:
    points = np.arange(68 * 2, dtype=np.float32).reshape(1, 68, 2)
    assert np.array_equal(five_points(points)[0], _expected(points[0]))


def _expected(points: np.ndarray) -> np.ndarray:
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def test_the_fit_recovers_a_known_similarity() -> None:
    angle, zoom = 0.3, 1.7
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    there = np.concatenate([linear, [[12.0], [-40.0]]], axis=1)
    points = apply(invert(there), FFHQ_512)
    assert np.abs(to_template(points) - there).max() < 1e-9
    small = to_template(points, 256)
    assert np.abs(apply(small, points) - ((FFHQ_512 + 0.5) / 2 - 0.5)).max() < 1e-9


def test_an_enlarged_picture_has_the_same_position_on_the_template() -> None:
    transform = to_template(np.array([[80, 100], [170, 98], [126, 140], [95, 190], [160, 191]], float))
    spots = np.array([[10.0, 20.0], [200.0, 90.0]])
    assert np.abs(apply(upsampled(transform, 2), 2 * spots + 0.5) - apply(transform, spots)).max() < 1e-9


def test_the_embedded_avatars_landmarks_are_near_the_template(presenter) -> None:
    in_crop = apply(presenter.transforms, presenter.landmarks)
    points = five_points(in_crop)
    off = np.linalg.norm(apply(to_template(points), points.astype(float)) - FFHQ_512, axis=-1)  # (n, 5)
    assert off.mean() < 20, off.mean()  # a drawn face is not FFHQ's mean face


def test_aligning_and_pasting_back_moves_nothing(presenter) -> None:
    """A pattern, with the alignment of the embedded avatar's frames; its shift is measured by its gradient."""
    crop = pattern(256)
    large = cv2.resize(crop, (512, 512), interpolation=cv2.INTER_CUBIC)
    points = five_points(apply(presenter.transforms, presenter.landmarks))
    inner, worst = slice(80, 432), 0.0
    for k in range(0, len(points), max(1, len(points) // 8)):
        transform = to_template(points[k])
        back = paste_aligned(large, align(crop, transform), upsampled(transform, 2), 1.0)
        worst = max(worst, float(np.hypot(*shift_px(large[inner, inner], back[inner, inner]))))
        assert np.abs(back[inner, inner].astype(float) - large[inner, inner]).mean() < 2.0
    print(f"worst shift {worst:.4f} px of 512")
    assert worst < 0.05


def shift_px(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The shift from `a` to `b`: least squares over the gradient (Lucas and Kanade 1981)."""
    a, b = a.astype(float), b.astype(float)
    gradient = np.stack(np.gradient((a + b) / 2, axis=(1, 0)), -1).reshape(-1, 2)
    return np.linalg.lstsq(gradient, (a - b).reshape(-1), rcond=None)[0]


def test_the_engine_gets_aligned_faces_and_the_border_does_not_change(presenter) -> None:
    crop = np.stack([pattern(256), pattern(256)[::-1]])
    points = five_points(apply(presenter.transforms[:2], presenter.landmarks[:2]))
    seen = []

    def white(faces: np.ndarray) -> np.ndarray:
        seen.append(faces)
        return np.full_like(faces, 255)

    out = restore_aligned(crop, 1.0, points, white, batch=1)
    assert [part.shape for part in seen] == [(1, 512, 512, 3)] * 2
    assert np.array_equal(seen[0][0], align(crop[0], to_template(points[0])))
    plain = cv2.resize(crop[0], (512, 512), interpolation=cv2.INTER_CUBIC)
    assert np.abs(out[0].astype(int) - plain)[[0, -1]].max() == 0
    assert out[0, 256, 256].min() == 255
    half = restore_aligned(crop, 0.5, points, white, batch=2)
    assert np.abs(half[0, 256, 256] - (plain[256, 256].astype(float) + 255) / 2).max() <= 1
    assert np.array_equal(restore_aligned(crop, 0.0, points, white, batch=2)[0], plain)


def test_the_template_is_grey_outside_the_crop() -> None:
    aligned = align(np.zeros((256, 256, 3), np.uint8), np.array([[1.0, 0, 100], [0, 1, 100]]))
    assert aligned[300, 300].tolist() == [0, 0, 0]
    assert aligned[10, 10].tolist() == [135, 133, 132]


def test_the_soft_square_is_one_inside_and_zero_at_the_border() -> None:
    square = soft_square()
    assert square[0].max() == 0 and square[:, -1].max() == 0
    assert square[24:-24, 24:-24].min() == 1
    assert np.diff(square[256]).max() < 0.07
