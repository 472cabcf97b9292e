"""Difficult sources, from the file to a spoken video: each one works, or is refused with a clear error."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from models.avatar.playback import ping_pong
from models.avatar.prepare import PrepareReport, prepare_avatar
from models.avatar.store import AvatarStore
from models.errors import NoFaceError
from models.geometry import warp
from models.media.encode import MediaSpec, UtteranceEncoder, init_segment
from models.media.frames import rgb_array
from models.stitch.paste import Paster
from models.types import PreparedAvatar, UInt8
from tests.support.avatar import FPS, astronaut, fake_encoder, hopper, moved, similarity, swaying, write_clip
from tests.support.staged_faces import bearded, behind_a_hand, detector, face_of, head_mask, on_ground, put, turned

BEYOND = 3  # frames spoken after playback has reversed
Prepare = Callable[..., tuple[PreparedAvatar, PrepareReport]]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """prepare(frames, or the path of a file) → the avatar as it is loaded, and the report."""

    def run(source: list[UInt8] | Path, fps: int = FPS) -> tuple[PreparedAvatar, PrepareReport]:
        path = source if isinstance(source, Path) else write_clip(tmp_path / "source.mp4", source, fps)
        store = AvatarStore(tmp_path / "avatars")
        report = prepare_avatar(path, "hard", store, fake_encoder, "v", detector=detector())
        return store.load("hard"), report

    return run


def say_with(avatar: PreparedAvatar) -> list[UInt8]:
    """Play the avatar forward and a bit backward with a white mouth, encode it as a session's video, and decode it.

    Checks what holds for every utterance: length, size, the place of the mouth, and unchanged frames without a face.
    """
    spec = MediaSpec.for_source(avatar.width, avatar.height, avatar.fps, crf=4)
    count = len(avatar) + BEYOND
    shown, paster = ping_pong(0, count, len(avatar)).tolist(), Paster(avatar)
    frames = np.stack([np.array(avatar.frames[k]) for k in shown])
    for frame, k in zip(frames, shown, strict=True):
        paster.paste_into(frame, np.full((256, 256, 3), 250, np.uint8), k)
    sound = np.zeros(round(count / spec.fps * spec.sample_rate_hz), np.float32)
    data = b"".join(fragment.data for fragment in UtteranceEncoder(spec).push(frames, sound, last=True))
    with av.open(io.BytesIO(init_segment(spec) + data)) as file:
        spoken = [rgb_array(frame) for frame in file.decode(video=0)]
    assert len(spoken) == count and spoken[0].shape == (avatar.height, avatar.width, 3)
    for picture, k in zip(spoken, shown, strict=True):
        changed = np.abs(picture.astype(int) - avatar.frames[k]).max(-1) > 40
        assert changed.any() == bool(avatar.has_face[k]), k
        if changed.any():
            _check_place(changed, avatar, k)
    return spoken


def _check_place(changed: np.ndarray, avatar: PreparedAvatar, k: int) -> None:
    """The changed pixels lie on the lower half of the face: their centre is near the mouth's."""
    points = avatar.landmarks[k]
    mouth, size = points[48:68].mean(0), float(np.ptp(points, axis=0).max())
    inside = (mouth > 0).all() and (mouth < (avatar.width, avatar.height)).all()
    y, x = np.nonzero(changed)
    middle = np.array([x.mean(), y.mean()])
    assert not inside or np.linalg.norm(middle - mouth) < (0.3 if _is_whole(points, avatar) else 0.5) * size, k


def _is_whole(points: np.ndarray, avatar: PreparedAvatar) -> bool:
    return bool((points > 0).all() and (points < (avatar.width, avatar.height)).all())


def sway(picture: UInt8, n: int) -> list[UInt8]:
    return [moved(picture, motion) for motion in swaying(picture, n)]


def small_hopper() -> UInt8:
    """Grace Hopper, RGB `(288, 308, 3)`; her face is 123 px high."""
    return cv2.resize(hopper(), (308, 288), interpolation=cv2.INTER_AREA)


# --- faces that leave, cross, turn away, are covered


def leaving(n: int, farthest: float, back: bool = True) -> list[UInt8]:
    """Hopper's head leaves the picture to the right, by `farthest` px, and comes back."""
    share = np.sin(np.pi * np.arange(n) / (n - 1)) ** 6 if back else np.linspace(0, 1, n)
    return [put(on_ground(300, 360), hopper(), 40 + farthest * s, 10, 0.55) for s in share]


def test_a_face_that_leaves_briefly_is_bridged(prepare: Prepare) -> None:
    avatar, report = prepare(leaving(18, 270))
    away = np.flatnonzero(~avatar.has_face)
    assert 2 <= len(away) <= 5 and np.all(np.diff(away) == 1)
    assert any(f"{len(away)} of 18 frames show no face" in warning for warning in report.warnings)
    assert np.isfinite(avatar.transforms).all()
    say_with(avatar)


def test_a_face_that_leaves_and_does_not_return_is_refused(prepare: Prepare) -> None:
    with pytest.raises(NoFaceError, match=r"\d+ of 10 frames show no face; at most 30% may") as refused:
        prepare(leaving(10, 500, back=False))
    assert "Cut the video" in refused.value.remedy


def test_a_face_at_the_edge_of_the_picture_works_with_a_warning(prepare: Prepare) -> None:
    middle = round(float(face_of(hopper()).mesh[:, 0].mean()))
    avatar, report = prepare(
        [moved(hopper(), similarity(hopper().shape, dx=k))[:, : middle // 2 * 2 + 60] for k in range(6)]
    )
    assert avatar.has_face.all()
    assert any("part of the face is outside the picture" in warning for warning in report.warnings)
    say_with(avatar)


@pytest.mark.parametrize("in_front", [pytest.param(True, marks=pytest.mark.full), False])
def test_of_two_crossing_faces_the_tracked_one_stays_tracked(prepare: Prepare, in_front: bool) -> None:
    her, other, frames, path = hopper(), astronaut(), [], []
    masks, nose = (head_mask(her), head_mask(other)), face_of(her).landmarks[30, 0] * 0.55
    for k in range(9, 29):
        x = -60 + 450 * k / 35
        heads = [(other, 420 - 470 * k / 35, 40, 0.9, masks[1]), (her, x, 40, 0.55, masks[0])]
        canvas = on_ground(320, 640)
        for head in heads if in_front else heads[::-1]:
            canvas = put(canvas, *head)
        frames.append(canvas)
        path.append(nose + x)
    avatar, _ = prepare(frames)
    hidden = np.flatnonzero(~avatar.has_face)
    assert len(hidden) == 0 if in_front else (3 <= len(hidden) <= 10 and np.all(np.diff(hidden) == 1))
    error = np.abs(avatar.landmarks[:, 30, 0] - path)
    assert error[avatar.has_face].max() < 5  # px; the heads pass each other at 26 px per frame
    say_with(avatar)


def test_frames_of_a_head_that_looks_aside_are_played_unchanged(prepare: Prepare) -> None:
    yaws = np.concatenate([np.zeros(4), np.linspace(0, 85, 6), np.linspace(85, 0, 6), np.zeros(4)])
    avatar, _ = prepare([turned(float(yaw)) for yaw in yaws])
    assert not avatar.has_face[yaws > 65].any() and avatar.has_face[yaws < 45].all()
    say_with(avatar)


def test_a_three_quarter_view_works(prepare: Prepare) -> None:
    avatar, report = prepare([moved(turned(35), similarity((300, 300), dx=k)) for k in range(8)])
    assert avatar.has_face.all() and report.frames_without_face == 0
    say_with(avatar)


def test_a_profile_is_refused(prepare: Prepare) -> None:
    with pytest.raises(NoFaceError, match="No face was found in any of the 5 frames") as refused:
        prepare([turned(88)] * 5)
    assert "from the front" in refused.value.remedy


def test_frames_with_a_hand_over_the_mouth_are_played_unchanged(prepare: Prepare) -> None:
    """No mouth is pasted onto a hand."""
    frames, hand = sway(small_hopper(), 8), range(4, 6)
    for k in hand:
        frames[k] = behind_a_hand(frames[k], face_of(frames[k]))
    avatar, report = prepare(frames)
    assert np.flatnonzero(~avatar.has_face).tolist() == list(hand)
    assert any("covered" in warning for warning in report.warnings)
    say_with(avatar)


def test_a_beard_works(prepare: Prepare) -> None:
    shaved = face_of(small_hopper())
    avatar, report = prepare(sway(bearded(small_hopper(), shaved), 8))
    assert avatar.has_face.all() and report.frames_without_face == 0
    noses = [motion @ [*shaved.landmarks[30], 1] for motion in swaying(small_hopper(), 8)]
    assert np.abs(avatar.landmarks[:, 30] - noses).max() < 0.05 * report.face_px[1]
    say_with(avatar)


# --- files


def test_black_frames_are_played_unchanged(prepare: Prepare) -> None:
    """At the start, in the middle and at the end."""
    frames, dark = sway(astronaut(), 14), [0, 6, 7, 13]
    for k in dark:
        frames[k] = np.zeros_like(frames[k])
    avatar, _ = prepare(frames)
    assert np.flatnonzero(~avatar.has_face).tolist() == dark
    say_with(avatar)


def test_a_black_video_is_refused(prepare: Prepare) -> None:
    with pytest.raises(NoFaceError, match="No face was found in any of the 10 frames"):
        prepare([np.zeros((120, 160, 3), np.uint8)] * 10)


def timed(path: Path, frames: list[UInt8], times_s: list[float], rate: Fraction, codec: str = "libx264") -> Path:
    """Write a video whose frame k is shown at times_s[k]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "10"} if codec == "libx264" else {})
        stream.width, stream.height = frames[0].shape[1], frames[0].shape[0]
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "argb"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 60_000)
        for frame, at in zip(frames, times_s, strict=True):
            source = "rgb24" if frame.shape[2] == 3 else "rgba"
            picture = av.VideoFrame.from_ndarray(frame, format=source).reformat(format=stream.pix_fmt)
            picture.pts, picture.time_base = round(at * 60_000), Fraction(1, 60_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def gliding(times_s: list[float]) -> list[UInt8]:
    """Eileen Collins moves to the right at 40 px per second."""
    return [moved(astronaut(), similarity(astronaut().shape, dx=40 * at - 20)) for at in times_s]


def check_glide(avatar: PreparedAvatar, longest_gap_s: float) -> None:
    """Each prepared frame shows her position at its time, within half the time between two source frames."""
    nose = avatar.landmarks[:, 30, 0] - face_of(astronaut()).landmarks[30, 0]
    error = nose - (40 * np.arange(len(avatar)) / avatar.fps - 20)
    assert np.abs(error).max() < 40 * longest_gap_s / 2 + 2.5


def test_another_frame_rate_keeps_its_timing(prepare: Prepare, tmp_path: Path) -> None:
    rate = Fraction(24_000, 1001)
    times = [float(k / rate) for k in range(12)]  # half a second
    avatar, report = prepare(timed(tmp_path / "a.mp4", gliding(times), times, rate))
    assert len(avatar) == 13  # 12.5
    assert any(f"{float(rate):.5g} frames per second" in warning for warning in report.warnings)
    check_glide(avatar, float(1 / rate))
    say_with(avatar)


def test_a_variable_frame_rate_keeps_its_timing(prepare: Prepare, tmp_path: Path) -> None:
    """As phones record: some 30 frames per second, some 12, with one pause of a third of a second."""
    steps = [1 / 30] * 4 + [1 / 12] * 2 + [1 / 3] + [1 / 30] * 4
    times = [0.0, *np.cumsum(steps).tolist()]
    avatar, _ = prepare(timed(tmp_path / "a.mp4", gliding(times), times, Fraction(30)))
    assert abs(len(avatar) / 25 - times[-1]) < 0.08
    assert avatar.has_face.all()
    check_glide(avatar, 1 / 3)
    say_with(avatar)


def test_a_rotated_phone_video_is_upright(prepare: Prepare, tmp_path: Path) -> None:
    """The track header's matrix (ISO 14496-12, tkhd) rotates the stored picture clockwise by `turn`."""
    turn, matrix = 90, (0, 1, -1, 0)  # test_source tests the other angles
    upright = [frame[:, 20:280] for frame in sway(astronaut(), 6)]  # 260 × 300
    path = write_clip(tmp_path / "a.mp4", [np.ascontiguousarray(np.rot90(frame, turn // 90)) for frame in upright])
    data = bytearray(path.read_bytes())
    a, b, c, d = matrix
    at = data.index(b"tkhd") + 44  # after version and flags, times, id, duration, reserved, layer, volume
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    avatar, report = prepare(path)
    assert (avatar.width, avatar.height) == (260, 300) and not report.video_copied
    assert avatar.has_face.all()
    eyes, chin = avatar.landmarks[:, 36:48].mean(1), avatar.landmarks[:, 8]
    assert (chin[:, 1] - eyes[:, 1] > 0.4 * report.face_px[1]).all()
    say_with(avatar)


@pytest.mark.full
def test_4k_works_with_a_warning(prepare: Prepare) -> None:
    large = cv2.resize(hopper(), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)  # a face of 820 px
    frames = [put(on_ground(2160, 3840), large, 900, 120)]
    avatar, report = prepare(frames)
    assert (avatar.width, avatar.height) == (3840, 2160) and avatar.has_face.all()
    assert 760 < report.face_px[1] < 880 and any("loses detail" in warning for warning in report.warnings)
    crop = warp(avatar.frames[0], avatar.transforms[0])
    assert crop.shape == (256, 256, 3)


def test_an_alpha_channel_is_dropped_with_a_warning(prepare: Prepare, tmp_path: Path) -> None:
    clear = np.full((300, 300, 1), 255, np.uint8)
    clear[:, :40] = 0
    frames = [np.concatenate([frame, clear], axis=2) for frame in sway(astronaut(), 5)]
    avatar, report = prepare(timed(tmp_path / "a.mov", frames, [k / 25 for k in range(5)], Fraction(25), "qtrle"))
    assert avatar.has_face.all() and len(avatar) == 5
    assert any("transparent" in warning for warning in report.warnings)
    assert np.abs(avatar.frames[2].astype(int) - frames[2][..., :3]).mean() < 3
    say_with(avatar)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_frames_are_enough(prepare: Prepare, n: int) -> None:
    avatar, report = prepare(sway(astronaut(), n))
    assert len(avatar) == report.frames == n and avatar.has_face.all()
    say_with(avatar)
