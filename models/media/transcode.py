"""Rewrites the picture of a video and keeps the rest: same frames, same times, the sound packet by packet.

The new picture is written in pieces, each a closed file, so that a crash costs one piece; in the end the pieces and the
source's sound are joined without encoding again. Knows no faces and no Ray.
"""

from __future__ import annotations

import heapq
import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from models.errors import CorruptError, VideoError
from models.media.frames import BT709, LIMITED, rgb_array, yuv_frame
from models.types import UInt8

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
MIN_SIDE_PX, MAX_SIDE_PX = 64, 8192
MAX_TIMESCALE = 2**31 - 1  # of MP4
MAX_DAMAGED = 1000  # pieces of a stream that cannot be decoded, before the video is given up
READABLE = "Use a video (MP4, MOV, WebM, MKV …)."


@dataclass(frozen=True, slots=True)
class FrameTime:
    """Where a frame stands in its stream, in ticks of `SourceVideo.time_base`; `duration` is 0 where not known."""

    pts: int
    duration: int


@dataclass(frozen=True, slots=True)
class TranscodedPart:
    """A closed stretch of new picture. first_pts: of its first frame, in ticks of the source."""

    path: Path
    first_pts: int


class SourceVideo:
    """A video to be rewritten. Sides are upright and even; `expected_frames` is an estimate, 0 where unknown.

    Raises VideoError: not found, empty, unreadable, no picture, absurd size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise VideoError(f"The input video {path} was not found.", "Check the path.")
        if path.stat().st_size == 0:
            raise VideoError(f"{path.name} is empty (0 bytes).", "Record or copy it again.")
        try:
            with av.open(str(path)) as container:
                self._look(container)
        except av.FFmpegError as error:
            raise VideoError(f"{path.name} cannot be read as a video.", READABLE) from error

    def _look(self, container: Any) -> None:
        stream = _moving_picture(container)
        if stream is None:
            held = "sound but no picture" if container.streams.audio else "no video"
            raise VideoError(f"{self.path.name} holds {held}.", READABLE)
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise VideoError(f"{self.path.name} holds no frame that can be decoded.", READABLE)
        if min(first.width, first.height) < MIN_SIDE_PX or max(first.width, first.height) > MAX_SIDE_PX:
            raise VideoError(
                f"The frames measure {first.width} × {first.height} px; each side must lie between {MIN_SIDE_PX} and "
                f"{MAX_SIDE_PX}.",
                "Scale the video first.",
            )
        self.time_base: Fraction = stream.time_base
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.high_bit_depth = any(part.bits > 8 for part in first.format.components)
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        self.expected_frames = int(stream.frames or round(seconds * self.fps))
        self.height, self.width = _upright(first).shape[:2]
        aspect = stream.sample_aspect_ratio or Fraction(1)
        turned = round(first.rotation / 90) % 2 == 1
        self.pixel_aspect = (1 / aspect if turned else aspect) if aspect > 0 else Fraction(1)

    def frames(self, skip: int = 0) -> Iterator[tuple[UInt8, FrameTime]]:
        """RGB uint8 `(height, width, 3)`, upright, and times that rise strictly, from frame `skip` on.

        Times are the source's own; only where two frames have one time, or none, the later is moved a tick on. Damaged
        pieces are skipped. Raises VideoError when the size changes within the video.
        """
        last = None
        step = max(1, round(1 / (self.fps * self.time_base)))
        for index, frame in enumerate(self._decoded()):
            pts = frame.pts if frame.pts is not None else (0 if last is None else last + step)
            last = pts if last is None else max(pts, last + 1)
            if index < skip:
                continue
            rgb = _upright(frame)
            if rgb.shape[:2] != (self.height, self.width):
                raise VideoError(f"{self.path.name} changes its size at frame {index}.", "Cut it there.")
            yield rgb, FrameTime(last, int(frame.duration or 0))

    def _decoded(self) -> Iterator[Any]:
        damaged = 0
        with av.open(str(self.path)) as container:
            stream = _moving_picture(container)
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while damaged <= MAX_DAMAGED:
                try:
                    frames = next(packets).decode()
                except StopIteration:
                    return
                except av.FFmpegError:
                    damaged += 1
                    continue
                yield from frames


class PieceWriter:
    """Writes one piece: H.264 in MP4, its first frame an IDR frame at time 0, no B-frames, times of the source.

    Use `close` to finish; a piece that is not closed is no piece. crf: x264's quality, lower is better.
    """

    def __init__(self, path: Path, source: SourceVideo, crf: float, preset: str) -> None:
        self.path, self.frames, self.first_pts = path, 0, 0
        self._time_base = source.time_base
        scale = {"video_track_timescale": str(source.time_base.denominator)}
        self._container = av.open(str(path), "w", format="mp4", options=scale)
        stream: Any = self._container.add_stream("libx264", rate=Fraction(source.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
        context = stream.codec_context
        context.time_base = source.time_base
        context.sample_aspect_ratio = source.pixel_aspect
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED
        stream.options = {"preset": preset, "crf": str(crf), "x264-params": "bframes=0"}
        self._stream = stream
        self._durations: dict[int, int] = {}

    def write(self, rgb: UInt8, time: FrameTime) -> None:
        """Append a frame, RGB uint8 `(height, width, 3)`."""
        if not self.frames:
            self.first_pts = time.pts
        frame = yuv_frame(rgb)
        frame.pts, frame.time_base = time.pts - self.first_pts, self._time_base
        self._durations[frame.pts] = time.duration
        self._mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> TranscodedPart:
        """Finish the file and make it durable."""
        self._mux(self._stream.encode(None))
        self._container.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return TranscodedPart(self.path, self.first_pts)

    def abandon(self) -> None:
        """Stop writing and delete the file."""
        self._container.close()
        self.path.unlink(missing_ok=True)

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            duration = self._durations.pop(packet.pts, 0)
            if duration:  # of the last frame of a piece, nothing else tells it
                packet.duration = duration
            self._container.mux(packet)


def check_output(source: Path, output: Path) -> None:
    """Raises VideoError unless `output` can hold H.264 and every sound of `source`, and is another file."""
    if output.suffix.lower() not in CONTAINERS:
        raise VideoError(
            f"{output.name}: videos of the kind {output.suffix or '(no suffix)'} are not written.",
            f"Use one of {', '.join(CONTAINERS)}.",
        )
    if output.exists() and output.samefile(source):
        raise VideoError("Input and output are the same file.", "Give the output another name.")
    if output.is_dir():
        raise VideoError(f"{output} is a folder.", "Give the name of a file.")
    try:
        _try_header(source, CONTAINERS[output.suffix.lower()])
    except (ValueError, av.FFmpegError) as error:
        raise VideoError(
            f"{output.suffix} cannot hold the sound of {source.name} as it is.",
            "Write a .mkv, or change the sound's codec first.",
        ) from error


def _try_header(source: Path, kind: str) -> None:
    """Begin a file of this kind with the sounds of `source`, in memory."""
    with av.open(str(source)) as container, av.open(io.BytesIO(), "w", format=kind) as scratch:
        for stream in container.streams.audio:
            scratch.add_stream_from_template(stream)
        if container.streams.audio:
            scratch.start_encoding()


def part_signature(path: Path) -> bytes:
    """The codec parameters of a piece: pieces with different ones cannot be joined. Raises CorruptError."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return bytes(stream.codec_context.extradata or b"")
    except (av.FFmpegError, IndexError) as error:
        raise CorruptError(
            f"The piece {path.name} cannot be read.", "Delete the .part folder and begin again."
        ) from error


def join(pieces: list[TranscodedPart], source: SourceVideo, target: Path, kind: str) -> int:
    """Write the pieces' picture and the source's sound to `target`, copying packets. Returns the number of frames.

    kind: a container's name, see CONTAINERS. Raises CorruptError when a piece cannot be read.
    """
    with (
        av.open(str(source.path)) as original,
        av.open(str(pieces[0].path)) as first,
        av.open(str(target), "w", format=kind, options=_timescales(source.time_base, original, kind)) as output,
    ):
        picture = output.add_stream_from_template(first.streams.video[0])
        picture.time_base = source.time_base
        sounds = {stream.index: output.add_stream_from_template(stream) for stream in original.streams.audio}
        frames = 0
        for _, packet in heapq.merge(
            _picture_packets(pieces, source.time_base, picture),
            _sound_packets(original, sounds),
            key=lambda pair: pair[0],
        ):
            frames += packet.stream is picture
            output.mux(packet)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return frames


def _timescales(time_base: Fraction, original: Any, kind: str) -> dict[str, str]:
    """Options that keep a late start exact: MP4 tells it in ticks of the whole film, milliseconds if not asked."""
    if kind == "matroska":
        return {}
    parts = [time_base.denominator, *(stream.time_base.denominator for stream in original.streams.audio)]
    common = math.lcm(*parts)
    film = common if common < MAX_TIMESCALE else time_base.denominator
    return {
        "video_track_timescale": str(time_base.denominator),
        "movie_timescale": str(film),
        "movflags": "+faststart",
    }


def _picture_packets(pieces: list[TranscodedPart], time_base: Fraction, stream: Any) -> Iterator[tuple[float, Any]]:
    for piece in pieces:
        try:
            with av.open(str(piece.path)) as container:
                for packet in container.demux(container.streams.video[0]):
                    if packet.dts is None:
                        continue
                    ticks = packet.time_base / time_base
                    packet.pts = packet.dts = piece.first_pts + round(packet.pts * ticks)
                    packet.duration = round((packet.duration or 0) * ticks)
                    packet.time_base, packet.stream = time_base, stream
                    yield float(packet.dts * time_base), packet
        except av.FFmpegError as error:
            raise CorruptError(
                f"The piece {piece.path.name} cannot be read.", "Delete the .part folder and begin again."
            ) from error


def _sound_packets(container: Any, streams: dict[int, Any]) -> Iterator[tuple[float, Any]]:
    if not streams:
        return
    for packet in container.demux(*(stream for stream in container.streams.audio)):
        if packet.dts is None:
            continue
        time_s = float(packet.dts * packet.time_base)
        packet.stream = streams[packet.stream.index]
        yield time_s, packet


def _moving_picture(container: Any) -> Any:
    """The first video stream that is not a cover picture of a sound file, or None."""
    moving = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(moving, None)


def _upright(frame: Any) -> UInt8:
    """RGB turned as the file says, without the last row or column of an odd side: H.264's colour is halved."""
    rgb = np.rot90(rgb_array(frame), round(frame.rotation / 90) % 4)  # counter-clockwise, both
    height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
    return np.ascontiguousarray(rgb[:height, :width])
