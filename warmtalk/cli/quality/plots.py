"""Draws a gate: its curve over time as inline SVG, and frames around its worst moment as a JPEG."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import numpy.typing as npt

from models.types import UInt8
from warmtalk.cli.html_report import INK, figure_of, svg_of
from warmtalk.cli.quality.analysis import VideoAnalysis
from warmtalk.cli.quality.gates import Curve, Gate

MADE, SOURCE, BROKEN, SPEECH = "#2563eb", "#94a3b8", "#dc2626", "#e0f2fe"
STRIP_FRAMES, CELL_PX, CAPTION_PX, GUTTER_PX = 7, 128, 20, 4
JPEG_QUALITY = 88


def curve_svg(gate: Gate, curve: Curve, fps: float, quiet: npt.NDArray[np.bool_]) -> str:
    """The curve with speech shaded, the worst moment and marked frames shown, as an SVG element."""
    figure, axes = figure_of(7.6, 1.9)
    seconds = curve.at / fps
    for begin, end in _runs(~quiet):
        axes.axvspan(begin / fps, end / fps, color=SPEECH, lw=0, zorder=0)
    if curve.source is not None:
        axes.plot(seconds, curve.source, color=SOURCE, lw=1.3, label=curve.source_label)
    axes.plot(seconds, curve.made, color=MADE, lw=1.1, label=curve.made_label)
    for mark in gate.marks:
        axes.axvline(mark / fps, color=INK, lw=0.7, ls=":", zorder=1)
    if gate.worst is not None:
        axes.axvline(gate.worst / fps, color=BROKEN, lw=1.1, alpha=0.8, label="worst moment")
    axes.set_xlim(0, len(quiet) / fps)
    axes.set_ylim(bottom=min(0.0, float(curve.made.min())))
    axes.set_xlabel("seconds (shaded: speech)", fontsize=8, color=INK)
    axes.set_ylabel(curve.unit, fontsize=8, color=INK)
    if curve.source is not None or gate.worst is not None:
        axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3)
    return svg_of(figure)


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of True as (first, one past the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def strip(analysis: VideoAnalysis, worst: int) -> UInt8:
    """Faces around a frame, RGB: the video's, and below them the source's if they are known."""
    half = STRIP_FRAMES // 2
    first = int(np.clip(worst - half, 0, max(0, analysis.frames - STRIP_FRAMES)))
    shown = list(range(first, min(first + STRIP_FRAMES, analysis.frames)))
    rows = [_captions(shown, worst, analysis.fps), _row(analysis.made.crops, shown, worst)]
    if analysis.source is not None:
        rows.append(_row(analysis.source.crops, shown, None))
    return np.vstack(rows)


def _row(crops: UInt8, shown: list[int], worst: int | None) -> UInt8:
    cells = []
    for k in shown:
        cell = cv2.resize(crops[k], (CELL_PX, CELL_PX), interpolation=cv2.INTER_AREA)
        if k == worst:
            cv2.rectangle(cell, (0, 0), (CELL_PX - 1, CELL_PX - 1), (220, 38, 38), 3)
        cells.append(cv2.copyMakeBorder(cell, 0, GUTTER_PX, 0, GUTTER_PX, cv2.BORDER_CONSTANT, value=(255,) * 3))
    return np.hstack(cells)


def _captions(shown: list[int], worst: int, fps: float) -> UInt8:
    band = np.full((CAPTION_PX, len(shown) * (CELL_PX + GUTTER_PX), 3), 255, np.uint8)
    for place, k in enumerate(shown):
        colour = (220, 38, 38) if k == worst else (71, 85, 105)
        at = (place * (CELL_PX + GUTTER_PX) + 4, CAPTION_PX - 6)
        cv2.putText(band, f"{k}  {k / fps:.2f} s", at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    return band


def jpeg_url(picture: UInt8) -> str:
    """An RGB picture as a JPEG data URL."""
    encoded, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert encoded, picture.shape
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
