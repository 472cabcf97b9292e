"""Gates on lips: do they follow the speech, do they close where it closes them, are they on time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.errors import InputError, WeightsError
from models.quality.closures import closed_at, closed_below
from models.speech.visemes import opening_of
from warmtalk.cli.quality.gates import Curve, Gate, skipped
from warmtalk.cli.quality.sight import Sight

LIPS_BY_PHONEMES, LIPS_BY_LOUDNESS = 0.6, 0.2  # Pearson's r; loudness says little of how far a mouth opens
CLOSED_SHARE = 0.85  # of p, b and m
FEWEST_CLOSURES = 3
OFFSET_MS = 45.0  # sound that early is noticed (ITU-R BT.1359-1); late, it takes 125 ms


def lips(sight: Sight) -> Gate:
    """Lip opening against speech."""
    name, title = "lips", "Lips follow the speech"
    about = "Correlation of the lips' opening, read by FaceMesh, with the opening that the phonemes ask for."
    if sight.offset is None:
        return skipped(name, title, about, "there is no speech, or too little of a face")
    follow, track = sight.offset.lips, sight.track
    numbers = {"best_r": follow.best_r, "lag_frames": follow.lag}
    if track is None:
        about = "Correlation of the lips' opening, read by FaceMesh, with the loudness of the sound: no phonemes known."
        expected, bar = np.maximum(sight.levels, -60), LIPS_BY_LOUDNESS
    else:
        expected, bar = opening_of(track.mouth), LIPS_BY_PHONEMES
    scaled = (expected - expected.mean()) / (expected.std() + 1e-9) * sight.gap.std() + sight.gap.mean()
    curve = Curve(np.arange(len(scaled)), sight.gap, scaled, "of eye distance", "seen", "expected")
    worst = int(np.abs(sight.gap - scaled).argmax())
    return Gate(name, title, about, follow.r, "r", low=bar, numbers=numbers, curve=curve, worst=worst)


def closures(sight: Sight) -> Gate:
    """Closed lips at p, b, m."""
    name, title = "closures", "Lips close at p, b and m"
    about = "Share of the closures in the phonemes at which the lips are closed, in that frame or one beside it."
    if sight.track is None:
        return skipped(name, title, about, "needs phonemes: a sidecar of an engine that knows them")
    wanted = [k for k in sight.track.closures if sight.reading.face[k]]
    if len(wanted) < FEWEST_CLOSURES:
        return skipped(name, title, about, f"only {len(wanted)} closures are said")
    below = closed_below(sight.gap, sight.track.silent)
    closed = closed_at(sight.gap, wanted, below)
    curve = Curve(
        np.arange(len(sight.gap)), sight.gap, np.full(len(sight.gap), below), "of eye distance", "seen", "shut"
    )
    worst = wanted[int(np.argmax([sight.gap[max(0, k - 1) : k + 2].min() for k in wanted]))]
    numbers = {"closures": float(len(wanted)), "closed": float(closed.sum())}
    share = float(closed.mean())
    return Gate(
        name, title, about, share, "", CLOSED_SHARE, numbers=numbers, curve=curve, worst=worst, marks=tuple(wanted)
    )


def offset(sight: Sight) -> Gate:
    """Sound against lips."""
    name, title = "av_offset", "Sound and lips are together"
    about = "By how much the sound comes late against the lips (below 0: early), from the sound that the file holds."
    found, fps = sight.offset, sight.reading.fps
    if found is None:
        return skipped(name, title, about, "there is no speech, or too little of a face")
    if not found.sure:
        return skipped(name, title, about, f"lips follow the speech too little to tell (r {found.lips.best_r:.2f})")
    numbers = {"frames": found.frames}
    return Gate(name, title, about, found.frames / fps * 1000, "ms", -OFFSET_MS, OFFSET_MS, numbers=numbers)


def syncnet(sight: Sight, weights: Path | None) -> Gate:
    """SyncNet's own opinion, where its weights are there."""
    name, title = "syncnet", "SyncNet"
    about = "Confidence of LatentSync's SyncNet that lips and sound belong together: for comparing videos of one kind."
    if weights is None or not weights.is_file():
        return skipped(name, title, about, "needs its weights: warmtalk fetch-weights --only syncnet")
    if not sight.has_sound:
        return skipped(name, title, about, "there is no speech")
    from models.quality.syncnet import SyncNet

    reading = sight.reading
    try:
        score = SyncNet.load(weights).offset_and_confidence(reading.made.crops, reading.samples, reading.fps)
    except (InputError, WeightsError) as error:
        return skipped(name, title, about, error.message)
    numbers = {"offset_frames": float(score.offset_frames), "similarity": score.similarity, "windows": score.windows}
    return Gate(name, title, about, score.confidence, "", numbers=numbers)
