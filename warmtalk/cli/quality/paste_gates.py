"""Gates on the paste: does it tremble, flicker, show an edge, or look softer than the face around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.quality.flicker import flicker, ratio
from models.quality.jitter import jitter, percentile_95, rms, shifts
from models.quality.seam import edge_of, steps_along
from models.quality.sharpness import sharpness_ratio
from warmtalk.cli.quality.gates import Curve, Gate, skipped
from warmtalk.cli.quality.sight import Sight

Float64 = npt.NDArray[np.float64]

JITTER_RATIO, JITTER_ALONE_PX = 1.05, 0.35
JITTER_ADDED_PX = 0.05  # nobody sees so much more: H.264 alone makes the source's own 0.04 to 0.08, now more, now less
STILL_PX = 0.005  # of a source that does not move at all
SEAM_FLICKER_RATIO = 1.25
SEAM_DELTA_E = 1.0  # a difference of colour that can just be seen
SHARPNESS = (0.7, 1.4)  # of the source's own ratio
NO_SOURCE = "needs the source's frames: a sidecar or --avatar-id, and the prepared avatar"
NO_FACE = "too few frames show the face"
FEWEST = 3  # frames


def paste_jitter(sight: Sight) -> Gate:
    """How the pasted part trembles against the rigid part of the face."""
    name, title = "jitter", "Jitter of the paste"
    about = "How the pasted region trembles against eyes and nose, over the source's own; 0.05 px more is let pass."
    reading, regions, at = sight.reading, sight.reading.regions, sight.middles
    if len(at) < FEWEST:
        return skipped(name, title, about, NO_FACE)

    def trembling(crops: Any) -> Float64:
        return jitter(shifts(crops, regions.steady) - shifts(crops, regions.rigid))[at - 1] * reading.px

    made = trembling(reading.made.crops)
    numbers = {"rms_px": rms(made), "p95_px": percentile_95(made)}
    if reading.source is None:
        curve = Curve(at, made, None, "px")
        high = JITTER_ALONE_PX
        return Gate(name, title, about, rms(made), "px", high=high, numbers=numbers, curve=curve, worst=_top(at, made))
    source = trembling(reading.source.crops)
    numbers |= {"source_rms_px": rms(source), "source_p95_px": percentile_95(source)}
    own = max(rms(source), STILL_PX)
    high = round(max(JITTER_RATIO, float(np.hypot(own, JITTER_ADDED_PX)) / own), 2)
    curve, worst = Curve(at, made, source, "px"), _top(at, made - source)
    return Gate(name, title, about, rms(made) / own, "× source", high=high, numbers=numbers, curve=curve, worst=worst)


def seam(sight: Sight) -> Gate:
    """The step in colour across the mask's edge."""
    name, title = "seam", "The seam does not show"
    about = "Step in colour (ΔE) across the edge of the paste, above the source's own there."
    reading, at = sight.reading, np.flatnonzero(sight.reading.face)
    if reading.source is None or reading.mask is None:
        return skipped(name, title, about, NO_SOURCE)
    edge, normal = edge_of(reading.mask)
    if not len(edge) or not len(at):
        return skipped(name, title, about, NO_FACE)
    made, source = (
        np.array([float(steps_along(crops[k], edge, normal).mean()) for k in at])
        for crops in (reading.made.crops, reading.source.crops)
    )
    numbers = {"delta_e": float(made.mean()), "source_delta_e": float(source.mean())}
    curve, worst = Curve(at, made, source, "ΔE"), _top(at, made - source)
    value = float((made - source).mean())
    return Gate(name, title, about, value, "ΔE", high=SEAM_DELTA_E, numbers=numbers, curve=curve, worst=worst)


def seam_flicker(sight: Sight) -> Gate:
    """Flicker along the mask's edge, down to the lips."""
    about = (
        "Second difference of grey levels in a ring along the paste's edge, down to the lips, over the source's own."
    )
    return _flicker(sight, "seam", "The seam does not flicker", about, SEAM_FLICKER_RATIO)


def jaw_flicker(sight: Sight) -> Gate:
    """Flicker along the jaw; speech moves it."""
    about = "The same along the jaw line. Speech moves it, so there is no bar; at rest, see the mouth in silence."
    return _flicker(sight, "jaw", "Change along the jaw", about, None)


def mouth_flicker(sight: Sight) -> Gate:
    """Flicker inside the mouth region; speech moves it."""
    about = "The same in the mouth's region. Speech moves it, so there is no bar; at rest, see the mouth in silence."
    return _flicker(sight, "mouth", "Change in the mouth", about, None)


def _flicker(sight: Sight, where: str, title: str, about: str, high: float | None) -> Gate:
    name, at = f"{where}_flicker", sight.middles
    region = sight.reading.regions.named()[where]
    if sight.source_grey is None:
        return skipped(name, title, about, NO_SOURCE)
    if len(at) < FEWEST or not region.any():
        return skipped(name, title, about, NO_FACE)
    made, source = (flicker(grey, region) for grey in (sight.made_grey, sight.source_grey))
    numbers = {
        "first": float(made.first[sight.pairs].mean()),
        "source_first": float(source.first[sight.pairs].mean()),
        "second": float(made.second[at - 1].mean()),
        "source_second": float(source.second[at - 1].mean()),
    }
    curve = Curve(at, made.second[at - 1], source.second[at - 1], "grey levels")
    value, worst = (
        ratio(made.second[at - 1], source.second[at - 1]),
        _top(at, made.second[at - 1] - source.second[at - 1]),
    )
    return Gate(name, title, about, value, "× source", high=high, numbers=numbers, curve=curve, worst=worst)


def sharpness(sight: Sight) -> Gate:
    """Fine detail of what is pasted, over that of the face around it."""
    name, title = "sharpness", "The paste is as sharp as the face"
    about = "Fine detail in the pasted mouth over that in eyes and nose; 1 is the source's own ratio."
    reading, at = sight.reading, np.flatnonzero(sight.reading.face)
    if reading.source is None:
        return skipped(name, title, about, NO_SOURCE)
    if len(at) < FEWEST:
        return skipped(name, title, about, NO_FACE)
    inner, outer = reading.regions.mouth | reading.regions.steady, reading.regions.rigid

    def ratios(crops: Any) -> Float64:
        return np.array([sharpness_ratio(crops[k], inner, outer) for k in at])

    made, source = ratios(reading.made.crops), ratios(reading.source.crops)
    numbers = {"ratio": float(made.mean()), "source_ratio": float(source.mean())}
    curve, worst = Curve(at, made, source, "mouth / face"), _top(at, np.abs(np.log(made / source)))
    value = float(made.mean() / source.mean())
    return Gate(name, title, about, value, "× source", *SHARPNESS, numbers=numbers, curve=curve, worst=worst)


def _top(at: npt.NDArray[np.int64], values: Float64) -> int:
    return int(at[int(values.argmax())])
