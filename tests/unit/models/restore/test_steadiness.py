"""Precision of the crop geometry on a clip of known motion: translation, roll, zoom, a cut, and a talking mouth.

Lengths are in frame px, rms per coordinate, against the truth.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.known_motion import Following, KnownMotion, following, known_motion, level_rms, misplacement
from models.avatar.detect import BlazeMesh
from models.avatar.parse import masks_of
from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.avatar.survey import FaceTracker, Survey
from models.avatar.track import CropTrack, TrackOptions, crop_transforms, landmarks_in_crop
from models.geometry import warp
from models.stitch.paste import paste, warp_alpha
from tests.support.avatar import fake_encoder

FPS, N, CUT = 25, 60, 38
FACES = [160, pytest.param(256, marks=pytest.mark.full)]


@cache
def clip(face_px: int) -> KnownMotion:
    return known_motion(face_px, N, cut=CUT, talking=True)


@cache
def survey(face_px: int) -> Survey:
    """The first pass over the drawn frames, without coding."""
    tracker = FaceTracker(BlazeMesh())
    for frame in clip(face_px).frames():
        tracker.take(frame)
    return tracker.survey(copied=False)


@cache
def track(face_px: int, **options: object) -> CropTrack:
    seen = survey(face_px)
    return crop_transforms(seen.landmarks, seen.has_face, FPS, TrackOptions(**options), seen.motions, seen.cuts)


def followed(face_px: int, **options: object) -> Following:
    return following(clip(face_px), track(face_px, **options).transforms)


@pytest.mark.parametrize("face_px", FACES)
def test_crops_follow_a_talking_head(face_px: int) -> None:
    """The cut is found; the crop's centre stays in place to 0.1 px and jitters by less than 0.01 px, without lag."""
    found = followed(face_px)
    assert survey(face_px).cuts == [CUT] and track(face_px).tracked > 0.95
    assert found.place_rms < 0.12 and found.jitter_rms < 0.01 and found.roll_rms_deg < 0.2
    assert abs(found.lag_frames) < 0.05


@pytest.mark.parametrize("face_px", FACES)
def test_tracking_is_more_precise_than_landmarks_alone(face_px: int) -> None:
    """Landmarks alone follow the mouth, though smoothed twice as strongly: 3 times the error, 10 times the jitter."""
    found, alone = followed(face_px), followed(face_px, affine_tracking_enabled=False)
    assert alone.place_rms > 3 * found.place_rms
    assert alone.jitter_rms > 10 * found.jitter_rms


@pytest.mark.parametrize("face_px", FACES)
@pytest.mark.parametrize("tracking", [True, False])
def test_a_pixel_of_landmark_noise_leaves_little_jitter(face_px: int, tracking: bool) -> None:
    """1 px of noise on every landmark: at most 0.15 px from the truth, with tracked motion and without."""
    seen = survey(face_px)
    noisy = clip(face_px).true_landmarks() + np.random.default_rng(0).normal(size=(N, 68, 2))
    options = TrackOptions(affine_tracking_enabled=tracking)
    transforms = crop_transforms(noisy, seen.has_face, FPS, options, seen.motions, seen.cuts).transforms
    found = following(clip(face_px), transforms)
    assert found.place_rms < 0.16 - 0.01 * tracking  # without tracking there is only smoothing
    assert found.jitter_rms < (0.01 if tracking else 0.03)
    assert abs(found.lag_frames) < 0.05


@pytest.mark.parametrize("smoothing", ["zero_phase", "kalman", "none"])
def test_smoothing_does_not_lag(smoothing: str) -> None:
    assert abs(followed(160, smoothing=smoothing).lag_frames) < 0.08


def test_one_euro_lags_by_a_third_of_a_frame() -> None:
    """Inherent in the filter: 0.26 to 0.46 frames (10 to 18 ms) on clips of this kind."""
    assert followed(160, smoothing="one_euro").lag_frames == pytest.approx(0.36, abs=0.15)


@pytest.mark.parametrize("smoothing", ["zero_phase", "one_euro", "kalman", "none"])
def test_each_smoothing_limits_the_jitter(smoothing: str) -> None:
    found = followed(160, smoothing=smoothing)
    assert found.jitter_rms < 0.06 and found.place_rms < 0.5


@pytest.mark.parametrize(
    ("face_px", "levels"),
    [
        pytest.param(120, 0.5, marks=pytest.mark.full),
        (160, 0.5),
        pytest.param(256, 3.0, marks=pytest.mark.full),
    ],
)
def test_an_untouched_crop_is_pasted_where_it_was(face_px: int, levels: float) -> None:
    """Cut out and pasted back, Lanczos-4 both ways: less than 0.01 px off, and `levels` grey levels rms in the mask."""
    masks, index = masks_of(landmarks_in_crop(track(face_px)), FPS, scenes=track(face_px).scenes)
    shifts, errors = [], []
    for k in range(3, N, 9):
        frame, transform, mask = clip(face_px).frame(k), track(face_px).transforms[k], masks[index[k]]
        pasted = paste(frame, warp(frame, transform), transform, mask)
        core = _core(transform, mask, frame.shape)
        shifts.append(misplacement(frame, pasted, core))
        errors.append(level_rms(frame, pasted, core))
    assert np.sqrt((np.array(shifts) ** 2).sum(1).mean()) < 0.01
    assert np.sqrt(np.mean(np.square(errors))) < levels


def _core(transform: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The part of the frame `(h, w)` where the mask is at least one half."""
    alpha, core = warp_alpha(transform, mask, shape[:2]), np.zeros(shape[:2], bool)
    core[alpha.region] = alpha.weights >= 128
    return core


def test_box_geometry_is_upright_and_of_one_size_per_scene(tmp_path: Path) -> None:
    """MuseTalk's box, stretched to the crop, without roll, from the file to the stored avatar."""
    known, store = known_motion(160, 30, cut=18, talking=True), AvatarStore(tmp_path)
    source = known.write(tmp_path / "a.mp4", crf=8)
    report = prepare_avatar(source, "box", store, fake_encoder, "v", PrepareOptions(geometry="box"))
    avatar = store.load("box")
    assert avatar.boxes is None and (avatar.transforms[:, 0, 1] == 0).all() and (avatar.transforms[:, 1, 0] == 0).all()
    assert (avatar.transforms[0, 0, 0] != avatar.transforms[0, 1, 1]) and report.cuts == [18]
    for scene in known.scenes:
        assert len(np.unique(avatar.transforms[scene, 0, 0])) == 1
    turned = following(known, avatar.transforms)
    assert turned.place_rms < 0.15 and turned.jitter_rms < 0.02


def test_subpixel_enabled_false_rounds_crops_to_whole_pixels() -> None:
    """Centre and size are rounded, which costs a third of a pixel of jitter."""
    found = track(160, subpixel_enabled=False)
    corners = np.array([[127.5, 127.5, 1.0]])
    inverse = np.linalg.inv(np.concatenate([found.transforms, np.tile([[[0, 0, 1]]], (N, 1, 1))], 1).astype(float))
    middles = np.einsum("nij,kj->nki", inverse, corners)[:, 0, :2]
    assert np.abs(middles - np.rint(middles)).max() < 1e-3
    assert np.abs(found.side_px - np.rint(found.side_px)).max() == 0
    assert followed(160, subpixel_enabled=False).jitter_rms > 10 * followed(160).jitter_rms


def test_the_scale_lock_uses_the_first_frames_or_all() -> None:
    known = clip(160)
    zoom = np.sqrt(np.linalg.det(known.motions[:, :, :2]))
    side = track(160, scale_lock_warmup_frames=10).side_px
    assert abs(side[0] / track(160).side_px[0] - 1) > 0.005
    for scene in known.scenes:
        assert len(np.unique(side[scene])) == 1
        first = np.median(zoom[scene][:10]) / np.median(zoom[scene])
        assert side[scene][0] / track(160).side_px[scene][0] == pytest.approx(first, rel=6e-3)
    free = track(160, scale_lock_enabled=False).side_px / zoom
    assert free.std() / free.mean() < 0.006  # the crop's size follows the head's


def test_the_same_clip_gives_the_same_files_on_any_number_of_threads(tmp_path: Path) -> None:
    source, threads = known_motion(160, 20, cut=12).write(tmp_path / "a.mp4"), cv2.getNumThreads()
    stores = [AvatarStore(tmp_path / str(k)) for k in range(2)]
    try:
        for store, count in zip(stores, (1, 3), strict=True):
            cv2.setNumThreads(count)
            prepare_avatar(source, "a", store, fake_encoder, "v")
    finally:
        cv2.setNumThreads(threads)
    ours, theirs = (store.folder("a") for store in stores)
    assert all(path.read_bytes() == (theirs / path.name).read_bytes() for path in ours.iterdir())
    assert stores[0].describe("a")["facts"]["cuts"] == [12]
