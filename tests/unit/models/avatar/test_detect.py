"""models.avatar.detect: faces and landmarks in one picture, on real portraits."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from models.avatar.detect import MESH_OF_68, MESH_POINTS, BlazeMesh, landmarks_68
from models.avatar.face import Face
from models.errors import WeightsError
from models.geometry import apply
from models.types import UInt8
from tests.support.avatar import astronaut, hopper, moved, similarity


@pytest.fixture(scope="module")
def detector() -> BlazeMesh:
    return BlazeMesh()


def on_canvas(picture: UInt8, width: int, height: int, x: int, y: int) -> UInt8:
    canvas = np.full((height, width, 3), 110, np.uint8)
    canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return canvas


def test_landmarks_agree_with_points_marked_by_hand(detector: BlazeMesh) -> None:
    """Eyes, nose tip, mouth corners and chin as marked by hand, within 5 % of the face's size."""
    (face,) = detector.detect(astronaut())
    by_hand = {36: (113, 101), 45: (179, 104), 30: (146, 126), 48: (124, 140), 54: (165, 142), 8: (142, 178)}
    for index, place in by_hand.items():
        assert np.linalg.norm(face.landmarks[index] - place) < 0.05 * face.size_px, (index, face.landmarks[index])
    assert face.score > 0.8 and face.flag > 0.99
    assert 95 < face.size_px < 120


def test_hopper_is_found_behind_her_glasses(detector: BlazeMesh) -> None:
    (face,) = detector.detect(hopper())
    assert 190 < face.size_px < 220


def test_68_points_are_in_ibug_order(detector: BlazeMesh) -> None:
    """What must hold for iBUG's numbering on any upright face."""
    for picture in (astronaut(), hopper()):
        x, y = detector.detect(picture)[0].landmarks.T
        assert np.all(np.diff(x[5:12]) > 0) and y[8] == y.max()  # the jaw runs to the image's right, the chin is lowest
        assert np.all(np.diff(x[17:27]) > 0)  # brows, left to right in the image
        assert np.all(np.diff(y[27:31]) > 0) and np.all(np.diff(x[31:36]) > 0)  # bridge downwards, nostrils across
        assert x[36] < x[39] < x[42] < x[45]  # eye corners
        assert max(y[36:48]) < y[30] < min(y[48:68])  # eyes above the nose tip above the mouth
        assert y[51] < y[62] <= y[66] < y[57]  # outer lip, inner lip, inner lip, outer lip
        steps = np.linalg.norm(np.diff(np.stack([x, y], 1)[27:31], axis=0), axis=1)
        assert steps.max() < 1.6 * steps.min()  # the points of the bridge are evenly spaced


def test_each_mesh_point_is_used_once() -> None:
    used = [index for points in MESH_OF_68 for index in points]
    assert len(MESH_OF_68) == 68 and len(set(used)) == len(used) and max(used) < MESH_POINTS


def test_mirrored_faces_have_mirrored_landmarks(detector: BlazeMesh) -> None:
    """A mirrored picture gives mirrored landmarks, within 2.5 % of the face's size."""
    mirror = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46]
    mirror += [39, 38, 37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65]
    (face,), (flipped,) = detector.detect(hopper()), detector.detect(np.ascontiguousarray(hopper()[:, ::-1]))
    back = flipped.landmarks[mirror] * [-1, 1] + [hopper().shape[1] - 1, 0]
    assert np.sqrt(((back - face.landmarks) ** 2).sum(1).mean()) < 0.025 * face.size_px


@pytest.mark.parametrize("roll", [-40, -20, 20, 40])
def test_a_turned_head_turns_its_landmarks(detector: BlazeMesh, roll: float) -> None:
    motion = similarity(hopper().shape, roll)
    (before,), (after,) = detector.detect(hopper()), detector.detect(moved(hopper(), motion))
    error = apply(motion, before.landmarks) - after.landmarks
    assert np.sqrt((error**2).sum(1).mean()) < 0.035 * before.size_px


def test_a_still_picture_gives_the_same_mesh_when_tracked(detector: BlazeMesh) -> None:
    """Detection ends where tracking would: no drift over the first frames of a video."""
    (first,) = detector.detect(hopper())
    face = first
    for _ in range(10):
        (face,) = detector.detect(hopper(), face)
    assert np.abs(face.mesh - first.mesh).max() < 0.3  # px, of a face of 205
    assert np.abs(face.mesh - first.mesh).mean() < 0.06


def test_tracking_and_detection_agree_on_a_moving_face(detector: BlazeMesh) -> None:
    face: Face | None = None
    for step in range(12):
        frame = moved(astronaut(), similarity(astronaut().shape, 1.5 * step, 1, 2.0 * step, step))
        (face,) = detector.detect(frame, face)
    (found,) = detector.detect(frame)
    assert np.sqrt(((face.landmarks - found.landmarks) ** 2).sum(1).mean()) < 0.015 * found.size_px


def test_a_lost_face_is_found_again_elsewhere(detector: BlazeMesh) -> None:
    (face,) = detector.detect(astronaut())
    assert detector.detect(np.full_like(astronaut(), 90), face) == []
    elsewhere = on_canvas(astronaut(), 700, 400, 380, 50)
    (found,) = detector.detect(elsewhere, face)
    assert np.abs(found.landmarks - face.landmarks - [380, 50]).max() < 3


def test_of_several_faces_the_largest_comes_first(detector: BlazeMesh) -> None:
    larger = cv2.resize(astronaut(), None, fx=1.25, fy=1.25, interpolation=cv2.INTER_CUBIC)
    both = on_canvas(larger, 900, 520, 520, 100)
    both[20:500, :512] = hopper()
    faces = detector.detect(both)
    assert len(faces) == 2
    assert faces[0].size_px > 1.3 * faces[1].size_px
    assert faces[0].landmarks[30, 0] < 512 < faces[1].landmarks[30, 0]


@pytest.mark.parametrize(("width", "height", "scale"), [(1920, 1080, 0.75), (1080, 1920, 0.8), (1280, 720, 0.5)])
def test_small_faces_in_large_frames_are_found(detector: BlazeMesh, width: int, height: int, scale: float) -> None:
    """Faces of 54 to 87 px: under a tenth of the frame, too small for BlazeFace without tiles."""
    small = cv2.resize(astronaut(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    (face,) = detector.detect(on_canvas(small, width, height, width - small.shape[1] - 30, height // 2))
    assert 0.8 < face.size_px / (109 * scale) < 1.2


def test_a_face_that_fills_the_frame_is_found(detector: BlazeMesh) -> None:
    close = np.ascontiguousarray(hopper()[110:345, 150:375])
    (face,) = detector.detect(close)
    assert face.size_px > 0.8 * close.shape[0]


@pytest.mark.parametrize("seed", range(3))
def test_there_is_no_face_in_noise_and_gradients(detector: BlazeMesh, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    blobs = cv2.resize(noise[: 8 + seed, : 12 + seed], (400, 300), interpolation=cv2.INTER_CUBIC)
    assert detector.detect(noise) == [] and detector.detect(blobs) == []


def test_thresholds_are_parameters(detector: BlazeMesh) -> None:
    assert BlazeMesh(min_score=0.999).detect(astronaut()) == []
    assert BlazeMesh(min_flag=1.0).detect(astronaut()) == []


def test_a_batch_of_meshes_is_mapped_like_one() -> None:
    meshes = np.random.default_rng(0).normal(size=(3, MESH_POINTS, 2)).astype(np.float32)
    assert np.array_equal(landmarks_68(meshes)[1], landmarks_68(meshes[1]))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="face_detection_short_range"):
        BlazeMesh(tmp_path)


def test_tracking_reads_one_mesh_per_frame(detector: BlazeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """About 4 ms; a search takes many network runs."""
    (face,) = detector.detect(astronaut())
    calls = []
    read = BlazeMesh._read_mesh
    monkeypatch.setattr(BlazeMesh, "_read_mesh", lambda *given: calls.append(given) or read(*given))
    monkeypatch.setattr(BlazeMesh, "_find", lambda *given: pytest.fail("searched"))
    assert len(detector.detect(astronaut(), face)) == 1 and len(calls) == 1
