"""Gates on the paste: does it jitter, flicker, show an edge, or look softer than the face around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.quality.flicker import flicker, ratio
from models.quality.jitter import jitter, percentile_95, rms, shifts
from models.quality.seam import edge_of, sharpness_ratio, steps_along
from warmtalk.cli.quality.gates import Curve, Gate, skipped
from warmtalk.cli.quality.signals import Signals

Float64 = npt.NDArray[np.float64]

JITTER_RATIO, JITTER_ALONE_PX = 1.05, 0.35
JITTER_ADDED_PX = 0.05  # not visible: H.264 alone gives the source a jitter of 0.04 to 0.08 px
STILL_PX = 0.005  # lower limit for a source that does not move
SEAM_FLICKER_RATIO = 1.25
SEAM_DELTA_E = 1.0  # just noticeable colour difference
SHARPNESS = (0.7, 1.4)  # relative to the source's ratio
NO_SOURCE = "needs the source's frames: a sidecar or --avatar-id, and the prepared avatar"
NO_FACE = "too few frames show the face"
MIN_FRAMES = 3


def paste_jitter(signals: Signals) -> Gate:
    """Jitter of the pasted region against the rigid part of the face."""
    name, title = "jitter", "Jitter of the paste"
    about = "Jitter of the pasted region against eyes and nose, relative to the source's; 0.05 px more is accepted."
    analysis, regions, at = signals.analysis, signals.analysis.regions, signals.middles
    if len(at) < MIN_FRAMES:
        return skipped(name, title, about, NO_FACE)

    def jitter_px(crops: Any) -> Float64:
        return jitter(shifts(crops, regions.steady) - shifts(crops, regions.rigid))[at - 1] * analysis.px

    made = jitter_px(analysis.made.crops)
    numbers = {"rms_px": rms(made), "p95_px": percentile_95(made)}
    if analysis.source is None:
        curve = Curve(at, made, None, "px")
        high = JITTER_ALONE_PX
        return Gate(name, title, about, rms(made), "px", high=high, numbers=numbers, curve=curve, worst=_top(at, made))
    source = jitter_px(analysis.source.crops)
    numbers |= {"source_rms_px": rms(source), "source_p95_px": percentile_95(source)}
    own = max(rms(source), STILL_PX)
    high = round(max(JITTER_RATIO, float(np.hypot(own, JITTER_ADDED_PX)) / own), 2)
    curve, worst = Curve(at, made, source, "px"), _top(at, made - source)
    return Gate(name, title, about, rms(made) / own, "× source", high=high, numbers=numbers, curve=curve, worst=worst)


def seam(signals: Signals) -> Gate:
    """Colour step across the mask's edge."""
    name, title = "seam", "The seam does not show"
    about = "Colour step (ΔE) across the edge of the paste, minus the source's at the same place."
    analysis, at = signals.analysis, np.flatnonzero(signals.analysis.face)
    if analysis.source is None or analysis.mask is None:
        return skipped(name, title, about, NO_SOURCE)
    edge, normal = edge_of(analysis.mask)
    if not len(edge) or not len(at):
        return skipped(name, title, about, NO_FACE)
    made, source = (
        np.array([float(steps_along(crops[k], edge, normal).mean()) for k in at])
        for crops in (analysis.made.crops, analysis.source.crops)
    )
    numbers = {"delta_e": float(made.mean()), "source_delta_e": float(source.mean())}
    curve, worst = Curve(at, made, source, "ΔE"), _top(at, made - source)
    value = float((made - source).mean())
    return Gate(name, title, about, value, "ΔE", high=SEAM_DELTA_E, numbers=numbers, curve=curve, worst=worst)


def seam_flicker(signals: Signals) -> Gate:
    """Flicker along the mask's edge, down to the lips."""
    about = (
        "Second difference of grey levels in a ring along the paste's edge, down to the lips, relative to the source's."
    )
    return _flicker(signals, "seam", "The seam does not flicker", about, SEAM_FLICKER_RATIO)


def jaw_flicker(signals: Signals) -> Gate:
    """Change along the jaw; for information, since speech moves it."""
    about = "The same along the jaw line. Speech moves it, so there is no limit; see also the mouth in silence."
    return _flicker(signals, "jaw", "Change along the jaw", about, None)


def mouth_flicker(signals: Signals) -> Gate:
    """Change in the mouth region; for information, since speech moves it."""
    about = "The same in the mouth region. Speech moves it, so there is no limit; see also the mouth in silence."
    return _flicker(signals, "mouth", "Change in the mouth", about, None)


def _flicker(signals: Signals, where: str, title: str, about: str, high: float | None) -> Gate:
    name, at = f"{where}_flicker", signals.middles
    region = signals.analysis.regions.named()[where]
    if signals.source_grey is None:
        return skipped(name, title, about, NO_SOURCE)
    if len(at) < MIN_FRAMES or not region.any():
        return skipped(name, title, about, NO_FACE)
    made, source = (flicker(grey, region) for grey in (signals.made_grey, signals.source_grey))
    numbers = {
        "first": float(made.first[signals.pairs].mean()),
        "source_first": float(source.first[signals.pairs].mean()),
        "second": float(made.second[at - 1].mean()),
        "source_second": float(source.second[at - 1].mean()),
    }
    curve = Curve(at, made.second[at - 1], source.second[at - 1], "grey levels")
    value, worst = (
        ratio(made.second[at - 1], source.second[at - 1]),
        _top(at, made.second[at - 1] - source.second[at - 1]),
    )
    return Gate(name, title, about, value, "× source", high=high, numbers=numbers, curve=curve, worst=worst)


def sharpness(signals: Signals) -> Gate:
    """Fine detail of the paste relative to the face around it."""
    name, title = "sharpness", "The paste is as sharp as the face"
    about = "Fine detail in the pasted mouth relative to eyes and nose; 1 is the source's ratio."
    analysis, at = signals.analysis, np.flatnonzero(signals.analysis.face)
    if analysis.source is None:
        return skipped(name, title, about, NO_SOURCE)
    if len(at) < MIN_FRAMES:
        return skipped(name, title, about, NO_FACE)
    inner, outer = analysis.regions.mouth | analysis.regions.steady, analysis.regions.rigid

    def ratios(crops: Any) -> Float64:
        return np.array([sharpness_ratio(crops[k], inner, outer) for k in at])

    made, source = ratios(analysis.made.crops), ratios(analysis.source.crops)
    numbers = {"ratio": float(made.mean()), "source_ratio": float(source.mean())}
    curve, worst = Curve(at, made, source, "mouth / face"), _top(at, np.abs(np.log(made / source)))
    value = float(made.mean() / source.mean())
    return Gate(name, title, about, value, "× source", *SHARPNESS, numbers=numbers, curve=curve, worst=worst)


def _top(at: npt.NDArray[np.int64], values: Float64) -> int:
    return int(at[int(values.argmax())])
