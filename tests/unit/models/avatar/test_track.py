"""models.avatar.track: MuseTalk's box, and one smooth transform per frame."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from models.avatar.detect import BlazeMesh
from models.avatar.track import (
    NOSE_HALF,
    RIGID,
    TrackOptions,
    crop_transforms,
    landmarks_in_crop,
    musetalk_box,
    shift_range,
)
from models.errors import ConfigError, NoFaceError
from models.geometry import apply, invert, warp
from models.types import UInt8
from tests.support.avatar import FPS, astronaut, hopper, moved, similarity, swaying

Points = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def detector() -> BlazeMesh:
    return BlazeMesh()


@pytest.fixture(scope="module")
def face(detector: BlazeMesh) -> Points:
    """Hopper's landmarks, `(68, 2)`."""
    return detector.detect(hopper())[0].landmarks.astype(np.float64)


def carried(face: Points, motions: Points) -> Points:
    """Landmarks of a head with these motions, `(n, 68, 2)`."""
    return np.stack([apply(motion, face) for motion in motions])


def faces_at(n: int) -> npt.NDArray[np.bool_]:
    return np.ones(n, bool)


def slip(transforms: Points, motions: Points) -> Points:
    """Deviation of 81 points of the crop from their own means, `(n, 81, 2)` px of the still picture."""
    grid = np.stack(np.meshgrid(np.linspace(0, 255, 9), np.linspace(0, 255, 9)), -1).reshape(1, -1, 2)
    places = apply(invert(motions), apply(invert(transforms), np.repeat(grid, len(motions), 0)))
    return places - places.mean(0)


def rms(error: Points) -> float:
    return float(np.sqrt((error**2).sum(-1).mean()))


# MuseTalk's box


def upstream_box(points: Points, height: int, shift: int, margin: int) -> tuple[int, int, int, int]:
    """A second implementation of the rule in MuseTalk's documentation (assets/BBOX_SHIFT.md)."""
    whole = points.astype(np.int32)
    middle = whole[29][1] + shift
    half = whole[:, 1].max() - middle
    return whole[:, 0].min(), max(0, middle - half), whole[:, 0].max(), min(whole[:, 1].max() + margin, height)


@pytest.mark.parametrize("shift", [-9, 0, 7])
@pytest.mark.parametrize("margin", [0, 10])
def test_the_box_is_musetalks(face: Points, shift: int, margin: int) -> None:
    box = musetalk_box(face, 480, shift, margin)
    assert box == upstream_box(face, 480, shift, margin)
    assert all(isinstance(edge, int) for edge in box)


def test_the_box_ends_at_the_frame(face: Points) -> None:
    assert musetalk_box(face, 335)[3] == 335


def test_the_box_begins_at_the_frame(face: Points) -> None:
    low = musetalk_box(face, 480)[1]
    assert musetalk_box(face - [0, low - 1], 480)[1] == 1
    assert musetalk_box(face - [0, low + 30], 480) == upstream_box(face - [0, low + 30], 480, 0, 10)
    assert musetalk_box(face - [0, low + 30], 480)[1] == 0


def test_version_1_0_adds_no_margin(face: Points) -> None:
    x1, y1, x2, y2 = musetalk_box(face, 480, extra_margin=10)
    assert musetalk_box(face, 480, extra_margin=0) == (x1, y1, x2, y2 - 10)
    assert y2 - 10 == int(face[:, 1].max())


def test_the_landmarks_are_not_changed(face: Points) -> None:
    whole = face.astype(np.int32)
    before = whole.copy()
    musetalk_box(whole, 480, bbox_shift=5)
    assert np.array_equal(whole, before)


@pytest.mark.parametrize("case", ["left of the frame", "shift beyond the chin", "flat"])
def test_an_invalid_box_is_replaced_by_the_detectors(face: Points, case: str) -> None:
    points, shift = face, 0
    if case == "left of the frame":
        points = face - [face[:, 0].min() + 20, 0]
    elif case == "flat":
        points = face * [1, 0] + [0, 200]
    else:
        shift = 200
    assert musetalk_box(points, 480, shift, 10, detected_box=(30.7, 40.2, 90.9, 120.5)) == (30, 40, 90, 130)


def test_without_a_detected_box_the_landmarks_bounds_are_used(face: Points) -> None:
    points = face - [face[:, 0].min() + 20, 0]
    whole = points.astype(np.int32)
    expected = (0, whole[:, 1].min(), whole[:, 0].max(), whole[:, 1].max() + 10)
    assert musetalk_box(points, 480) == expected


def test_a_face_outside_the_frame_has_no_box(face: Points) -> None:
    with pytest.raises(NoFaceError):
        musetalk_box(face - [1000, 0], 480)


def test_the_range_of_bbox_shift_is_that_of_the_nose(face: Points) -> None:
    low, high = shift_range(np.stack([face, face]).astype(np.float32), faces_at(2))
    whole = face.astype(np.int32)[:, 1]
    assert (low, high) == (-(whole[30] - whole[29]), whole[29] - whole[28])
    assert low < 0 < high


# crop transforms


def test_the_crop_is_musetalks_box_made_square_and_upright(face: Points) -> None:
    """For a level head, to a pixel: x from the landmarks' centre, y from the box; its longer side is the crop's."""
    level = apply(
        similarity((480, 512), -np.degrees(np.arctan2(*(face[42:48].mean(0) - face[36:42].mean(0))[::-1]))), face
    )
    track = crop_transforms(np.stack([level] * 3), faces_at(3), FPS)
    x1, y1, x2, y2 = musetalk_box(level, 480)
    assert abs(track.side_px[0] - max(x2 - x1, y2 - y1)) < 2.5
    corners = apply(invert(track.transforms[1]), np.array([[-0.5, -0.5], [255.5, 255.5]]))
    assert np.abs(corners[:, 1] - [y1, y2]).max() < 2.5
    assert abs(corners[:, 0].mean() - (x1 + x2) / 2) < 1.5
    middle = landmarks_in_crop(track)[1, NOSE_HALF, 1]
    assert 118 < middle < 128  # at mid-height, minus half of the margin below the chin


def test_bbox_shift_moves_the_middle_of_the_box(face: Points) -> None:
    still = np.stack([face] * 3)
    rows = [
        landmarks_in_crop(crop_transforms(still, faces_at(3), FPS, TrackOptions(bbox_shift=shift, extra_margin=0)))[1]
        for shift in (0, 8)
    ]
    assert abs(rows[0][NOSE_HALF, 1] - 127.5) < 0.01  # in the middle without a margin
    assert 127.5 - rows[1][NOSE_HALF, 1] == pytest.approx(8 * 256 / (2 * (face[8, 1] - face[29, 1] - 8)), rel=0.05)


def test_transforms_are_similarities(face: Points) -> None:
    transforms = crop_transforms(carried(face, swaying(hopper(), 40)), faces_at(40), FPS).transforms.astype(float)
    linear = transforms[:, :, :2]
    products = np.einsum("nij,nkj->nik", linear, linear)
    assert np.abs(products - products[:, :1, :1] * np.eye(2)).max() < 1e-5
    assert np.linalg.det(linear).min() > 0


def test_box_shape_stretches_the_face_to_the_whole_crop(face: Points) -> None:
    track = crop_transforms(np.stack([face] * 3), faces_at(3), FPS, TrackOptions(shape="box", extra_margin=0))
    points = landmarks_in_crop(track)[1]
    assert np.abs([points[:, 0].min() + 0.5, points[:, 0].max() - 255.5, points[:, 1].max() - 255.5]).max() < 0.05


def test_an_unknown_shape_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="square, box"):
        TrackOptions(shape="round")


@pytest.mark.parametrize(("zoom", "lock"), [(0.0, True), (0.02, False), (0.15, True)])
def test_exact_landmarks_give_exact_motion(face: Points, zoom: float, lock: bool) -> None:
    """Smoothing keeps a sway of 0.4 to 0.6 Hz within 0.1 px rms. A zoom releases the scale lock."""
    motions = swaying(hopper(), 75, zoom=zoom)
    track = crop_transforms(carried(face, motions), faces_at(75), FPS, TrackOptions(scale_lock_enabled=lock))
    assert track.scale_locked == (zoom == 0)
    assert rms(slip(track.transforms, motions)) < 0.1


def test_transforms_do_not_lag(face: Points) -> None:
    """The error at the start of a ramp at frame 20 is symmetric about it."""
    motions = np.stack([similarity((480, 512), 0, 1, 2.0 * max(0, k - 20)) for k in range(41)])
    track = crop_transforms(carried(face, motions), faces_at(41), FPS)
    found = apply(invert(track.transforms), np.full((41, 1, 2), 127.5))[:, 0, 0]
    error = found - found[0] - np.maximum(0, np.arange(41) - 20) * 2.0
    assert np.abs(error - error[::-1]).max() < 1e-3
    assert np.abs(error).max() < 1.5


def test_landmark_noise_is_reduced(face: Points) -> None:
    """1 px of noise on every landmark moves the crop's centre by less than 0.15 px rms."""
    random, n = np.random.default_rng(5), 250
    motions = swaying(hopper(), n)
    noisy = carried(face, motions) + random.normal(size=(n, 68, 2))
    error = slip(crop_transforms(noisy, faces_at(n), FPS).transforms, motions)
    raw = slip(crop_transforms(noisy, faces_at(n), FPS, TrackOptions(smooth_s=0)).transforms, motions)
    middle = 40
    assert rms(error[:, middle]) / np.sqrt(2) < 0.15
    assert rms(error[:, middle]) < 0.6 * rms(raw[:, middle])


def test_speech_blinks_and_brows_do_not_move_the_crop(face: Points) -> None:
    random = np.random.default_rng(1)
    talking = np.stack([face] * 50)
    free = [k for k in range(68) if k not in RIGID]
    talking[:, free, 1] += random.uniform(0, 25, (50, 1))
    transforms = crop_transforms(talking, faces_at(50), FPS).transforms
    assert np.ptp(transforms, axis=0).max() < 1e-3


def test_the_crop_of_a_talking_source_is_that_of_the_closed_mouth(face: Points) -> None:
    """The mouth is open by 30 px in half of the frames."""
    talking = np.stack([face] * 40)
    talking[::2, 5:12, 1] += 30
    rest = crop_transforms(np.stack([face] * 40), faces_at(40), FPS)
    assert crop_transforms(talking, faces_at(40), FPS).side_px[0] == pytest.approx(rest.side_px[0], abs=1)


def test_frames_without_a_face_are_bridged(face: Points) -> None:
    """Landmarks of ten frames without a face are ignored; the transform is interpolated."""
    motions = np.stack([similarity((480, 512), 0, 1, 0.5 * k, 0.2 * k) for k in range(60)])
    landmarks, seen = carried(face, motions), faces_at(60)
    seen[20:30] = False
    landmarks[20:30] = 0
    track = crop_transforms(landmarks, seen, FPS)
    assert rms(slip(track.transforms, motions)) < 0.05
    assert np.abs(track.landmarks[25] - apply(motions[25], face)).max() < 0.05


@pytest.mark.parametrize("side", ["start", "end"])
def test_missing_faces_at_start_or_end_repeat_the_nearest_transform(face: Points, side: str) -> None:
    landmarks, seen = np.stack([face] * 40), faces_at(40)
    seen[slice(0, 8) if side == "start" else slice(32, 40)] = False
    track = crop_transforms(landmarks, seen, FPS)
    assert np.ptp(track.transforms, axis=0).max() < 1e-4


def test_a_video_without_a_face_is_refused(face: Points) -> None:
    with pytest.raises(NoFaceError, match="any of the 12 frames"):
        crop_transforms(np.zeros((12, 68, 2)), np.zeros(12, bool), FPS)


def test_too_few_frames_with_a_face_are_refused(face: Points) -> None:
    seen = faces_at(100)
    seen[:31] = False
    with pytest.raises(NoFaceError, match="31 of 100 frames show no face; at most 30% may"):
        crop_transforms(np.stack([face] * 100), seen, FPS)
    assert crop_transforms(np.stack([face] * 100), seen, FPS, TrackOptions(max_missing=0.31)).side_px[0] > 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_shortest_sources_work(face: Points, n: int) -> None:
    assert np.isfinite(crop_transforms(np.stack([face] * n), faces_at(n), FPS).transforms).all()


# real faces: detector, track, warp


@pytest.mark.parametrize("picture", [astronaut(), hopper()], ids=["astronaut", "hopper"])
def test_a_real_face_is_tracked(detector: BlazeMesh, picture: UInt8) -> None:
    """A portrait with a known motion: its crop is stable within 0.6 % of the face's size, without jitter."""
    n = 40
    motions = swaying(picture, n)
    found, landmarks = None, []
    for motion in motions:
        (found,) = detector.detect(moved(picture, motion), found)
        landmarks.append(found.landmarks)
    track = crop_transforms(np.stack(landmarks), faces_at(n), FPS)
    error = slip(track.transforms, motions)
    jitter = np.diff(error, 2, axis=0)
    assert rms(error) < 0.006 * found.size_px
    assert rms(jitter) < 0.15


def test_a_still_video_has_one_transform(detector: BlazeMesh) -> None:
    found, landmarks = None, []
    for _ in range(20):
        (found,) = detector.detect(hopper(), found)
        landmarks.append(found.landmarks)
    transforms = crop_transforms(np.stack(landmarks), faces_at(20), FPS).transforms
    places = apply(invert(transforms), np.full((20, 1, 2), 127.5))
    assert np.ptp(places, axis=0).max() < 0.05


def test_a_crop_warped_back_equals_the_frame(face: Points) -> None:
    """A rotated crop, warped back by the inverse transform: within half a grey level rms."""
    frame = cv2.GaussianBlur(hopper(), (0, 0), 2)  # no finer detail than the crop can represent
    motion = similarity(hopper().shape, 11, 1, 3.3, -2.7)
    frame = moved(frame, motion)
    transform = crop_transforms(np.stack([apply(motion, face)] * 3), faces_at(3), FPS).transforms[1]
    back = warp(warp(frame, transform), invert(transform), 512)
    inside = warp(np.full((256, 256), 255, np.uint8), np.eye(2, 3))
    inside[:8] = inside[-8:] = inside[:, :8] = inside[:, -8:] = 0  # away from the repeated border
    covered = cv2.warpAffine(inside, invert(transform), (512, 512))[:480] == 255
    error = (back[:480].astype(float) - frame)[covered]
    assert covered.sum() > 40_000
    assert np.sqrt((error**2).mean()) < 0.5
