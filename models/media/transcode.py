"""Replaces the picture of a video and keeps its frame times and its audio packets.

The new picture is written in parts, each a complete file, so that a crash loses at most one part. At the end the parts
and the audio of the source are joined without re-encoding.
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

from models.errors import CorruptError, VideoError
from models.media.frames import BT709, LIMITED, yuv_frame
from models.media.untrusted import open_video, upright, video_stream
from models.types import UInt8

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
MAX_TIMESCALE = 2**31 - 1  # limit of MP4
MAX_DAMAGED = 1000  # undecodable packets after which reading stops
READABLE = "Use a video (MP4, MOV, WebM, MKV …)."


@dataclass(frozen=True, slots=True)
class FrameTime:
    """Presentation time and duration of a frame, in ticks of `SourceVideo.time_base`; duration 0 means unknown."""

    pts: int
    duration: int


@dataclass(frozen=True, slots=True)
class TranscodedPart:
    """A complete file with a part of the new picture. first_pts: time of its first frame, in ticks of the source."""

    path: Path
    first_pts: int


class SourceVideo:
    """A video to be transcoded. width and height are even, after rotation. `expected_frames` is an estimate, or 0.

    Raises: VideoError if the file is missing, empty or unreadable, has no picture, or an unsupported size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise VideoError(f"The input video {path} was not found.", "Check the path.")
        if path.stat().st_size == 0:
            raise VideoError(f"{path.name} is empty (0 bytes).", "Record or copy it again.")
        try:
            with open_video(path) as container:
                self._read_properties(container)
        except av.FFmpegError as error:
            raise VideoError(f"{path.name} cannot be read as a video.", READABLE) from error

    def _read_properties(self, container: Any) -> None:
        stream = video_stream(container)
        if stream is None:
            found = "audio but no video" if container.streams.audio else "no video"
            raise VideoError(f"{self.path.name} contains {found}.", READABLE)
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise VideoError(f"{self.path.name} contains no frame that can be decoded.", READABLE)
        self.time_base: Fraction = stream.time_base
        self.fps = float(stream.average_rate or stream.guessed_rate or 25)
        self.high_bit_depth = any(part.bits > 8 for part in first.format.components)
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        self.expected_frames = int(stream.frames or round(seconds * self.fps))
        self.height, self.width = upright(first).shape[:2]
        aspect = stream.sample_aspect_ratio or Fraction(1)
        turned = round(first.rotation / 90) % 2 == 1
        self.pixel_aspect = (1 / aspect if turned else aspect) if aspect > 0 else Fraction(1)

    def frames(self, skip: int = 0) -> Iterator[tuple[UInt8, FrameTime]]:
        """RGB uint8 `(height, width, 3)`, rotated upright, with strictly increasing times, from frame `skip` on.

        Times are those of the source. Where a time is missing or not later than the previous one, it is set one frame
        or one tick later. Damaged packets are skipped. Raises VideoError if the frame size changes.
        """
        last = None
        step = max(1, round(1 / (self.fps * self.time_base)))
        for index, frame in enumerate(self._decoded()):
            pts = frame.pts if frame.pts is not None else (0 if last is None else last + step)
            last = pts if last is None else max(pts, last + 1)
            if index < skip:
                continue
            rgb = upright(frame)
            if rgb.shape[:2] != (self.height, self.width):
                raise VideoError(
                    f"The frame size of {self.path.name} changes at frame {index}.", "Split the video there."
                )
            yield rgb, FrameTime(last, int(frame.duration or 0))

    def _decoded(self) -> Iterator[Any]:
        damaged = 0
        with open_video(self.path) as container:
            stream = video_stream(container)
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


class PartWriter:
    """Writes one part: H.264 in MP4, starting with an IDR frame at time 0, no B-frames, frame times of the source.

    Call `close` to finish it; without `close` the file is not valid. crf: x264's quality, lower is better.
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
        """Append an RGB frame, uint8 `(height, width, 3)`."""
        if not self.frames:
            self.first_pts = time.pts
        frame = yuv_frame(rgb)
        frame.pts, frame.time_base = time.pts - self.first_pts, self._time_base
        self._durations[frame.pts] = time.duration
        self._mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> TranscodedPart:
        """Finish the file and sync it to the disk."""
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
            if duration:  # the muxer cannot derive the duration of the last frame
                packet.duration = duration
            self._container.mux(packet)


def check_output(source: Path, output: Path) -> None:
    """Raises VideoError if `output` is the same file as `source`, or cannot hold H.264 and the source's audio."""
    if output.suffix.lower() not in CONTAINERS:
        raise VideoError(
            f"{output.name}: videos of type {output.suffix or '(no suffix)'} cannot be written.",
            f"Use one of {', '.join(CONTAINERS)}.",
        )
    if output.exists() and output.samefile(source):
        raise VideoError("Input and output are the same file.", "Pass another output name.")
    if output.is_dir():
        raise VideoError(f"The output {output} is a folder.", "Pass the name of a file.")
    try:
        _try_header(source, CONTAINERS[output.suffix.lower()])
    except (ValueError, av.FFmpegError) as error:
        raise VideoError(
            f"A {output.suffix} file cannot hold the audio of {source.name}.",
            "Write a .mkv file, or convert the audio first.",
        ) from error


def _try_header(source: Path, kind: str) -> None:
    """Start a file of this container type with the audio streams of `source`, in memory."""
    with open_video(source) as container, av.open(io.BytesIO(), "w", format=kind) as scratch:
        for stream in container.streams.audio:
            scratch.add_stream_from_template(stream)
        if container.streams.audio:
            scratch.start_encoding()


def part_signature(path: Path) -> bytes:
    """The codec parameters of a part. Parts with different ones cannot be joined. Raises CorruptError."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return bytes(stream.codec_context.extradata or b"")
    except (av.FFmpegError, IndexError) as error:
        raise _unreadable_part(path) from error


def _unreadable_part(path: Path) -> CorruptError:
    return CorruptError(f"The part {path.name} cannot be read.", "Delete the .part folder and start again.")


def join(parts: list[TranscodedPart], source: SourceVideo, target: Path, kind: str) -> int:
    """Write the picture of the parts and the audio of the source to `target`, by copying packets.

    kind: a container format, see CONTAINERS. Returns the number of frames. Raises CorruptError for an unreadable part.
    """
    with (
        open_video(source.path) as original,
        av.open(str(parts[0].path)) as first,
        av.open(str(target), "w", format=kind, options=_timescales(source.time_base, original, kind)) as output,
    ):
        picture = output.add_stream_from_template(first.streams.video[0])
        picture.time_base = source.time_base
        sounds = {stream.index: output.add_stream_from_template(stream) for stream in original.streams.audio}
        frames = 0
        for _, packet in heapq.merge(
            _video_packets(parts, source.time_base, picture),
            _audio_packets(original, sounds),
            key=lambda pair: pair[0],
        ):
            frames += packet.stream is picture
            output.mux(packet)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return frames


def _timescales(time_base: Fraction, original: Any, kind: str) -> dict[str, str]:
    """Muxer options that keep a late start exact: MP4 stores it in ticks of the movie timescale, by default 1 ms."""
    if kind == "matroska":
        return {}
    denominators = [time_base.denominator, *(stream.time_base.denominator for stream in original.streams.audio)]
    common = math.lcm(*denominators)
    movie = common if common < MAX_TIMESCALE else time_base.denominator
    return {
        "video_track_timescale": str(time_base.denominator),
        "movie_timescale": str(movie),
        "movflags": "+faststart",
    }


def _video_packets(parts: list[TranscodedPart], time_base: Fraction, stream: Any) -> Iterator[tuple[float, Any]]:
    for part in parts:
        try:
            with av.open(str(part.path)) as container:
                for packet in container.demux(container.streams.video[0]):
                    if packet.dts is None:
                        continue
                    ticks = packet.time_base / time_base
                    packet.pts = packet.dts = part.first_pts + round(packet.pts * ticks)
                    packet.duration = round((packet.duration or 0) * ticks)
                    packet.time_base, packet.stream = time_base, stream
                    yield float(packet.dts * time_base), packet
        except av.FFmpegError as error:
            raise _unreadable_part(part.path) from error


def _audio_packets(container: Any, streams: dict[int, Any]) -> Iterator[tuple[float, Any]]:
    if not streams:
        return
    for packet in container.demux(*(stream for stream in container.streams.audio)):
        if packet.dts is None:
            continue
        time_s = float(packet.dts * packet.time_base)
        packet.stream = streams[packet.stream.index]
        yield time_s, packet
