"""Stores the frames of an avatar in a short-GOP H.264 file that is written once and read in any order.

Colours are BT.709, limited range, when writing and when reading, so only the loss of H.264 separates the two.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import cachetools
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from models.errors import CorruptError
from models.media.yuv import Picture, picture_of
from models.types import UInt8

CACHE_BYTES = 512 << 20  # decoded frames kept in memory per avatar
GOP_FRAMES = 12  # half a second: cheap to play backwards, and half the size of intra-only video
GOP_BYTES = 96 << 20  # limit of a decoded GOP, counted as RGB; four GOPs of 4K frames fit into the cache
FRAMES_CRF = 16.0  # x264 quality without visible loss
X264_THREADS = 2  # fixed, because the encoded bytes depend on it
BT709 = 1  # AVCOL_PRI_BT709 = AVCOL_TRC_BT709 = AVCOL_SPC_BT709
LIMITED, FULL = 1, 2  # AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG
# Without these flags, swscale darkens a picture by more than one level when converting to YUV and back.
TO_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
TO_RGB = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
COLORSPACES = {
    1: Colorspace.ITU709,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    9: Colorspace.BT2020,
}  # AVCOL_SPC_… → swscale's


def gop_frames(width: int, height: int) -> int:
    """Frames between two keyframes: 12, or fewer if 12 decoded frames would exceed GOP_BYTES."""
    return int(np.clip(GOP_BYTES // (3 * width * height), 1, GOP_FRAMES))


def yuv_frame(rgb: UInt8) -> av.VideoFrame:
    """RGB uint8 `(h, w, 3)`, even sides → a yuv420p frame in BT.709 limited range."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        src_color_range=ColorRange.JPEG,
        interpolation=TO_YUV,
    )


def rgb_array(frame: av.VideoFrame) -> UInt8:
    """A decoded frame → RGB uint8 `(h, w, 3)`. Untagged video counts as BT.709 from 720 rows on, else as BT.601."""
    untagged = int(frame.colorspace) not in COLORSPACES
    guess = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    space = guess if untagged else COLORSPACES[int(frame.colorspace)]
    full = frame.color_range == FULL or frame.format.name.startswith(("yuvj", "rgb", "bgr", "gbr", "gray", "pal"))
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=space,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=TO_RGB,
    )
    array: UInt8 = rgb.to_ndarray()
    return array


def planes(frame: av.VideoFrame) -> Picture:
    """The planes of a yuv420p frame with even sides, without copying. They keep the memory of the frame alive."""
    assert frame.format.name == "yuv420p", frame.format.name
    flat = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]  # type: ignore[call-overload]
    luma, blue, red = (data[: plane.height, : plane.width] for data, plane in zip(flat, frame.planes, strict=True))
    return Picture(luma, blue, red)


class FrameWriter:
    """Writes RGB frames to an H.264 MP4 with short closed GOPs and no B-frames. Equal frames give equal bytes.

    width, height: even, px. crf: x264's quality, lower is better; 16 has no visible loss.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int, crf: float = FRAMES_CRF) -> None:
        assert width % 2 == 0 and height % 2 == 0, (width, height)
        self._size = (height, width, 3)
        self._container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        stream: Any = self._container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, fps)
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        gop = gop_frames(width, height)
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:threads={X264_THREADS}"
        stream.options = {"preset": "medium", "crf": str(crf), "x264-params": params}
        self._stream, self.written = stream, 0

    def write(self, rgb: UInt8) -> None:
        """Append one frame, uint8 `(h, w, 3)`."""
        assert rgb.shape == self._size, (rgb.shape, self._size)
        frame = yuv_frame(rgb)
        frame.pts, frame.time_base = self.written, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))
        self.written += 1

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


class VideoFrames:
    """A PictureSource over an MP4. Decodes one GOP at a time and caches GOPs, up to `cache_bytes`.

    The cache holds YUV frames, which need half the memory of RGB; RGB is computed on request. Forward and backward
    playback both decode each GOP once. Thread-safe. Returned arrays are read-only. Takes an open binary file, so
    that a reader is not affected when the avatar is replaced or removed.
    """

    def __init__(self, file: BinaryIO, name: str = "frames.mp4", cache_bytes: int = CACHE_BYTES) -> None:
        self._name = name
        self._lock = threading.Lock()
        limit = max(cache_bytes, 1)
        # a GOP larger than the limit is kept alone
        self._cache: cachetools.LRUCache[int, list[av.VideoFrame]] = cachetools.LRUCache(
            limit, getsizeof=lambda frames: min(_size_bytes(frames), limit)
        )
        self._latest: tuple[int, UInt8] | None = None  # the frame requested last, as RGB
        try:
            self._container = av.open(file, "r", format="mp4")
            self._stream: Any = self._container.streams.video[0]
            self._starts, self._key_pts = self._index()
        except (av.FFmpegError, IndexError) as error:
            raise self._broken(str(error)) from error
        self._stream.thread_type = "NONE"

    def _index(self) -> tuple[list[int], list[int]]:
        """The first frame index of each GOP, plus the number of frames; and the pts of each GOP's keyframe."""
        starts, key_pts, count = [], [], 0
        for packet in self._container.demux(self._stream):
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                starts.append(count)
                key_pts.append(int(packet.pts))
            count += 1
        if not starts or starts[0] != 0:
            raise self._broken("it does not start with a keyframe")
        return [*starts, count], key_pts

    def _broken(self, why: str) -> CorruptError:
        return CorruptError(f"{self._name} cannot be read: {why}.", "Prepare the avatar again with --force.")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> UInt8:
        """Frame `index`, RGB uint8 `(h, w, 3)`, read-only. Raises IndexError outside 0 … len - 1."""
        with self._lock:  # swscale changes metadata of the frame that it reads
            if self._latest is None or self._latest[0] != index:
                self._latest = index, rgb_array(self._frame(index))
                self._latest[1].flags.writeable = False
            return self._latest[1]

    def picture(self, index: int) -> Picture:
        """Frame `index` as it was encoded, without conversion, read-only. Raises IndexError outside 0 … len - 1."""
        with self._lock:
            frame = self._frame(index)
            is_native = frame.format.name == "yuv420p" and (int(frame.colorspace), frame.color_range) == (
                BT709,
                LIMITED,
            )
            picture = planes(frame) if is_native else picture_of(rgb_array(frame))
        for plane in picture.planes:
            plane.flags.writeable = False
        return picture

    def _frame(self, index: int) -> av.VideoFrame:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._group(group)[index - self._starts[group]]

    def _group(self, group: int) -> list[av.VideoFrame]:
        frames: list[av.VideoFrame] | None = self._cache.get(group)
        if frames is None:
            frames = self._cache[group] = self._decode(group)
        return frames

    def _decode(self, group: int) -> list[av.VideoFrame]:
        first, count = self._key_pts[group], self._starts[group + 1] - self._starts[group]
        decoded: list[av.VideoFrame] = []
        try:
            self._container.seek(first, stream=self._stream, backward=True)
            for frame in self._container.decode(self._stream):
                if frame.pts is not None and frame.pts >= first:
                    decoded.append(frame)
                if len(decoded) == count:
                    break
        except av.FFmpegError as error:
            raise self._broken(str(error)) from error
        if len(decoded) != count:
            raise self._broken(
                f"only {len(decoded)} of {count} frames can be decoded from frame {self._starts[group]} on"
            )
        return decoded


def _size_bytes(frames: Iterable[av.VideoFrame]) -> int:
    return sum(plane.buffer_size for frame in frames for plane in frame.planes)


def write_frames(path: Path, frames: Iterable[UInt8], fps: int, crf: float = FRAMES_CRF) -> int:
    """Write all `frames` (RGB uint8, equal even sizes, at least one) to `path`. Returns their number."""
    writer = None
    for frame in frames:
        writer = writer or FrameWriter(path, frame.shape[1], frame.shape[0], fps, crf)
        writer.write(frame)
    assert writer is not None, "no frames"
    writer.close()
    return writer.written
