"""Videos for the tests of transcoding: uneven timestamps, a late start, audio with priming, rotated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from models.media.frames import yuv_frame

TICK = Fraction(1, 12800)


def uneven(n: int, start: int = 653) -> list[int]:
    """Timestamps in ticks of 1 / 12800 s: 25 frames per second on average, durations vary by a third."""
    return (start + np.cumsum(np.random.default_rng(3).integers(350, 680, n))).tolist()


def write_video(
    path: Path, frames: Sequence[np.ndarray], times: Sequence[int], sounds: Sequence[str] = ("aac",), time_base=TICK
) -> Path:
    """Write H.264 with B-frames, and a second of noise in each codec of `sounds`."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "8", "preset": "veryfast", "bf": "2"}
        stream.codec_context.time_base = time_base
        tracks = [container.add_stream(codec, rate=24000, layout="mono") for codec in sounds]
        for rgb, pts in zip(frames, times, strict=True):
            frame = yuv_frame(rgb)
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for track in tracks:
            samples = rng.uniform(-0.2, 0.2, (1, 24 * 1024)).astype(np.float32)
            kind = track.codec_context.format.name
            if kind.startswith("s16"):
                samples = (samples * 32767).astype(np.int16)
            for begin in range(0, samples.shape[1], 1024):
                audio = av.AudioFrame.from_ndarray(samples[:, begin : begin + 1024], format=kind, layout="mono")
                audio.sample_rate, audio.pts = 24000, begin
                container.mux(track.encode(audio))
            container.mux(track.encode(None))
    return path


def picture_of(path: Path) -> tuple[list[Fraction], list[np.ndarray]]:
    """Return timestamps in seconds and RGB pictures of all frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pairs = [(frame.pts * stream.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    return [time for time, _ in pairs], [rgb for _, rgb in pairs]


def sound_of(path: Path, track: int = 0) -> list[tuple[Fraction, bytes]]:
    """Return timestamps in seconds and bytes of all packets of an audio track."""
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio[track])
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets if packet.dts is not None]
