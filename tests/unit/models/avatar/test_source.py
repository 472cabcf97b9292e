"""models.avatar.source: any video or picture as frames at one rate."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from models.avatar.source import AvatarSource, open_source
from models.errors import VideoError
from models.media.frames import VideoFrames, write_frames
from models.types import UInt8
from tests.support.avatar import astronaut, moved, swaying, write_clip, write_sound

LEVEL = 6  # grey levels between two frames of `counting`


def grey(value: int, size: tuple[int, int] = (96, 64)) -> UInt8:
    return np.full((size[1], size[0], 3), value, np.uint8)


def read(path: Path, fps: int = 25, max_seconds: float = 60) -> tuple[AvatarSource, list[UInt8]]:
    source = open_source(path, fps, max_seconds)
    return source, list(source.frames())


def numbers(frames: list[UInt8]) -> list[int]:
    """Which frame of `counting` each is."""
    return [round(float(frame.mean()) / LEVEL) for frame in frames]


def counting(path: Path, times_ms: list[int], codec: str = "libx264", fps: int = 25) -> Path:
    """A video whose frame k is k · 6 grey and is shown at times_ms[k]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k, at in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(grey(k * LEVEL), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_a_video_of_the_target_rate_is_read_frame_by_frame(tmp_path: Path, fps: int) -> None:
    path = write_clip(tmp_path / "a.mp4", [grey(k * LEVEL) for k in range(20)], fps)
    source, frames = read(path, fps)
    assert numbers(frames) == list(range(20))
    assert (source.width, source.height, source.kind, source.fps, source.expected) == (96, 64, "video", fps, 20)


@pytest.mark.parametrize("source_fps", [12, 24, 30, 50, 60])
def test_another_frame_rate_keeps_its_timing(tmp_path: Path, source_fps: int) -> None:
    """Each output frame shows the source frame nearest in time, and the length stays within half a frame."""
    n = 24
    path = counting(tmp_path / "a.mp4", [round(1000 * k / source_fps) for k in range(n)], fps=source_fps)
    _, frames = read(path)
    expected = np.arange(len(frames)) / 25 * source_fps
    assert np.abs(np.array(numbers(frames)) - np.minimum(expected, n - 1)).max() <= 0.51
    assert abs(len(frames) / 25 - n / source_fps) <= 0.5 / 25 + 1e-3


def test_variable_frame_rate_follows_the_timestamps(tmp_path: Path) -> None:
    times = [0, 40, 80, 400, 410, 420, 430, 800, 840]
    _, frames = read(counting(tmp_path / "a.mp4", times))
    shown = numbers(frames)
    nearest = [min(range(len(times)), key=lambda k: (abs(times[k] - 40 * out), k)) for out in range(len(frames))]
    assert shown == nearest
    assert len(frames) in (21, 22)


def test_a_video_that_starts_late_starts_at_its_first_frame(tmp_path: Path) -> None:
    _, frames = read(counting(tmp_path / "a.mkv", [5000 + 40 * k for k in range(8)]))
    assert numbers(frames) == list(range(8))


@pytest.mark.parametrize(
    ("turn", "numbers_of_matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))]
)
def test_a_rotated_phone_video_is_set_upright(tmp_path: Path, turn: int, numbers_of_matrix: tuple[int, ...]) -> None:
    """The track header's matrix (ISO 14496-12, tkhd) turns clockwise by `turn`; the picture's top is marked red."""
    upright = grey(90, (96, 64) if turn == 180 else (64, 96))
    upright[:16] = (200, 40, 40)
    stored = np.rot90(upright, turn // 90)  # counter-clockwise, so that turning clockwise sets it right
    path = write_clip(tmp_path / "a.mp4", [np.ascontiguousarray(stored)] * 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags; times, id, duration; reserved, layer, volume
    a, b, c, d = numbers_of_matrix
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    source, frames = read(path)
    assert frames[0].shape == upright.shape == (source.height, source.width, 3)
    assert np.abs(frames[0].astype(int) - upright).mean() < 3


def test_odd_sides_lose_one_row_or_column(tmp_path: Path) -> None:
    picture = astronaut()[:201, :151]
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    source, frames = read(tmp_path / "a.png")
    assert (source.width, source.height) == (150, 200)
    assert np.array_equal(frames[0], picture[:200, :150])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ""])
def test_a_picture_is_one_frame(tmp_path: Path, suffix: str) -> None:
    _, data = cv2.imencode(suffix or ".png", astronaut()[..., ::-1])
    (tmp_path / f"a{suffix}").write_bytes(data.tobytes())
    source, frames = read(tmp_path / f"a{suffix}")
    assert (source.kind, len(frames), source.expected) == ("picture", 1, 1)
    assert np.abs(frames[0].astype(int) - astronaut()).mean() < 4


def test_alpha_is_dropped(tmp_path: Path) -> None:
    bgra = np.dstack([astronaut()[..., ::-1], np.zeros((300, 300), np.uint8)])
    cv2.imwrite(str(tmp_path / "a.png"), bgra)
    assert np.array_equal(read(tmp_path / "a.png")[1][0], astronaut())


def test_a_fitting_stream_is_copied_without_loss(tmp_path: Path) -> None:
    pictures = [moved(astronaut(), motion) for motion in swaying(astronaut(), 20)]
    source, frames = read(write_clip(tmp_path / "a.mp4", pictures))
    assert source.copy_stream(tmp_path / "copy.mp4")
    copied = VideoFrames((tmp_path / "copy.mp4").open("rb"))
    assert len(copied) == 20 and all(np.array_equal(copied[k], frames[k]) for k in range(20))


@pytest.mark.parametrize("why", ["rate", "codec", "groups", "turned"])
def test_other_streams_are_not_copied(tmp_path: Path, why: str) -> None:
    path = tmp_path / "a.mp4"
    if why == "codec":
        counting(path, [40 * k for k in range(20)], "mpeg4")
    elif why == "groups":
        counting(path, [40 * k for k in range(40)])
    else:
        write_frames(path, [grey(k) for k in range(20)], 25)
    if why == "turned":
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 44
        data[at : at + 20] = struct.pack(">5i", 0, 1 << 16, 0, -1 << 16, 0)
        path.write_bytes(data)
    assert not open_source(path, 30 if why == "rate" else 25, 60).copy_stream(tmp_path / "copy.mp4")
    assert not (tmp_path / "copy.mp4").exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no\.mp4 was not found"):
        open_source(tmp_path / "no.mp4", 25, 60)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match="is empty"):
        open_source(tmp_path / "a.mp4", 25, 60)


@pytest.mark.parametrize("data", [b"hello, this is a text" * 50, b"\x89PNG\r\n\x1a\n rubbish", bytes(5000)])
def test_an_unreadable_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(VideoError, match="cannot be read as a video or a picture|is a damaged picture"):
        open_source(tmp_path / "a.mp4", 25, 60)


def test_a_file_without_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="has sound but no picture"):
        open_source(write_sound(tmp_path / "a.mp4"), 25, 60)


@pytest.mark.parametrize("size", [(62, 200), (200, 48), (8200, 64)])
def test_sizes_out_of_range_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), grey(9, size))
    with pytest.raises(VideoError, match=rf"{size[0]} × {size[1]} px; each side must be between 64 and 8192"):
        open_source(tmp_path / "a.png", 25, 60)


def test_a_long_video_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [grey(k) for k in range(80)])
    with pytest.raises(VideoError, match=r"longer than 2 s.*max_seconds"):
        read(path, max_seconds=2)


def test_a_truncated_file_gives_its_complete_frames(tmp_path: Path) -> None:
    """Matroska can be read up to the truncation."""
    path = counting(tmp_path / "a.mkv", [40 * k for k in range(40)])
    (tmp_path / "cut.mkv").write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    _, frames = read(tmp_path / "cut.mkv")
    assert 10 < len(frames) < 40
    assert numbers(frames)[:10] == list(range(10))
