"""benchmarks.known_motion: the clip moves exactly as stated, and known errors are measured."""

import cv2
import numpy as np
import pytest

from benchmarks.known_motion import KnownMotion, following, known_motion, level_rms, misplacement
from models.avatar.detect import BlazeMesh
from models.geometry import apply, invert
from tests.support.avatar import astronaut


@pytest.fixture(scope="module")
def clip() -> KnownMotion:
    return known_motion(160, frames=40, cut=25)


def ideal_crops(clip: KnownMotion) -> np.ndarray:
    """Crop transforms that are fixed on the head: one square of the still picture, `(n, 2, 3)`."""
    onto = np.array([[0.6, 0, -110.0], [0, 0.6, -130.0]])  # still px → crop px
    linear = onto[:, :2] @ invert(clip.motions)[:, :, :2]
    shift = apply(onto, invert(clip.motions)[:, :, 2])
    return np.concatenate([linear, shift[:, :, None]], 2)


def face_only(clip: KnownMotion, k: int) -> np.ndarray:
    mask = np.zeros((clip.size_px, clip.size_px), np.uint8)
    jaw_and_brows = clip.true_landmarks()[k, [*range(17), *range(26, 16, -1)]]
    return cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(jaw_and_brows).astype(np.int32)), 1)


@pytest.mark.parametrize("face_px", [160, 256])
def test_the_face_has_the_requested_size(face_px: int) -> None:
    clip = known_motion(face_px, frames=2)
    (face,) = BlazeMesh().detect(clip.frame(0))
    assert face.size_px == pytest.approx(face_px, rel=0.05)
    assert np.abs(face.landmarks[[36, 39, 42, 45]] - clip.true_landmarks()[0, [36, 39, 42, 45]]).max() < 0.03 * face_px


@pytest.mark.parametrize(("first", "second"), [(3, 4), (12, 14), (30, 31)])
def test_the_picture_moves_by_the_stated_motion(clip: KnownMotion, first: int, second: int) -> None:
    """Frame `second`, moved back by the stated motions, matches frame `first` within 0.02 px."""
    between = clip.motions[first][:, :2] @ np.linalg.inv(clip.motions[second][:, :2])
    back = np.concatenate([between, (clip.motions[first][:, 2] - between @ clip.motions[second][:, 2])[:, None]], 1)
    size = (clip.size_px, clip.size_px)
    carried = cv2.warpAffine(clip.frame(second), back, size, flags=cv2.INTER_LANCZOS4)
    assert np.hypot(*misplacement(clip.frame(first), carried, face_only(clip, first))) < 0.02


def test_the_wall_is_still_and_changes_at_the_cut(clip: KnownMotion) -> None:
    corner = (slice(0, 40), slice(0, 40))
    first, last, after = (clip.frame(k)[corner].astype(int) for k in (0, 24, 25))
    assert np.abs(first - last).max() == 0 and np.abs(last - after).mean() > 15
    assert first.std() > 15


def test_a_talking_head_changes_only_below_the_nose() -> None:
    talking, still = known_motion(160, 6, cut=None, talking=True), known_motion(160, 6, cut=None)
    changed = np.abs(talking.frame(3).astype(int) - still.frame(3)).max(-1) > 20
    rows, columns = changed.nonzero()
    points = still.true_landmarks()[3]
    assert changed.sum() > 200
    assert rows.min() > points[33, 1] and rows.max() < points[8, 1] + 48  # and the chin's shadow
    assert points[2, 0] < columns.min() and columns.max() < points[14, 0]


def test_crops_that_are_fixed_on_the_head_have_no_error(clip: KnownMotion) -> None:
    found = following(clip, ideal_crops(clip))
    assert max(found.place_rms, found.corner_rms, found.jitter_rms, found.roll_rms_deg, abs(found.lag_frames)) < 1e-6


def test_noise_shift_and_lag_are_measured(clip: KnownMotion) -> None:
    noise = np.random.default_rng(0).normal(scale=0.3, size=(len(clip), 2))
    noisy = ideal_crops(clip)
    scale = np.sqrt(np.linalg.det(noisy[:, :, :2]))
    noisy[:, :, 2] += noise * scale[:, None]  # 0.3 frame px
    found = following(clip, noisy)
    assert found.place_rms == pytest.approx(0.3, rel=0.15) and found.jitter_rms == pytest.approx(0.3, rel=0.15)
    assert found.roll_rms_deg < 1e-6
    late = known_motion(160, frames=40, cut=None)
    delayed = np.concatenate([ideal_crops(late)[:1], ideal_crops(late)[:-1]])
    assert following(late, delayed).lag_frames == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shift", [(0.05, 0.0), (0.3, -0.2), (-0.7, 0.4)])
def test_a_misplacement_is_measured(shift: tuple[float, float]) -> None:
    large = cv2.resize(astronaut(), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    forth = np.array([[1, 0, 4 * shift[0]], [0, 1, 4 * shift[1]]])
    moved = cv2.warpAffine(large, forth, (1200, 1200), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    before, after = (cv2.resize(image, (300, 300), interpolation=cv2.INTER_AREA) for image in (large, moved))
    inside = np.zeros((300, 300))
    inside[20:-20, 20:-20] = 1
    assert misplacement(before, after, inside) == pytest.approx(shift, abs=0.02)
    assert misplacement(before, before, inside) == (0, 0)


def test_level_rms_counts_what_the_weights_cover() -> None:
    before, after, weights = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4))
    after[0] = 6
    weights[:2] = 1
    assert level_rms(before, after, weights) == pytest.approx(6 / np.sqrt(2))
