"""models.avatar.flow: motion of the rigid face, to hundredths of a pixel, independent of the mouth."""

import cv2
import numpy as np
import pytest

from benchmarks.known_motion import KnownMotion, known_motion
from models.avatar.detect import BlazeMesh
from models.avatar.flow import FaceFlow, Motion, rigid_region
from models.geometry import apply, invert
from models.types import Float32, UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity


@pytest.fixture(scope="module")
def faces() -> dict[str, tuple[UInt8, Float32]]:
    """Two portraits with their landmarks."""
    detector = BlazeMesh()
    return {
        name: (image, detector.detect(image)[0].landmarks)
        for name, image in (("hopper", hopper()), ("astronaut", astronaut()))
    }


def between(first: UInt8, points: Float32, second: UInt8, moved_points: Float32) -> Motion | None:
    flow = FaceFlow()
    assert flow.step(first, points) is None
    return flow.step(second, moved_points)


def miss(motion: Motion, true: np.ndarray, place: np.ndarray) -> float:
    """Distance between the true and the measured motion of a point, px."""
    there = motion.factor * complex(*place) + motion.shift
    return float(np.hypot(*(apply(true, place[None])[0] - [there.real, there.imag])))


@pytest.mark.parametrize("name", ["hopper", "astronaut"])
@pytest.mark.parametrize("motion", [(0.0, 1.0, 0.3, -0.2), (1.5, 1.01, 2.4, 1.3), (-3.0, 0.98, -9.0, 6.0)])
def test_a_real_faces_motion_is_found(faces: dict, name: str, motion: tuple[float, ...]) -> None:
    """Rotation, zoom and shift of a portrait, with 1 px of landmark noise: found to 0.05 px at the nose."""
    image, points = faces[name]
    true = similarity(image.shape, *motion)
    noise = np.random.default_rng(0).normal(size=(68, 2))
    found = between(image, points, moved(image, true), (apply(true, points) + noise).astype(np.float32))
    assert found is not None and found.share > 0.8
    assert miss(found, true, points[29].astype(float)) < 0.05
    assert abs(np.degrees(np.angle(found.factor)) - motion[0]) < 0.08


def errors_on(clip: KnownMotion) -> tuple[np.ndarray, list[Motion]]:
    """Error of each step of the clip at the nose, complex px, with 1 px of landmark noise."""
    flow, random, errors, found = FaceFlow(), np.random.default_rng(0), [], []
    for k, points in enumerate(clip.true_landmarks()):
        motion = flow.step(clip.frame(k), (points + random.normal(size=(68, 2))).astype(np.float32))
        if k == 0:
            continue
        assert motion is not None, k
        start = clip.true_landmarks()[k - 1, 29]
        end = apply(clip.motions[k], apply(invert(clip.motions[k - 1]), start[None]))[0]
        errors.append(motion.factor * complex(*start) + motion.shift - complex(*end))
        found.append(motion)
    return np.array(errors), found


@pytest.mark.parametrize("talking", [False, True])
def test_speech_does_not_move_a_head(talking: bool) -> None:
    """Each step is right to 0.03 px and 25 steps to 0.5 px, with a closed or a talking mouth."""
    errors, found = errors_on(known_motion(160, 26, cut=None, talking=talking))
    assert np.sqrt((np.abs(errors) ** 2).mean() / 2) < 0.03
    assert np.abs(errors.sum()) < 0.5
    assert np.mean([motion.share for motion in found]) > 0.9


def test_the_estimated_noise_agrees_with_the_errors() -> None:
    errors, found = errors_on(known_motion(160, 26, cut=None, talking=True))
    stated = np.sqrt(np.mean([motion.variance_at(motion.middle) for motion in found]))
    measured = np.sqrt((np.abs(errors - errors.mean()) ** 2).mean() / 2)
    assert 0.3 < stated / measured < 3


def test_features_are_only_on_the_rigid_face(faces: dict) -> None:
    for image, points in faces.values():
        region = rigid_region(points.astype(np.float64), image.shape) > 0
        whole = np.zeros(image.shape[:2], np.uint8)
        for group in (slice(36, 42), slice(42, 48), slice(48, 60), slice(17, 22), slice(22, 27)):
            cv2.fillPoly(whole, [np.rint(points[group]).astype(np.int32)], 1)  # eyes, mouth, brows
        outline = np.rint(points[[*range(17), *range(26, 16, -1)]]).astype(np.int32)
        face = cv2.fillPoly(np.zeros(image.shape[:2], np.uint8), [outline], 1)
        rows = np.flatnonzero(region.any(1))
        assert region.sum() > 0.1 * face.sum()
        assert not (region & (whole > 0)).any() and not (region & (face == 0)).any()
        assert rows.max() < points[33, 1] + 1  # above the base of the nose: no lip, no chin


def test_a_flash_is_not_motion(faces: dict) -> None:
    image, points = faces["hopper"]
    true = similarity(image.shape, 0.5, 1, 1.5, -0.5)
    bright = np.clip(moved(image, true) * 1.25, 0, 255).astype(np.uint8)
    found = between(image, points, bright, apply(true, points).astype(np.float32))
    assert found is not None and miss(found, true, points[29].astype(float)) < 0.2


def test_another_picture_has_no_motion(faces: dict) -> None:
    (image, points), (other, _) = faces["hopper"], faces["astronaut"]
    found = between(image, points, cv2.resize(other, image.shape[1::-1]), points)
    assert found is None or found.share < 0.5


def test_there_is_no_motion_without_a_face_in_both_frames(faces: dict) -> None:
    image, points = faces["hopper"]
    flow = FaceFlow()
    assert [flow.step(image, p) is None for p in (None, points, None, points, points)] == [True] * 4 + [False]


def test_faces_at_the_edge_outside_or_tiny_raise_nothing(faces: dict) -> None:
    image, points = faces["hopper"]
    away = points + np.array([image.shape[1] - 230, 0])
    between(image, away.astype(np.float32), image, away.astype(np.float32))
    outside = (points + np.array([2000, 0])).astype(np.float32)
    assert between(image, outside, image, outside) is None
    assert between(image, points / 30, image, points / 30) is None


@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_frames_give_the_same_motion_on_any_number_of_threads(faces: dict, threads: int) -> None:
    image, points = faces["hopper"]
    true = similarity(image.shape, 1.0, 1.01, 2, 1)
    pair = (image, points, moved(image, true), apply(true, points).astype(np.float32))
    before = cv2.getNumThreads()
    first = between(*pair)
    try:
        cv2.setNumThreads(threads)
        assert between(*pair) == first
    finally:
        cv2.setNumThreads(before)


def test_a_large_face_is_tracked_too(faces: dict) -> None:
    """A face of 680 px is tracked in a reduced picture, to 0.1 px."""
    image, points = faces["hopper"]
    large, grown = cv2.resize(image, None, fx=3.3, fy=3.3, interpolation=cv2.INTER_CUBIC), (points + 0.5) * 3.3 - 0.5
    true = similarity(large.shape, 1.0, 1, 5.5, -2.3)
    found = between(large, grown.astype(np.float32), moved(large, true), apply(true, grown).astype(np.float32))
    assert found is not None and miss(found, true, grown[29].astype(float)) < 0.1
