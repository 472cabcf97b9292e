"""Gates on time: does the mouth rest in silence, does the picture freeze or stutter."""

from __future__ import annotations

import numpy as np

from models.quality.flicker import flicker
from models.quality.frozen import Freezes, find_freezes
from models.quality.silence import motion_at_rest, rest_ratio
from warmtalk.cli.quality.gates import Curve, Gate, skipped
from warmtalk.cli.quality.paste_gates import NO_SOURCE
from warmtalk.cli.quality.signals import Signals

REST_RATIO = 1.1
REPEATED_SHARE = 0.02


def silence(signals: Signals) -> Gate:
    """Motion of the mouth in silence."""
    name, title = "silence", "The mouth rests in silence"
    about = "Change of the mouth region between frames in silence, relative to the source's."
    analysis = signals.analysis
    if signals.source_grey is None:
        return skipped(name, title, about, NO_SOURCE)
    region = analysis.regions.mouth
    whole = [flicker(grey, region).first for grey in (signals.made_grey, signals.source_grey)]
    made, source = (motion_at_rest(first, signals.rest) for first in whole)
    value = rest_ratio(made, source)
    if value is None:
        return skipped(name, title, about, f"only {len(made)} frames are silent")
    at = np.arange(1, analysis.frames)
    inside = np.flatnonzero(signals.rest[1:] & signals.rest[:-1])
    worst = int(inside[int((made - source).argmax())]) + 1
    numbers = {"frames": float(len(made)), "change": float(made.mean()), "source_change": float(source.mean())}
    curve = Curve(at, whole[0], whole[1], "grey levels")
    return Gate(name, title, about, value, "× source", high=REST_RATIO, numbers=numbers, curve=curve, worst=worst)


def frozen(signals: Signals) -> Gate:
    """The longest frozen stretch."""
    about = "The longest stretch in which the picture freezes without being planned."
    found, analysis = _stills(signals), signals.analysis
    worst = found.at if found.longest else None
    numbers = {"frames": float(found.longest)}
    value = found.longest / analysis.fps
    curve = Curve(np.arange(1, analysis.frames), analysis.change, analysis.own_change, "grey levels")
    return Gate("frozen", "Nothing freezes", about, value, "s", high=0.0, numbers=numbers, curve=curve, worst=worst)


def repeated(signals: Signals) -> Gate:
    """Repeated frames."""
    about = "Share of frames that repeat the one before or are shown too long; planned repeats do not count."
    found, analysis = _stills(signals), signals.analysis
    marks = tuple(np.flatnonzero(found.repeats).tolist())
    numbers = {"frames": float(len(marks)), "planned": float(analysis.planned.sum())}
    value, worst = float(found.repeats.mean()), marks[0] if marks else None
    high = REPEATED_SHARE
    return Gate("repeated", "No frame is repeated", about, value, high=high, numbers=numbers, worst=worst, marks=marks)


def seeking(signals: Signals) -> Gate:
    """How much a player decodes when it seeks."""
    about = "The longest distance between keyframes: the most that a player decodes without showing it when it seeks."
    media = signals.analysis.media
    starts = np.unique([0, *media.keys, media.frames])  # a file may begin without a keyframe
    ways = np.diff(starts)
    numbers = {"key_frames": float(len(media.keys)), "frames": float(ways.max())}
    worst = int(starts[int(ways.argmax())])
    value = float(ways.max()) / media.fps
    return Gate("seeking", "Keyframe distance", about, value, "s", numbers=numbers, worst=worst)


def _stills(signals: Signals) -> Freezes:
    analysis = signals.analysis
    return find_freezes(analysis.change, analysis.planned, analysis.fps, analysis.media.lasting, analysis.own_change)
