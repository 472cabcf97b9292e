"""A small avatar whose every frame can be told apart, and fragments of it, for the tests of live streams."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np

from models.media.encode import MediaSpec, UtteranceEncoder
from models.types import Fragment

SIDE = 64
SPEC = MediaSpec(SIDE, SIDE, 25, fragment_frames=8, first_fragment_frames=4, crf=8)
RATE = SPEC.sample_rate_hz


def grey(level: int) -> Any:
    return np.full((SIDE, SIDE, 3), level, np.uint8)


def levels(count: int) -> Any:
    """Frames `(count, h, w, 3)` of one grey each: 20, 24, 28 …"""
    return np.stack([grey(20 + 4 * (k % 58)) for k in range(count)])


def fragments(images: Any, samples: Any = None, spec: MediaSpec = SPEC, encoder: Any = None) -> list[Fragment]:
    """The images as a whole utterance, with silence where no sound is given."""
    encoder = encoder or UtteranceEncoder(spec)
    samples = np.zeros(len(images) * RATE // spec.fps, np.float32) if samples is None else samples
    made: list[Fragment] = encoder.push(images, samples, last=True)
    return made


def shown(data: bytes) -> tuple[list[float], list[int]]:
    """Times in s, and the grey of each frame."""
    times, greys = [], []
    with av.open(io.BytesIO(data)) as file:
        for frame in file.decode(video=0):
            times.append(float(frame.time))
            greys.append(round(float(frame.to_ndarray(format="rgb24").mean())))
    return times, greys


def heard(data: bytes) -> tuple[list[float], Any]:
    """Times in s of the sound's frames, and its samples."""
    times, samples = [], []
    with av.open(io.BytesIO(data)) as file:
        for frame in file.decode(audio=0):
            times.append(float(frame.time))
            samples.append(frame.to_ndarray()[0])
    return times, np.concatenate(samples)
