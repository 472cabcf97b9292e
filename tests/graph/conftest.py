"""A real local Ray with the embedded default, once a module."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from launch import LocalGraph

EMBEDDED = Path(__file__).parents[2] / "models" / "embedded"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGraph]:
    with LocalGraph("demo", port=free_port(), home=tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def client(graph: LocalGraph) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=graph.url, timeout=120) as client:
        yield client


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


def clip(frames: int) -> bytes:
    """The first frames of the presenter's idle video, as a file of their own."""
    source = EMBEDDED / "presenter" / "presenter.mp4"
    buffer = io.BytesIO()
    with av.open(str(source)) as given, av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, width=512, height=512, pix_fmt="yuv420p")
        for _, frame in zip(range(frames), given.decode(video=0), strict=False):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
