"""Reads any video or picture as RGB frames at one frame rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np

from models.avatar.store import file_sha256
from models.errors import VideoError
from models.media.frames import GOP_FRAMES
from models.media.untrusted import even, open_video, read_picture, upright, video_stream
from models.types import UInt8

PICTURE_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM")
LONGEST_COPIED_GOP = 2 * GOP_FRAMES
TRANSPARENT = "The picture is partly transparent; transparency is ignored, and the colours stored below it are shown."
READABLE = "Use a video (MP4, MOV, WebM, MKV …) or a picture (PNG, JPEG, WebP, BMP)."
MAX_DAMAGED_PACKETS = 1000  # decoding stops after these
MAX_SOURCE_FPS = 250  # more frames in max_seconds are refused: frames that are dropped cost time as well


@dataclass(slots=True)
class AvatarSource:
    """A video, or a picture as a video of one frame.

    kind: `video` or `picture`. width, height: of the frames that `frames` yields. fps: the video's own mean rate, 0 for
    a picture. expected: estimated number of frames that `frames` yields. warnings: filled while reading.
    """

    path: Path
    sha256: str
    kind: str
    width: int
    height: int
    fps: float
    target_fps: int
    max_frames: int
    expected: int
    warnings: list[str] = field(default_factory=list)

    def frames(self) -> Iterator[UInt8]:
        """Yield RGB uint8 `(height, width, 3)` at `target_fps`: rotated by the file's metadata, no alpha, even sides.

        Raises VideoError when nothing can be decoded or the video has more than `max_frames`.
        """
        if self.kind == "picture":
            if _has_transparency(self.path):
                self.warnings.append(TRANSPARENT)
            yield _read_picture(self.path)
            return
        count = 0
        for count, frame in enumerate(_resample(_decode(self), self.target_fps), start=1):
            if count > self.max_frames:
                raise _too_long(self)
            if frame.shape[:2] != (self.height, self.width):
                raise VideoError(
                    f"The frame size of {self.path.name} changes from {self.width} × {self.height} to "
                    f"{frame.shape[1]} × {frame.shape[0]} px.",
                    "Cut the video there.",
                )
            yield frame
        if count == 0:
            raise VideoError(f"No frame of {self.path.name} can be decoded.", READABLE)

    def copy_stream(self, target: Path) -> bool:
        """Copy the H.264 stream unchanged to the MP4 `target`, without a second loss. Returns False if it does not fit.

        It fits if its frame rate, size, rotation and keyframe interval are those of avatar frames.
        """
        return self.kind == "video" and _copy(self, target)


def open_source(path: Path, target_fps: int, max_seconds: float) -> AvatarSource:
    """Open a video or a picture.

    Raises VideoError if it is not found, empty, unreadable, without a picture, too small, too large or too long.
    """
    if not path.is_file():
        raise VideoError(f"The input video {path} was not found.", "Check the path.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name} is empty (0 bytes).", "Record or copy it again.")
    with path.open("rb") as file:
        sha256, head = file_sha256(file), file.read(16)
    limit = max(1, int(max_seconds * target_fps))
    if head.startswith(PICTURE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        picture = _read_picture(path)
        return AvatarSource(path, sha256, "picture", picture.shape[1], picture.shape[0], 0.0, target_fps, limit, 1)
    fps, duration_s = _probe(path)
    source = AvatarSource(path, sha256, "video", 0, 0, fps, target_fps, limit, round(duration_s * target_fps))
    if source.expected > limit + target_fps:
        raise _too_long(source)
    first = next(_decode(source), None)
    if first is None:
        raise VideoError(f"No frame of {path.name} can be decoded.", READABLE)
    source.height, source.width = first[1].shape[:2]
    source.warnings.clear()
    return source


def _probe(path: Path) -> tuple[float, float]:
    """Frames per second and duration in seconds of the first video stream."""
    try:
        with open_video(path) as container:
            stream = video_stream(container)
            if stream is None and container.streams.audio:
                raise VideoError(f"{path.name} has sound but no picture.", READABLE)
            if stream is None:
                raise VideoError(f"{path.name} has no video stream.", READABLE)
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            return float(stream.average_rate or stream.base_rate or 0), seconds
    except av.FFmpegError as error:
        raise VideoError(f"{path.name} cannot be read as a video or a picture.", READABLE) from error


def _decode(source: AvatarSource) -> Iterator[tuple[float, UInt8, float]]:
    """Per frame: seconds since the first frame, the upright RGB picture with even sides, its duration in seconds."""
    damaged, count, first, last = 0, 0, None, -1.0
    max_decoded = round(source.max_frames / source.target_fps * MAX_SOURCE_FPS)
    with open_video(source.path) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        spacing = float(1 / stream.average_rate) if stream.average_rate else 1 / source.target_fps
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
                decoded = packet.decode()
            except StopIteration:
                break
            except av.FFmpegError:
                damaged += 1
                if damaged > MAX_DAMAGED_PACKETS:
                    break
                continue
            for frame in decoded:
                count += 1
                if count > max_decoded:
                    raise VideoError(f"{source.path.name} has more than {max_decoded} frames.", "Cut the video.")
                if first is None and _is_transparent(frame):
                    source.warnings.append(TRANSPARENT)
                time_s = last + spacing if frame.time is None else frame.time
                first = time_s if first is None else first
                last = max(time_s, last)
                duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else spacing
                yield time_s - first, upright(frame, stream.sample_aspect_ratio), duration
    if damaged:
        source.warnings.append(f"{damaged} damaged packets of the video were skipped.")


def _is_transparent(frame: av.VideoFrame) -> bool:
    """Whether a decoded frame has transparent parts."""
    if not any(component.is_alpha for component in frame.format.components):
        return False
    return bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def _resample(frames: Iterator[tuple[float, UInt8, float]], fps: int) -> Iterator[UInt8]:
    """At each k / fps, the frame nearest in time: frames are dropped or repeated, never blended."""
    k, current, duration = 0, None, 0.0
    at = 0.0
    for time_s, frame, lasting in frames:
        if current is not None:
            while k / fps - at <= time_s - k / fps + 1e-6:  # output frame k is nearer to the frame before
                yield current
                k += 1
        at, current, duration = time_s, frame, lasting
    while current is not None and (k == 0 or k / fps < at + duration - 0.5 / fps):
        yield current
        k += 1


def _read_picture(path: Path) -> UInt8:
    """RGB, upright, with even sides. Raises VideoError."""
    return even(cast(UInt8, cv2.cvtColor(read_picture(path), cv2.COLOR_BGR2RGB)))


def _has_transparency(path: Path) -> bool:
    picture = read_picture(path, cv2.IMREAD_UNCHANGED)
    return picture.ndim == 3 and picture.shape[2] == 4 and bool(picture[..., 3].min() < 255)


def _too_long(source: AvatarSource) -> VideoError:
    seconds = source.max_frames / source.target_fps
    return VideoError(f"{source.path.name} is longer than {seconds:g} s.", "Cut it, or raise max_seconds.")


def _is_turned(path: Path) -> bool:
    """Whether the file's metadata rotates its frames; 180° does not change their size, so it is checked here."""
    with open_video(path) as container:
        frame = next(container.decode(video_stream(container)), None)
        return frame is not None and round(frame.rotation / 90) % 4 != 0


def _copy(source: AvatarSource, target: Path) -> bool:
    with open_video(source.path) as container:
        stream = video_stream(container)
        packets = [p for p in container.demux(stream) if p.pts is not None]
        fits = stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        fits = fits and (stream.width, stream.height) == (source.width, source.height) and not _is_turned(source.path)
        step = 1 / (Fraction(source.target_fps) * stream.time_base)
        even = step.denominator == 1 and all(
            p.pts - packets[0].pts == k * step and p.dts == p.pts for k, p in enumerate(packets)
        )
        keys = [k for k, p in enumerate(packets) if p.is_keyframe] + [len(packets)]
        if not (fits and even and keys[0] == 0 and max(np.diff(keys)) <= LONGEST_COPIED_GOP):
            return False
        with av.open(str(target), "w", format="mp4", options={"fflags": "+bitexact"}) as output:
            copied = output.add_stream_from_template(stream)
            origin = packets[0].pts
            for packet in packets:
                packet.pts -= origin
                packet.dts -= origin
                packet.stream = copied
                output.mux(packet)
    return True
