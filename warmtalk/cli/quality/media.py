"""Reads a video file as upright frames and mono sound on one timeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from models.errors import VideoError
from models.media.untrusted import open_video, upright, video_stream
from models.types import Float32, UInt8

READABLE = "Use a video (MP4, MOV, WebM, MKV …)."
SOUND_HZ = 16_000
MIN_FRAMES = 16  # too few frames say nothing about motion


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """The analysed part of a video, without its pictures.

    times: of the frames in seconds, from the first. lasting: frame intervals that each frame is shown, int64 `(n,)`.
    samples: mono at 16 kHz, sample 0 starts with frame 0; empty without sound. whole_s: length of the file. keys:
    indices of the keyframes.
    """

    path: Path
    width: int
    height: int
    fps: float
    times: npt.NDArray[np.float64]
    lasting: npt.NDArray[np.int64]
    samples: Float32
    whole_s: float
    keys: tuple[int, ...] = (0,)

    @property
    def frames(self) -> int:
        return len(self.times)


def open_media(path: Path, seconds: float) -> Media:
    """Open the first `seconds` of a video. Raises VideoError: not found, unreadable, no picture, too short."""
    if not path.is_file():
        raise VideoError(f"The video {path} was not found.", "Check the path.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name} is empty (0 bytes).", "Create or copy it again.")
    try:
        with open_video(path) as container:
            stream = _picture(container, path)
            fps = float(stream.average_rate or stream.guessed_rate or 25)
            packets = sorted((p for p in container.demux(stream) if p.pts is not None and p.size), key=lambda p: p.pts)
            times = np.array([float(p.pts * p.time_base) for p in packets])
            keys = np.flatnonzero([p.is_keyframe for p in packets])
            width, height = _upright_size(path)
        if len(times) < MIN_FRAMES:
            raise VideoError(f"{path.name} has {len(times)} frames.", f"Use a video of at least {MIN_FRAMES} frames.")
        whole_s = float(times[-1] - times[0] + 1 / fps)
        shown = times[times < times[0] + seconds]
        samples = _sound(path, float(shown[0]), min(seconds, whole_s))
    except av.FFmpegError as error:
        raise VideoError(f"{path.name} cannot be read as a video.", READABLE) from error
    gaps = np.diff(shown, append=shown[-1] + 1 / fps)
    lasting = np.maximum(1, np.rint(gaps * fps)).astype(np.int64)
    inside = tuple(keys[keys < len(shown)].tolist())
    return Media(path, width, height, fps, shown - shown[0], lasting, samples, whole_s, inside)


def frames_of(media: Media) -> Iterator[UInt8]:
    """The frames, RGB uint8 `(h, w, 3)`. Raises VideoError if the file has fewer frames than it announces."""
    count = 0
    with open_video(media.path) as container:
        stream = _picture(container, media.path)
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if count == media.frames:
                return
            rgb = upright(frame)
            if rgb.shape[:2] != (media.height, media.width):
                raise VideoError(f"The frame size of {media.path.name} changes at frame {count}.", "Cut it there.")
            yield rgb
            count += 1
    if count < media.frames:
        raise VideoError(f"Only {count} of {media.frames} frames of {media.path.name} can be decoded.", READABLE)


def _picture(container: Any, path: Path) -> Any:
    """The first video stream that is not a cover picture. Raises VideoError."""
    stream = video_stream(container)
    if stream is None:
        found = "sound but no picture" if container.streams.audio else "no video"
        raise VideoError(f"{path.name} contains {found}.", READABLE)
    return stream


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height of the first frame, after rotation. Raises VideoError."""
    with open_video(path) as container:
        frame = next(iter(container.decode(_picture(container, path))), None)
        if frame is None:
            raise VideoError(f"{path.name} contains no frame that can be decoded.", READABLE)
        height, width = upright(frame).shape[:2]
        return width, height


def _sound(path: Path, start_s: float, seconds: float) -> Float32:
    """Mono at 16 kHz from `start_s` of the file's time; silence where the sound starts later."""
    parts: list[Float32] = []
    count, wanted = 0, round(seconds * SOUND_HZ)
    with open_video(path) as container:
        if not container.streams.audio:
            return np.zeros(0, np.float32)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SOUND_HZ)
        lead: int | None = None
        for frame in container.decode(container.streams.audio[0]):
            if lead is None:
                lead = min(wanted, round((float(frame.time or 0.0) - start_s) * SOUND_HZ))
                parts.append(np.zeros(max(0, lead), np.float32))
                count = max(0, lead)
            for out in resampler.resample(frame):
                parts.append(out.to_ndarray()[0])
                count += out.samples
            if count > wanted - min(0, lead):
                break
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return samples[max(0, -(lead or 0)) :][:wanted].astype(np.float32)
