"""Finds silence in the sound, and measures how much the mouth moves there."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from models.quality.flicker import FLOOR
from models.types import Float32

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

WINDOW_S = 0.08  # of sound around the middle of a frame
FLOOR_DB = -80.0  # digital silence
QUIET_DB = -55.0  # relative to full scale: below it there is never speech
BELOW_SPEECH_DB = 30.0  # relative to the clip's loud frames: further below there are breath and room noise only
LOUD_PERCENTILE = 90.0  # of the levels: the loud frames
AFTER_S, BEFORE_S = 0.24, 0.2  # time for the mouth to close after speech, and to open before it
MIN_FRAMES = 5  # of silence, for a measurement


def levels_db(samples: Float32, sample_rate_hz: int, fps: float, frames: int) -> Float64:
    """Return the loudness of each of `frames` frames in dB relative to full scale; samples start with frame 0."""
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    middle = (np.arange(frames) + 0.5) / fps
    begin = np.clip(((middle - WINDOW_S / 2) * sample_rate_hz).astype(int), 0, len(samples))
    end = np.clip(((middle + WINDOW_S / 2) * sample_rate_hz).astype(int), 0, len(samples))
    power = (energy[end] - energy[begin]) / np.maximum(end - begin, 1)
    return cast(Float64, np.maximum(10 * np.log10(np.maximum(power, 1e-12)), FLOOR_DB))


def quiet_frames(levels: Float64) -> Bool:
    """Return which frames have no speech, from their levels in dB `(n,)`."""
    loud = float(np.percentile(levels, LOUD_PERCENTILE)) if len(levels) else FLOOR_DB
    return levels < max(QUIET_DB, loud - BELOW_SPEECH_DB)


def rest_frames(quiet: Bool, fps: float) -> Bool:
    """Return which of the quiet frames `(n,)` should show a mouth at rest: not just after or before speech."""
    rest = quiet.copy()
    after, before = round(AFTER_S * fps), round(BEFORE_S * fps)
    for k in np.flatnonzero(~quiet):
        rest[max(0, k - before) : k + after + 1] = False
    return rest


def motion_at_rest(first: Float64, rest: Bool) -> Float64:
    """Select from differences `(n - 1,)` those between two neighbouring frames at rest."""
    return first[rest[1:] & rest[:-1]]


def rest_ratio(made: Float64, source: Float64) -> float | None:
    """Return the motion of the generated mouth over the source's, both at rest; None with too little silence."""
    if len(made) < MIN_FRAMES:
        return None
    return float((made.mean() + FLOOR) / (source.mean() + FLOOR))
