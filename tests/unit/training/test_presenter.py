"""The presenter's renderer: the effect of each parameter, and that a crop shows the same picture as the frame."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from tests.support.paths import ROOT
from training.make_presenter import FPS, FRAMES, idle_poses, write_clip
from training.presenter import (
    FRAME_PX,
    MOUTH,
    REST_MOUTH,
    Pose,
    default_identity,
    face_crop_transform,
    landmarks,
    random_identities,
    random_poses,
    render,
    rest_mouth,
    rest_pose,
    textures,
)

CLIP = ROOT / "models" / "embedded" / "presenter" / "presenter.mp4"
NOISE = textures()


def mouths(*changes: dict[str, float]) -> torch.Tensor:
    """One mouth per dict, the rest mouth otherwise: (n, 7)."""
    rest = dict(zip(MOUTH, REST_MOUTH, strict=True))
    return torch.tensor([list({**rest, **change}.values()) for change in changes])


def gap_px(mouth: torch.Tensor) -> np.ndarray:
    """Inner lips at the middle of the mouth, landmarks 62 to 66, in frame px."""
    points = landmarks(default_identity(len(mouth)), rest_pose(len(mouth)), mouth)
    return (points[:, 66, 1] - points[:, 62, 1]).numpy()


def crops(mouth: torch.Tensor, size: int = 128) -> np.ndarray:
    """The default presenter's face crop with each mouth, RGB (n, size, size, 3) in [0, 1]."""
    identity, pose = default_identity(len(mouth)), rest_pose(len(mouth))
    image = render(identity, pose, mouth, NOISE, size, 1, face_crop_transform(identity, pose, size))
    return image.permute(0, 2, 3, 1).numpy()


def crop_points(mouth: torch.Tensor, size: int = 128) -> np.ndarray:
    """The 68 landmarks in the crop of `crops`, (n, 68, 2)."""
    identity, pose = default_identity(len(mouth)), rest_pose(len(mouth))
    matrix = face_crop_transform(identity, pose, size)
    return (landmarks(identity, pose, mouth) @ matrix[:, :, :2].mT + matrix[:, None, :, 2]).numpy()


def test_closed_lips_meet_exactly_for_every_jaw_opening() -> None:
    closed = mouths(*({"jaw": jaw, "close": 1.0} for jaw in (0.0, 0.5, 1.0)), {"rounding": 1.0}, {"tuck": 1.0})
    assert gap_px(closed) == pytest.approx(0, abs=1e-4)


def test_a_closed_mouth_shows_no_teeth_and_no_cavity() -> None:
    toothy, plain = crops(mouths({"teeth": 1.0, "tongue": 1.0}, {"teeth": 0.0, "tongue": 0.0}))
    assert np.abs(toothy - plain).max() == 0


def test_the_gap_grows_evenly_with_the_jaw() -> None:
    jaw = np.linspace(0, 1, 11)
    gap = gap_px(mouths(*({"jaw": float(j), "close": 0.0} for j in jaw)))
    assert (np.diff(gap) > 1.0).all()
    assert np.corrcoef(jaw, gap)[0, 1] > 0.999
    assert 20 < gap[-1] < 40


def test_the_drawn_opening_is_as_high_as_the_landmarks_say() -> None:
    mouth = mouths({"jaw": 1.0, "close": 0.0, "teeth": 0.0, "tongue": 0.0})
    image, points = crops(mouth)[0], crop_points(mouth)[0]
    column = image[:, round(points[62, 0]), 0]
    dark = np.flatnonzero(column[70:] < 0.45)  # red falls below this only between the lips, not on them
    inside = (dark + 70 > points[62, 1]) & (dark + 70 < points[66, 1])
    assert inside.sum() == pytest.approx(points[66, 1] - points[62, 1], abs=3.5)


def test_the_chin_falls_with_the_jaw() -> None:
    points = crop_points(mouths({}, {"jaw": 1.0, "close": 0.0}))
    assert points[1, 8, 1] - points[0, 8, 1] > 6  # of 128
    shut, wide = crops(mouths({}, {"jaw": 0.6, "close": 0.0}))
    chin = slice(108, 126), slice(50, 78)
    assert np.abs(shut[chin] - wide[chin]).mean() > 0.02


def test_spread_neutral_and_rounded_lips_differ_in_width() -> None:
    sounds = mouths(
        {"close": 0.0, "jaw": 0.15, "width": 1.0},
        {"close": 0.0, "jaw": 0.8},
        {"close": 0.0, "jaw": 0.12, "rounding": 1.0, "width": 0.0},
    )
    points = crop_points(sounds, 256)
    spread, open_, rounded = points[:, 54, 0] - points[:, 48, 0]
    assert spread > open_ + 10 and open_ > rounded + 15


def test_the_lip_tuck_shows_the_upper_teeth_in_a_narrow_gap() -> None:
    tuck = mouths({"close": 0.0, "jaw": 0.3, "tuck": 1.0, "teeth": 0.8})
    assert 2 < gap_px(tuck)[0] < 8
    image, points = crops(tuck, 256)[0], crop_points(tuck, 256)[0]
    middle = image[round((points[62, 1] + points[66, 1]) / 2), round(points[62, 0])]
    assert middle.min() > 0.5 and np.ptp(middle) < 0.15  # light and grey: teeth, not lip


def test_a_crop_is_the_frame_warped() -> None:
    generator = torch.Generator().manual_seed(0)
    identity, pose, mouth = random_identities(1, generator), random_poses(1, generator), torch.rand(1, 7)
    matrix = face_crop_transform(identity, pose, 64)
    crop = render(identity, pose, mouth, NOISE, 64, 4, matrix)[0].permute(1, 2, 0).numpy()
    frame = render(identity, pose, mouth, NOISE, FRAME_PX, 1)[0].permute(1, 2, 0).numpy()
    larger = np.array([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]])  # the crop at four times its size, averaged down
    full = larger @ np.vstack([matrix[0].numpy(), [0, 0, 1]])
    warped = cv2.warpAffine(frame, full[:2], (256, 256), flags=cv2.INTER_LINEAR)
    warped = cv2.resize(warped, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(warped - crop).mean() < 0.006
    shifted = np.roll(crop, 1, axis=1)
    assert np.abs(warped - shifted).mean() > 2 * np.abs(warped - crop).mean()  # a pixel off would show


def test_one_row_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(3)
    identity, pose, mouth = random_identities(3, generator), random_poses(3, generator), torch.rand(3, 7)
    together = render(identity, pose, mouth, NOISE, 64, 2)
    alone = render(
        type(identity)({k: v[1:2] for k, v in identity.items()}),
        Pose({k: v[1:2] for k, v in pose.items()}),
        mouth[1:2],
        NOISE,
        64,
        2,
    )
    assert (together[1] - alone[0]).abs().max() < 2e-3


def test_the_same_seed_draws_the_same_picture() -> None:
    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        people, poses = random_identities(2, generator), random_poses(2, generator)
        return render(people, poses, rest_mouth(2), textures(), 64)

    first = draw()
    assert torch.equal(first, draw())
    assert first.shape == (2, 3, 64, 64) and first.min() >= 0 and first.max() <= 1
    assert (first[0] - first[1]).abs().mean() > 0.03  # two people


def test_the_default_presenter_lies_within_the_ranges_of_random_ones() -> None:
    people = random_identities(400, torch.Generator().manual_seed(0))
    presenter = default_identity(1)
    assert set(presenter) == set(people)
    for name, value in presenter.items():
        slack = 0.06  # lip colours follow the skin and may lie just outside
        assert people[name].min() - slack <= value.item() <= people[name].max() + slack, name
    assert people["skin_r"].min() < 0.35 and people["skin_r"].max() > 0.85


def test_a_blink_covers_the_white_of_the_eye() -> None:
    pose, identity, mouth = rest_pose(3), default_identity(3), rest_mouth(3)
    pose["blink"] = torch.tensor([0.0, 0.5, 1.0])
    points = landmarks(identity, pose, mouth)
    height = points[:, 41, 1] - points[:, 37, 1]
    assert height[0] > 9 and 3 < height[1] < height[0] and abs(height[2]) < 0.1
    middle = points[0, 36:42].mean(0).round()
    shift = torch.cat([torch.eye(2), (32 - middle)[:, None]], 1).expand(3, -1, -1)  # 64 frame px around the eye
    eye = render(identity, pose, mouth, NOISE, 64, transform=shift)[:, :, 27:38, 14:51]
    grey = (eye.amax(1) - eye.amin(1) < 0.10) & (eye.amin(1) > 0.6)  # the white, and nothing of the skin
    assert grey[0].sum() > 40 and grey[2].sum() == 0


def test_the_crop_follows_musetalks_rule_and_ignores_the_mouth() -> None:
    identity, pose = default_identity(1), rest_pose(1)
    pose["roll"] = torch.tensor([0.06])
    points = landmarks(identity, pose, rest_mouth(1))[0]
    matrix = face_crop_transform(identity, pose, 256)[0]
    nose, chin = (matrix[:, :2] @ points[index] + matrix[:, 2] for index in (29, 8))
    zoom = float(torch.linalg.vector_norm(matrix[0, :2]))
    assert chin[1].item() == pytest.approx(255.5 - 10 * zoom, abs=0.6)  # v1.5 adds 10 frame px below the chin
    assert nose[1].item() == pytest.approx((chin[1].item() - 0.5) / 2, abs=0.6)
    assert chin[0].item() == pytest.approx(127.5, abs=1.5)
    assert matrix[0, 0] == matrix[1, 1] and matrix[0, 1] == -matrix[1, 0]


def test_the_idle_motion_is_still_at_both_ends_and_blinks_like_a_person() -> None:
    poses = idle_poses()
    for name in ("roll", "shift_x", "shift_y", "scale", "yaw", "breath"):
        track = poses[name].numpy()
        speed = np.abs(np.diff(track))
        assert max(speed[0], speed[-1]) < 0.35 * speed.max(), name
        assert np.ptp(track) > 0.004, name
    shut = poses["blink"].numpy() > 0
    starts = np.flatnonzero(np.diff(shut.astype(int)) == 1)
    assert len(starts) >= 2
    assert ((np.diff(starts) / FPS >= 2.0) & (np.diff(starts) / FPS <= 5.0)).all()
    assert 0.15 <= shut.sum() / len(starts) / FPS <= 0.25


def test_an_encoded_clip_has_every_frame_and_its_colours(tmp_path: Path) -> None:
    ramp = np.linspace(40, 215, FRAME_PX, dtype=np.uint8)
    frames = np.stack([np.stack([np.tile(ramp, (FRAME_PX, 1))] * 2 + [np.full((FRAME_PX,) * 2, 90, np.uint8)], -1)] * 3)
    write_clip(frames, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        back = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(back) == 3
    assert np.abs(back[1].astype(int) - frames[1]).mean() < 3


def test_the_shipped_clip_is_six_seconds_of_the_default_presenter() -> None:
    assert CLIP.stat().st_size < 1.5e6
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (FRAME_PX, FRAME_PX, FPS)
        frames = list(container.decode(stream))
    assert len(frames) == FRAMES == 150
    poses = idle_poses()
    pose = Pose({name: value[75:76] for name, value in poses.items()})
    drawn = render(default_identity(1), pose, rest_mouth(1), NOISE, supersample=1)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(frames[75].to_ndarray(format="rgb24") - drawn).mean() < 2.5
