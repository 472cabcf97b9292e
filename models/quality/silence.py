"""Where nothing is said, and how much the mouth moves there. Silence is read from the sound itself, not from a plan."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from models.quality.flicker import FLOOR
from models.types import Float32

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

WINDOW_S = 0.08  # of sound around a frame's middle
FLOOR_DB = -80.0  # digital silence
QUIET_DB = -55.0  # below full scale; nothing is said where no frame exceeds it
BELOW_SPEECH_DB = 30.0  # under the loud frames of the clip: breath and room, but no speech
LOUD_PERCENTILE = 90.0
AFTER_S, BEFORE_S = 0.24, 0.2  # a mouth may take so long to close after speech, and to open before it
FEWEST_FRAMES = 5  # of silence, for a number to mean anything


def levels_db(samples: Float32, sample_rate_hz: int, fps: float, frames: int) -> Float64:
    """Loudness of each of `frames` frames in dB below full scale, from mono samples that start with frame 0."""
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    middle = (np.arange(frames) + 0.5) / fps
    begin = np.clip(((middle - WINDOW_S / 2) * sample_rate_hz).astype(int), 0, len(samples))
    end = np.clip(((middle + WINDOW_S / 2) * sample_rate_hz).astype(int), 0, len(samples))
    power = (energy[end] - energy[begin]) / np.maximum(end - begin, 1)
    return cast(Float64, np.maximum(10 * np.log10(np.maximum(power, 1e-12)), FLOOR_DB))


def quiet_frames(levels: Float64) -> Bool:
    """Frames without speech, from their levels in dB `(n,)`."""
    loud = float(np.percentile(levels, LOUD_PERCENTILE)) if len(levels) else FLOOR_DB
    return levels < max(QUIET_DB, loud - BELOW_SPEECH_DB)


def rest_frames(quiet: Bool, fps: float) -> Bool:
    """Of quiet frames `(n,)` those at which a mouth should rest: not just after speech, nor just before it."""
    rest = quiet.copy()
    after, before = round(AFTER_S * fps), round(BEFORE_S * fps)
    for k in np.flatnonzero(~quiet):
        rest[max(0, k - before) : k + after + 1] = False
    return rest


def motion_at_rest(first: Float64, rest: Bool) -> Float64:
    """The differences `(n - 1,)` between neighbouring frames that are both at rest."""
    return first[rest[1:] & rest[:-1]]


def rest_ratio(made: Float64, source: Float64) -> float | None:
    """Motion of the made mouth over the source's own, both at rest; None where too little is silent."""
    if len(made) < FEWEST_FRAMES:
        return None
    return float((made.mean() + FLOOR) / (source.mean() + FLOOR))
