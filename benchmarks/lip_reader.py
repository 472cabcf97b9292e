"""Reads mouths from pictures with FaceMesh, and compares what was spoken with what is seen. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.avatar.detect import BlazeMesh, Face
from models.types import UInt8

Float64 = npt.NDArray[np.float64]

INNER_LIPS = ((13, 14), (82, 87), (312, 317))  # FaceMesh points above and below each other, middle and either side
CORNERS = (61, 291)
OUTER_EYES = (33, 263)  # their distance is the unit: it does not depend on the jaw
CLOSED_SHARE = 0.12  # of the way from the rest gap to a wide-open mouth
EDGE_FRAMES = 4  # left out at either end of a clip when lags are compared


@dataclass(frozen=True, slots=True, eq=False)
class Mouth:
    """What FaceMesh sees of a clip: inner-lip gap and mouth width of each frame, `(n,)`, over the eyes' distance."""

    gap: Float64
    width: Float64


@dataclass(frozen=True, slots=True, eq=False)
class ClipReading:
    """One clip, spoken and seen. closures: frames inside p, b, m. silent: bool `(n,)`. vowels: vowel → frames."""

    truth: Mouth
    made: Mouth
    closures: tuple[int, ...]
    silent: npt.NDArray[np.bool_]
    vowels: dict[str, list[int]] = field(default_factory=dict)


class LipReader:
    """FaceMesh on frames of one avatar. The crop that it reads from is that of the avatar's own frame, for truth and
    result alike, so that both are read at the same place."""

    def __init__(self) -> None:
        self._mesh = BlazeMesh()
        self._places: dict[int, Face] = {}

    def place(self, index: int, source: UInt8) -> Face:
        """The face in the avatar's frame `index`."""
        if index not in self._places:
            self._places[index] = self._mesh.detect(source)[0]
        return self._places[index]

    def read(self, frames: UInt8, places: Sequence[Face]) -> Mouth:
        """Frames `(n, h, w, 3)` and where their faces are."""
        gaps, widths = [], []
        for frame, place in zip(frames, places, strict=True):
            mesh = self._mesh.detect(frame, near=place)[0].mesh
            eyes = _distance(mesh, OUTER_EYES)
            gaps.append(np.mean([_distance(mesh, pair) for pair in INNER_LIPS]) / eyes)
            widths.append(_distance(mesh, CORNERS) / eyes)
        return Mouth(np.array(gaps, np.float64), np.array(widths, np.float64))


def _distance(mesh: npt.NDArray[Any], pair: tuple[int, int]) -> float:
    return float(np.linalg.norm(mesh[pair[0]] - mesh[pair[1]]))


def pearson(a: Float64, b: Float64) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def follow(clips: Sequence[ClipReading]) -> dict[str, float]:
    """How the lips follow: Pearson's r of the opening over all clips and in the worst, and the size of the movement."""
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
    """r with the made mouth `lag` frames late."""
    inner = [slice(EDGE_FRAMES, len(clip.truth.gap) - EDGE_FRAMES) for clip in clips]
    truth = np.concatenate([clip.truth.gap[part] for clip, part in zip(clips, inner, strict=True)])
    made = np.concatenate([np.roll(clip.made.gap, -lag)[part] for clip, part in zip(clips, inner, strict=True)])
    return pearson(truth, made)


def closures(clips: Sequence[ClipReading]) -> dict[str, float]:
    """Shares of closed mouths: at p, b, m; at other speech frames, as a control; in silence.

    Closed: the gap is below the rest gap plus 12 % of the range (rest: median of the truth in silence; range: up to its
    98th percentile). `closed_at_pbm` takes the least gap of three frames, since a closure may fall a frame beside its
    sound; `closed_at_pbm_exactly` and `closed_elsewhere` each frame by itself; `closed_elsewhere_of_three` the least of
    three again. The same of the truth stands under `truth_...`.
    """
    truth = np.concatenate([clip.truth.gap for clip in clips])
    rest = float(np.median(np.concatenate([clip.truth.gap[clip.silent] for clip in clips])))
    closed_below = rest + CLOSED_SHARE * (float(np.percentile(truth, 98)) - rest)
    made = _closed_shares(clips, [clip.made.gap for clip in clips], closed_below)
    own = _closed_shares(clips, [clip.truth.gap for clip in clips], closed_below)
    return {**made, **{f"truth_{name}": share for name, share in own.items()}}


def _closed_shares(clips: Sequence[ClipReading], gaps: Sequence[Float64], closed_below: float) -> dict[str, float]:
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
        closed = gap < closed_below
        of_three = closed | np.r_[closed[1:], False] | np.r_[False, closed[:-1]]
        pbm = list(clip.closures)
        near = {k + d for k in pbm for d in (-2, -1, 0, 1, 2)}
        others = [k for k in range(2, len(gap) - 2) if not clip.silent[k] and k not in near]
        shares["closed_at_pbm"] += of_three[pbm].tolist()
        shares["closed_at_pbm_exactly"] += closed[pbm].tolist()
        shares["closed_elsewhere"] += closed[others].tolist()
        shares["closed_elsewhere_of_three"] += of_three[others].tolist()
        shares["closed_in_silence"] += closed[clip.silent].tolist()
    return {name: float(np.mean(values)) for name, values in shares.items()}


def vowel_order(clips: Sequence[ClipReading]) -> dict[str, float]:
    """How often two different vowels are in the order of mouth width that the truth gives them, and how many pairs."""
    events = [
        (vowel, clip.truth.width[k], clip.made.width[k])
        for clip in clips
        for vowel, frames in clip.vowels.items()
        for k in frames
    ]
    told = [
        (truth_a - truth_b) * (made_a - made_b) > 0
        for index, (a, truth_a, made_a) in enumerate(events)
        for b, truth_b, made_b in events[:index]
        if a != b
    ]
    return {"vowels_told_apart": float(np.mean(told)), "vowel_pairs": len(told), "vowels": len(events)}
