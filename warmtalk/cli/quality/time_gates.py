"""Gates on time: does the mouth rest in silence, does the picture stand still or stutter."""

from __future__ import annotations

import numpy as np

from models.quality.flicker import flicker
from models.quality.frozen import Stills, stills
from models.quality.silence import motion_at_rest, rest_ratio
from warmtalk.cli.quality.gates import Curve, Gate, skipped
from warmtalk.cli.quality.paste_gates import NO_SOURCE
from warmtalk.cli.quality.sight import Sight

REST_RATIO = 1.1
REPEATED_SHARE = 0.02


def silence(sight: Sight) -> Gate:
    """The mouth in silence."""
    name, title = "silence", "The mouth rests in silence"
    about = "Change of the mouth's region from frame to frame where nothing is said, over the source's own."
    reading = sight.reading
    if sight.source_grey is None:
        return skipped(name, title, about, NO_SOURCE)
    region = reading.regions.mouth
    whole = [flicker(grey, region).first for grey in (sight.made_grey, sight.source_grey)]
    made, source = (motion_at_rest(first, sight.rest) for first in whole)
    value = rest_ratio(made, source)
    if value is None:
        return skipped(name, title, about, f"only {len(made)} frames are silent")
    at = np.arange(1, reading.frames)
    inside = np.flatnonzero(sight.rest[1:] & sight.rest[:-1])
    worst = int(inside[int((made - source).argmax())]) + 1
    numbers = {"frames": float(len(made)), "change": float(made.mean()), "source_change": float(source.mean())}
    curve = Curve(at, whole[0], whole[1], "grey levels")
    return Gate(name, title, about, value, "× source", high=REST_RATIO, numbers=numbers, curve=curve, worst=worst)


def frozen(sight: Sight) -> Gate:
    """Stretches that stand still."""
    about = "The longest stretch in which the picture stands still though nobody planned it."
    found, reading = _stills(sight), sight.reading
    worst = found.at if found.longest else None
    numbers = {"frames": float(found.longest)}
    value = found.longest / reading.fps
    curve = Curve(np.arange(1, reading.frames), reading.change, reading.own_change, "grey levels")
    return Gate("frozen", "Nothing freezes", about, value, "s", high=0.0, numbers=numbers, curve=curve, worst=worst)


def repeated(sight: Sight) -> Gate:
    """Frames that come twice."""
    about = "Share of frames that repeat the one before, or are shown too long; planned repeats do not count."
    found, reading = _stills(sight), sight.reading
    marks = tuple(np.flatnonzero(found.repeats).tolist())
    numbers = {"frames": float(len(marks)), "planned": float(reading.planned.sum())}
    value, worst = float(found.repeats.mean()), marks[0] if marks else None
    high = REPEATED_SHARE
    return Gate("repeated", "No frame comes twice", about, value, high=high, numbers=numbers, worst=worst, marks=marks)


def seeking(sight: Sight) -> Gate:
    """How far a player that seeks must decode."""
    about = "The longest way from one key frame to the next: what is decoded unseen, at most, where a player seeks."
    media = sight.reading.media
    starts = np.unique([0, *media.keys, media.frames])  # a file may begin without one
    ways = np.diff(starts)
    numbers = {"key_frames": float(len(media.keys)), "frames": float(ways.max())}
    worst = int(starts[int(ways.argmax())])
    value = float(ways.max()) / media.fps
    return Gate("seeking", "Distance of key frames", about, value, "s", numbers=numbers, worst=worst)


def _stills(sight: Sight) -> Stills:
    reading = sight.reading
    return stills(reading.change, reading.planned, reading.fps, reading.media.lasting, reading.own_change)
