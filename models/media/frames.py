"""Frames of an avatar on disk: a short-GOP H.264 file that is written once and read in any order. Knows no faces.

Colour is BT.709, limited range, in both directions, so that what is read is what was written but for H.264's own loss.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from models.errors import CorruptError
from models.media.yuv import Picture, picture_of
from models.types import UInt8

CACHE_BYTES = 512 << 20  # decoded frames that one avatar may keep in memory
GOP_FRAMES = 12  # half a second: cheap to play backwards, half the size of all-intra
GOP_BYTES = 96 << 20  # decoded; keeps four groups of 4K frames inside the cache
FRAMES_CRF = 16.0  # x264's: no visible loss
X264_THREADS = 2  # fixed, because the stream depends on it
BT709 = 1  # AVCOL_PRI_BT709 = AVCOL_TRC_BT709 = AVCOL_SPC_BT709
LIMITED, FULL = 1, 2  # AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG
# without these swscale darkens a picture by more than one level on its way there and back
TO_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
TO_RGB = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
COLORSPACES = {
    1: Colorspace.ITU709,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    9: Colorspace.BT2020,
}  # AVCOL_SPC_… → swscale's


def gop_frames(width: int, height: int) -> int:
    """Frames between two key frames: 12, fewer where twelve decoded frames would be large."""
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
    """A decoded frame → RGB uint8 `(h, w, 3)`. An untagged picture of 720 lines or more counts as BT.709, else 601."""
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
    """The samples of a yuv420p frame with even sides, where they lie: they live as long as what is returned."""
    assert frame.format.name == "yuv420p", frame.format.name
    flat = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]  # type: ignore[call-overload]
    luma, blue, red = (data[: plane.height, : plane.width] for data, plane in zip(flat, frame.planes, strict=True))
    return Picture(luma, blue, red)


class FrameWriter:
    """Writes RGB frames to an H.264 MP4 of closed, short GOPs without B-frames; the same frames give the same bytes.

    width and height in px, even. `crf` is x264's quality (lower is better; 16 loses nothing that can be seen).
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
    """A PictureSource over an MP4: decodes a group of pictures at once and keeps the last ones, up to `cache_bytes`.

    They are kept as they were coded, half as large as in RGB, which is made when it is asked for. Forward and backward
    play both decode each group once. Safe to read from several threads. Arrays are read-only.
    Takes an open binary file, so that replacing or removing the avatar does not disturb a reader.
    """

    def __init__(self, file: BinaryIO, name: str = "frames.mp4", cache_bytes: int = CACHE_BYTES) -> None:
        self._name, self._cache_bytes = name, cache_bytes
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, list[av.VideoFrame]] = OrderedDict()
        self._cached = 0
        self._latest: tuple[int, UInt8] | None = None  # the frame that was last asked for, in RGB
        try:
            self._container = av.open(file, "r", format="mp4")
            self._stream: Any = self._container.streams.video[0]
            self._starts, self._key_pts = self._index()
        except (av.FFmpegError, IndexError) as error:
            raise self._broken(str(error)) from error
        self._stream.thread_type = "NONE"

    def _index(self) -> tuple[list[int], list[int]]:
        """First frame index of each group (and the end), and the pts of each group's key frame."""
        starts, key_pts, count = [], [], 0
        for packet in self._container.demux(self._stream):
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                starts.append(count)
                key_pts.append(int(packet.pts))
            count += 1
        if not starts or starts[0] != 0:
            raise self._broken("it does not begin with a key frame")
        return [*starts, count], key_pts

    def _broken(self, why: str) -> CorruptError:
        return CorruptError(f"{self._name} cannot be read: {why}.", "Prepare the avatar again with --force.")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> UInt8:
        """Frame `index`, RGB uint8 `(h, w, 3)`, read-only. Raises IndexError outside 0 … len - 1."""
        with self._lock:  # swscale marks the frame that it reads
            if self._latest is None or self._latest[0] != index:
                self._latest = index, rgb_array(self._frame(index))
                self._latest[1].flags.writeable = False
            return self._latest[1]

    def picture(self, index: int) -> Picture:
        """Frame `index` as it was coded, read-only: nothing is converted. Raises IndexError outside 0 … len - 1."""
        with self._lock:
            frame = self._frame(index)
            plain = frame.format.name == "yuv420p" and (int(frame.colorspace), frame.color_range) == (BT709, LIMITED)
            picture = planes(frame) if plain else picture_of(rgb_array(frame))
        for plane in picture.planes:
            plane.flags.writeable = False
        return picture

    def _frame(self, index: int) -> av.VideoFrame:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._group(group)[index - self._starts[group]]

    def _group(self, group: int) -> list[av.VideoFrame]:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        frames = self._decode(group)
        size = _bytes(frames)
        while self._cache and self._cached + size > self._cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cached -= _bytes(dropped)
        self._cache[group] = frames
        self._cached += size
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
            raise self._broken(f"{len(decoded)} of {count} frames decode from frame {self._starts[group]} on")
        return decoded


def _bytes(frames: Iterable[av.VideoFrame]) -> int:
    return sum(plane.buffer_size for frame in frames for plane in frame.planes)


def write_frames(path: Path, frames: Iterable[UInt8], fps: int, crf: float = FRAMES_CRF) -> int:
    """Write all of `frames` (RGB uint8, one even size, at least one) to `path`. Returns how many there were."""
    writer = None
    for frame in frames:
        writer = writer or FrameWriter(path, frame.shape[1], frame.shape[0], fps, crf)
        writer.write(frame)
    assert writer is not None, "no frames"
    writer.close()
    return writer.written
