"""Media that graph tests send, and how they decode what comes back."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from typing import Any

import av
import httpx
import numpy as np

from models.speech.audio import AudioEncoder
from tests.support.paths import ROOT

EMBEDDED = ROOT / "models" / "embedded"
RATE_HZ = 24_000
TONE_HZ = 180


@dataclass
class Video:
    """A decoded MP4: RGB frames `(n, h, w, 3)`, times in s, mono sound."""

    frames: Any
    times: Any
    sound: Any
    rate: int
    codecs: tuple[str, str]

    @property
    def duration_s(self) -> float:
        return len(self.frames) / 25


def decode(data: bytes) -> Video:
    with av.open(io.BytesIO(data)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        frames, times, sound = [], [], []
        for frame in container.decode(video, audio):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time)
            else:
                sound.append(frame.to_ndarray().mean(0))
        codecs = (video.codec_context.name, audio.codec_context.name)
        return Video(np.stack(frames), np.array(times), np.concatenate(sound), audio.rate, codecs)


def video_of(client: httpx.Client, session_id: str) -> Video:
    return decode(client.get(f"/sessions/{session_id}/video.mp4").raise_for_status().content)


def assert_without_gaps(video: Video, fps: int = 25) -> None:
    np.testing.assert_allclose(np.diff(video.times), 1 / fps, atol=1e-3)


def clip(frames: int) -> bytes:
    """The first frames of the presenter's idle video as an MP4 file."""
    source = EMBEDDED / "presenter" / "presenter.mp4"
    buffer = io.BytesIO()
    with av.open(str(source)) as given, av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, width=512, height=512, pix_fmt="yuv420p")
        for _, frame in zip(range(frames), given.decode(video=0), strict=False):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _tone(seconds: float, rate_hz: int) -> Any:
    return 0.3 * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate_hz)) / rate_hz)


def tone(seconds: float, sound_format: str) -> bytes:
    """A sound file of a 180 Hz tone at 24 kHz, in a format of AudioEncoder."""
    encoder = AudioEncoder(sound_format, RATE_HZ)
    return encoder.push(_tone(seconds, RATE_HZ).astype(np.float32)) + encoder.finish()


def wav(seconds: float, rate_hz: int = 44_100) -> bytes:
    """A mono 16-bit WAV of a 180 Hz tone."""
    return _wav((_tone(seconds, rate_hz) * 32767).astype("<i2").tobytes(), rate_hz, width=2)


def silence(seconds: int) -> bytes:
    """A mono 8-bit WAV of silence at 8 kHz."""
    return _wav(b"\x80" * 8000 * seconds, 8000, width=1)


def _wav(samples: bytes, rate_hz: int, width: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, width, rate_hz, 0, "NONE", ""))
        out.writeframes(samples)
    return file.getvalue()
