"""Compares the lips in clips of generated mouths with those in the reference clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.quality.closures import closed_below, controls, within_one_frame
from models.quality.lips import MAX_LAG_FRAMES, LipMeasures, LipReader, pearson

__all__ = ["ClipReading", "LipMeasures", "LipReader", "closures", "follow", "vowel_order"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ClipReading:
    """The lips of one clip. closures: frames inside p, b, m. silent: bool `(n,)`. vowels: vowel → frames."""

    truth: LipMeasures
    made: LipMeasures
    closures: tuple[int, ...]
    silent: npt.NDArray[np.bool_]
    vowels: dict[str, list[int]] = field(default_factory=dict)


def follow(clips: Sequence[ClipReading]) -> dict[str, float]:
    """Pearson's r of the mouth opening over all clips and in the worst one, its amplitude and its delay."""
    truth, made = (np.concatenate([getattr(clip, name).gap for clip in clips]) for name in ("truth", "made"))
    lags = {lag: _lagged(clips, lag) for lag in range(-3, 4)}
    return {
        "r": pearson(truth, made),
        "r_worst_clip": min(pearson(clip.truth.gap, clip.made.gap) for clip in clips),
        "amplitude": float(made.std() / truth.std()),
        "best_lag_frames": float(max(lags, key=lambda lag: lags[lag])),
        "clips": len(clips),
        "frames": len(truth),
    }


def _lagged(clips: Sequence[ClipReading], lag: int) -> float:
    """r with the generated mouth delayed by `lag` frames."""
    inner = [slice(MAX_LAG_FRAMES, len(clip.truth.gap) - MAX_LAG_FRAMES) for clip in clips]
    truth = np.concatenate([clip.truth.gap[part] for clip, part in zip(clips, inner, strict=True)])
    made = np.concatenate([np.roll(clip.made.gap, -lag)[part] for clip, part in zip(clips, inner, strict=True)])
    return pearson(truth, made)


def closures(clips: Sequence[ClipReading]) -> dict[str, float]:
    """Shares of closed mouths: at p, b, m; in other speech frames, as a control; in silence.

    Closed: the gap is below the rest gap plus 12 % of the range (rest: median of the reference in silence; range: up
    to its 98th percentile). `closed_at_pbm` takes the smallest gap of three frames, since a closure may be one frame
    beside its sound. `closed_at_pbm_exactly` and `closed_elsewhere` take single frames, `closed_elsewhere_of_three`
    again the smallest of three. The same figures of the reference are named `truth_...`.
    """
    truth, silent = (np.concatenate(parts) for parts in zip(*((c.truth.gap, c.silent) for c in clips), strict=True))
    below = closed_below(truth, silent)
    made = _closed_shares(clips, [clip.made.gap for clip in clips], below)
    own = _closed_shares(clips, [clip.truth.gap for clip in clips], below)
    return {**made, **{f"truth_{name}": share for name, share in own.items()}}


def _closed_shares(clips: Sequence[ClipReading], gaps: Sequence[Float64], below: float) -> dict[str, float]:
    shares: dict[str, list[bool]] = {
        name: []
        for name in (
            "closed_at_pbm",
            "closed_at_pbm_exactly",
            "closed_elsewhere",
            "closed_elsewhere_of_three",
            "closed_in_silence",
        )
    }
    for clip, gap in zip(clips, gaps, strict=True):
        closed = gap < below
        near = within_one_frame(closed)
        pbm, others = list(clip.closures), controls(len(gap), clip.closures, clip.silent)
        shares["closed_at_pbm"] += near[pbm].tolist()
        shares["closed_at_pbm_exactly"] += closed[pbm].tolist()
        shares["closed_elsewhere"] += closed[others].tolist()
        shares["closed_elsewhere_of_three"] += near[others].tolist()
        shares["closed_in_silence"] += closed[clip.silent].tolist()
    return {name: float(np.mean(values)) for name, values in shares.items()}


def vowel_order(clips: Sequence[ClipReading]) -> dict[str, float]:
    """How often two different vowels are in the order of mouth width of the reference, and the number of pairs."""
    events = [
        (vowel, clip.truth.width[k], clip.made.width[k])
        for clip in clips
        for vowel, frames in clip.vowels.items()
        for k in frames
    ]
    in_order = [
        (truth_a - truth_b) * (made_a - made_b) > 0
        for index, (a, truth_a, made_a) in enumerate(events)
        for b, truth_b, made_b in events[:index]
        if a != b
    ]
    return {"vowels_told_apart": float(np.mean(in_order)), "vowel_pairs": len(in_order), "vowels": len(events)}
