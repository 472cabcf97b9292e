"""Small utterances in session files."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import av
import numpy as np

from models.media.encode import Clock, MediaSpec, UtteranceEncoder
from models.stitch.session import SessionFile
from models.types import Fragment

START = Clock()
SPEC = MediaSpec(32, 32, 25, fragment_frames=4, first_fragment_frames=4, audio_bit_rate=24_000)


@cache
def utterance(start: Clock = START, frames: int = 10, spec: MediaSpec = SPEC) -> tuple[Fragment, ...]:
    """Fragments of 4, 4, 2 … frames from `start` on. The picture moves, so all fragments differ."""
    ramp = np.linspace(20, 230, spec.width).astype(np.uint8)
    pictures = np.stack(
        [np.broadcast_to(np.roll(ramp, k)[:, None], (spec.height, spec.width, 3)) for k in range(frames)]
    )
    samples = 0.1 * np.sin(np.arange(frames * 960) / 9).astype(np.float32)
    return tuple(UtteranceEncoder(spec, start).push(pictures, samples, last=True))


def speak(session: SessionFile, text: str = "Hello.", frames: int = 10) -> None:
    """Add a complete utterance to a session."""
    session.start_utterance(text)
    for fragment in utterance(session.clock, frames, session.spec):
        session.append(fragment)
    session.end_utterance()


def playable_frames(data: bytes) -> int:
    """The number of frames that decode without an error. Asserts that the sound is not silent."""
    with av.open(io.BytesIO(data)) as file:
        file.streams.video[0].codec_context.options = {"err_detect": "explode"}
        frames = sum(1 for _ in file.decode(video=0))
    with av.open(io.BytesIO(data)) as file:
        assert any(np.abs(f.to_ndarray()).max() > 0.05 for f in file.decode(audio=0)) or frames == 0
    return frames


def session_bytes(folder: Path) -> dict[str, bytes]:
    """The content of each file of a session, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
