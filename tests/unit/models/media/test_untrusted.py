"""models.media.untrusted: sizes are refused before they cost time or memory, by every reader of users' videos."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from models import MAX_PICTURE_PIXELS
from models.avatar import source as source_module
from models.avatar.source import open_source
from models.errors import VideoError
from models.media.transcode import SourceVideo
from models.media.untrusted import MAX_JPEG_SCANS, open_video, upright, video_stream
from warmtalk.cli.quality.media import frames_of, open_media

Read = Callable[[Path], object]
READERS: dict[str, Read] = {
    "prepare": lambda path: list(open_source(path, 25, 60).frames()),
    "enhance": lambda path: list(SourceVideo(path).frames()),
    "quality": lambda path: list(frames_of(open_media(path, 60))),
}
FRAMES = 20


@pytest.fixture(params=READERS.values(), ids=READERS.keys())
def read(request: pytest.FixtureRequest) -> Read:
    reader: Read = request.param
    return reader


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png(width: int, height: int, *further_sizes: tuple[int, int]) -> bytes:
    """A black PNG of one bit per pixel; further_sizes are stated in more headers."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    rows = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    headers = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)) for size in ((width, height), *further_sizes)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(headers) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def video(width: int, height: int, kind: str = "mp4", frames: int = FRAMES, aspect: Fraction | None = None) -> bytes:
    """Black H.264."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "40"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        for k in range(frames):
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def stored(folder: Path, data: bytes) -> Path:
    (folder / "a.mp4").write_bytes(data)
    return folder / "a.mp4"


def test_a_picture_of_900_megapixels_is_refused_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding it took 12.8 s and 5.2 GB."""
    path = stored(tmp_path, png(30_000, 30_000))
    assert path.stat().st_size < 120_000
    monkeypatch.setattr(cv2, "imdecode", None)
    begin_s = time.process_time()
    with pytest.raises(VideoError, match=r"a\.mp4 has more than 179 megapixels; at most 50\.3 are allowed"):
        open_source(path, 25, 60)
    assert time.process_time() - begin_s < 0.05


def huge(suffix: str) -> bytes:
    """A small file whose header states 3.6 gigapixels (WebP: the most that it can)."""
    if suffix == ".gif":
        frame = b"," + struct.pack("<4HB", 0, 0, 60_000, 60_000, 0)
        return (
            b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + bytes(6) + frame + b"\x02\x02\x4c\x01\x00;"
        )
    _, coded = cv2.imencode(suffix, np.zeros((96, 96, 3), np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 50])
    data = bytearray(coded.tobytes())
    at, size = {
        ".jpg": (data.find(b"\xff\xc0") + 5, struct.pack(">HH", 60_000, 60_000)),
        ".bmp": (18, struct.pack("<ii", 60_000, -60_000)),
        ".webp": (data.find(b"VP8 ") + 14, struct.pack("<HH", 16_383, 16_383)),
    }[suffix]
    data[at : at + len(size)] = size
    return bytes(data)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp", ".gif"])
def test_huge_pictures_of_every_kind_are_refused_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = stored(tmp_path, huge(suffix))
    monkeypatch.setattr(cv2, "imdecode", None)
    begin_s = time.process_time()
    with pytest.raises(VideoError, match="No frame" if suffix == ".gif" else "more than 179 megapixels"):
        open_source(path, 25, 60)
    assert time.process_time() - begin_s < 0.05


@pytest.mark.parametrize("size", [(8192, 6146), (8194, 64), (8192, 8192)])
def test_a_picture_just_above_the_limits_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(VideoError, match=f"{size[0]} × {size[1]} px"):
        open_source(stored(tmp_path, png(*size)), 25, 60)


@pytest.mark.parametrize("sizes", [((30_000, 30_000), (64, 64)), ((64, 64), (30_000, 30_000)), ((2_000_000, 64),)])
def test_a_picture_whose_headers_disagree_is_refused(tmp_path: Path, sizes: tuple[tuple[int, int], ...]) -> None:
    """Pillow and OpenCV may believe different ones."""
    path, begin_s = stored(tmp_path, png(*sizes[0], *sizes[1:])), time.process_time()
    with pytest.raises(VideoError):
        open_source(path, 25, 60)
    assert time.process_time() - begin_s < 0.5


def test_opencv_itself_refuses_pictures_above_the_limit() -> None:
    with pytest.raises(cv2.error, match="CV_IO_MAX_IMAGE_PIXELS"):
        cv2.imdecode(np.frombuffer(png(8192, MAX_PICTURE_PIXELS // 8192 + 1), np.uint8), cv2.IMREAD_COLOR)


def test_a_jpeg_with_many_scans_is_refused(tmp_path: Path) -> None:
    """Each scan of some bytes costs a pass over the whole picture."""
    _, data = cv2.imencode(".jpg", np.zeros((96, 96, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    jpeg = data.tobytes()
    assert 1 < jpeg.count(b"\xff\xda") <= MAX_JPEG_SCANS
    open_source(stored(tmp_path, jpeg), 25, 60)
    at = jpeg.rindex(b"\xff\xda")
    with pytest.raises(VideoError, match=f"JPEG with {MAX_JPEG_SCANS + 1} scans"):
        scans = MAX_JPEG_SCANS + 1 - jpeg[:at].count(b"\xff\xda")
        open_source(stored(tmp_path, jpeg[:at] + jpeg[at:-2] * scans + b"\xff\xd9"), 25, 60)


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts", "h264"])
def test_a_video_above_the_limit_is_refused_before_decoding(tmp_path: Path, read: Read, kind: str) -> None:
    """8,192 × 4,322 px is two rows above it. In some formats the size stands only in the coded frames."""
    path, begin_s = stored(tmp_path, video(8192, 4322, kind, frames=1)), time.process_time()
    with pytest.raises(VideoError, match="8192 × 4322 px, that is 35.4 megapixels; at most 35.4"):
        read(path)
    assert time.process_time() - begin_s < 0.1


@pytest.mark.parametrize("aspect", [Fraction(50), Fraction(5), Fraction(1, 64)])
def test_a_video_is_refused_that_is_too_large_or_small_in_square_pixels(
    tmp_path: Path, read: Read, aspect: Fraction
) -> None:
    path = stored(tmp_path, video(2048, 2048, aspect=aspect, frames=1))
    with pytest.raises(VideoError, match=f"{round(2048 * aspect)} × 2048 px"):
        read(path)


def test_the_aspect_ratio_is_checked_again_for_each_frame() -> None:
    frame = av.VideoFrame(2048, 2048, "yuv420p")
    with pytest.raises(VideoError, match="102400 × 2048 px"):
        upright(frame, Fraction(50))


def test_a_wide_pixel_within_the_limits_is_stretched() -> None:
    frame = av.VideoFrame(64, 128, "yuv420p")
    assert upright(frame, Fraction(3, 2)).shape == (128, 96, 3)


def test_a_video_whose_frames_grow_above_the_limit_is_not_decoded_there(tmp_path: Path, read: Read) -> None:
    path = stored(tmp_path, video(320, 240, "h264") + video(9216, 9216, "h264", frames=1))
    begin_s = time.process_time()
    try:
        read(path)
    except (VideoError, av.FFmpegError):
        pass
    else:
        assert read is not READERS["quality"]  # the other readers skip damaged packets
    assert time.process_time() - begin_s < 1.0
    with open_video(path) as container:
        stream = video_stream(container)
        with pytest.raises(av.FFmpegError):
            for packet in container.demux(stream):
                assert all(frame.width == 320 for frame in packet.decode())


def test_a_video_whose_frames_change_size_is_refused(tmp_path: Path, read: Read) -> None:
    path = stored(tmp_path, video(320, 240, "mpegts") + video(640, 480, "mpegts"))
    with pytest.raises(VideoError, match="frame size of a.mp4 changes"):
        read(path)


def test_a_video_with_many_frames_in_a_short_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that preparation drops cost time as well."""
    path = stored(tmp_path, video(64, 64))
    monkeypatch.setattr(source_module, "MAX_SOURCE_FPS", FRAMES // 2)
    assert len(list(open_source(path, 25, 2).frames())) == FRAMES
    with pytest.raises(VideoError, match=rf"a\.mp4 has more than {FRAMES // 2} frames"):
        list(open_source(path, 25, 1).frames())


@pytest.mark.parametrize("name", ["#EXTM3U", "ffconcat", "dash"])
def test_a_playlist_never_opens_other_files(tmp_path: Path, read: Read, name: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(video(320, 240))
    lists = {
        "#EXTM3U": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
        'mimeType="video/mp4"><Representation id="1"><BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>",
    }
    path = stored(tmp_path, lists[name].encode())
    with pytest.raises(VideoError, match="cannot be read as a video"):
        read(path)


@pytest.mark.parametrize("pixels", ["gray16le", "pal8", "yuv444p12le", "gbrp", "xyz12le", "rgb555le", "monow"])
def test_rare_pixel_formats_are_read_or_named(tmp_path: Path, read: Read, pixels: str) -> None:
    with av.open(str(tmp_path / "a.nut"), "w", format="nut") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        frame = av.VideoFrame(96, 64, pixels)
        for k in range(FRAMES):
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    try:
        frames = read(tmp_path / "a.nut")
    except VideoError as error:
        assert f"pixel format {pixels}" in error.message
    else:
        assert isinstance(frames, list) and len(frames) == FRAMES
