"""Gates on the lips: do they follow the speech, close at p, b and m, and move in time with the sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.errors import InputError, WeightsError
from models.quality.closures import closed_at, closed_below
from models.speech.visemes import lip_opening
from warmtalk.cli.quality.gates import Curve, Gate, skipped
from warmtalk.cli.quality.signals import Signals

LIPS_BY_PHONEMES, LIPS_BY_LOUDNESS = 0.6, 0.2  # Pearson's r; loudness is a weak hint of the mouth's opening
CLOSED_SHARE = 0.85  # of the sounds p, b and m
MIN_CLOSURES = 3
OFFSET_MS = 45.0  # detectability threshold for early sound (ITU-R BT.1359-1); for late sound it is 125 ms


def lips(signals: Signals) -> Gate:
    """Lip opening against speech."""
    name, title = "lips", "Lips follow the speech"
    about = "Correlation of the lips' opening, read by FaceMesh, with the opening that the phonemes ask for."
    if signals.offset is None:
        return skipped(name, title, about, "there is no speech, or the face is visible too rarely")
    follow, track = signals.offset.lips, signals.track
    numbers = {"best_r": follow.best_r, "lag_frames": follow.lag}
    if track is None:
        about = "Correlation of the lips' opening, read by FaceMesh, with the loudness of the sound: no phonemes known."
        expected, bar = np.maximum(signals.levels, -60), LIPS_BY_LOUDNESS
    else:
        expected, bar = lip_opening(track.mouth), LIPS_BY_PHONEMES
    scaled = (expected - expected.mean()) / (expected.std() + 1e-9) * signals.gap.std() + signals.gap.mean()
    curve = Curve(np.arange(len(scaled)), signals.gap, scaled, "of eye distance", "seen", "expected")
    worst = int(np.abs(signals.gap - scaled).argmax())
    return Gate(name, title, about, follow.r, "r", low=bar, numbers=numbers, curve=curve, worst=worst)


def closures(signals: Signals) -> Gate:
    """Closed lips at p, b, m."""
    name, title = "closures", "Lips close at p, b and m"
    about = "Share of the sounds p, b and m at which the lips are closed, in that frame or the one before or after."
    if signals.track is None:
        return skipped(name, title, about, "needs phonemes: a sidecar from an engine that provides them")
    wanted = [k for k in signals.track.closures if signals.analysis.face[k]]
    if len(wanted) < MIN_CLOSURES:
        return skipped(name, title, about, f"the speech has only {len(wanted)} closures")
    below = closed_below(signals.gap, signals.track.silent)
    closed = closed_at(signals.gap, wanted, below)
    curve = Curve(
        np.arange(len(signals.gap)), signals.gap, np.full(len(signals.gap), below), "of eye distance", "seen", "shut"
    )
    worst = wanted[int(np.argmax([signals.gap[max(0, k - 1) : k + 2].min() for k in wanted]))]
    numbers = {"closures": float(len(wanted)), "closed": float(closed.sum())}
    share = float(closed.mean())
    return Gate(
        name, title, about, share, "", CLOSED_SHARE, numbers=numbers, curve=curve, worst=worst, marks=tuple(wanted)
    )


def offset(signals: Signals) -> Gate:
    """Offset between sound and lips."""
    name, title = "av_offset", "Sound and lips are in sync"
    about = "Delay of the sound against the lips (below 0: early), measured on the sound in the file."
    found, fps = signals.offset, signals.analysis.fps
    if found is None:
        return skipped(name, title, about, "there is no speech, or the face is visible too rarely")
    if not found.sure:
        return skipped(name, title, about, f"the lips correlate too little with the speech (r {found.lips.best_r:.2f})")
    numbers = {"frames": found.frames}
    return Gate(name, title, about, found.frames / fps * 1000, "ms", -OFFSET_MS, OFFSET_MS, numbers=numbers)


def syncnet(signals: Signals, weights: Path | None) -> Gate:
    """SyncNet's confidence, if its weights are installed."""
    name, title = "syncnet", "SyncNet"
    about = "Confidence of LatentSync's SyncNet that lips and sound belong together: for comparing videos of one kind."
    if weights is None or not weights.is_file():
        return skipped(name, title, about, "needs its weights: run warmtalk fetch-weights --only syncnet")
    if not signals.has_sound:
        return skipped(name, title, about, "there is no speech")
    from models.quality.syncnet import SyncNet

    analysis = signals.analysis
    try:
        score = SyncNet.load(weights).offset_and_confidence(analysis.made.crops, analysis.samples, analysis.fps)
    except (InputError, WeightsError) as error:
        return skipped(name, title, about, error.message)
    numbers = {"offset_frames": float(score.offset_frames), "similarity": score.similarity, "windows": score.windows}
    return Gate(name, title, about, score.confidence, "", numbers=numbers)
