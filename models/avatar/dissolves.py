"""Finds dissolves: transitions of 8 to 25 frames in which one shot is blended into the next.

In a dissolve, frames lie on a straight line between two pictures: frame = (1 − t) · before + t · after, with rising t.
Motion, fast or slow, does not follow such a line: a pose half-way between two others is not their mean. Changing light
does, but then both pictures are equal except for their brightness. A fade through black is not a dissolve.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]

THUMB_PX = 32  # side of the reduced pictures that are compared: motion within a shot is small in them
SPAN = 26  # frames between the two pictures that represent the shots: the longest dissolve plus one
MIN_DIFFERENCE = 12.0  # grey levels rms between the shots: a smaller difference is not visible as a transition
MAX_CORRELATION = 0.5  # of the shots: above it they show the same picture in another light
MAX_RESIDUAL = 0.35  # rms distance of a frame from the line, relative to the distance between the shots
MAX_STEP = 0.35  # of t in one frame: a larger step is a cut, which models/avatar/cuts.py finds
MAX_BACKSTEP = 0.1  # how far t may go back in one frame: there is some motion in each shot


def thumb(frame: UInt8) -> UInt8:
    """Reduce a frame `(h, w, 3)` to the grey picture `(32, 32)` that `find_dissolves` takes."""
    small = cv2.resize(frame, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    grey: UInt8 = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    return grey


def find_dissolves(thumbs: Sequence[UInt8]) -> list[tuple[int, int, int]]:
    """Return (first, middle, last) per dissolve: middle is the first frame that shows more of the new shot."""
    pictures: Float32 = np.array(thumbs, np.float32).reshape(len(thumbs), THUMB_PX * THUMB_PX)
    seen = [(first, crossing) for first in range(len(thumbs) - SPAN) if (crossing := _crossing(pictures, first))]
    found: list[tuple[int, int, int]] = []
    for _, group in itertools.groupby(enumerate(seen), key=lambda item: item[1][0] - item[0]):
        windows = [window for _, window in group]
        middle = int(np.median([crossing for _, crossing in windows]))
        if found and middle - found[-1][1] < SPAN // 2:  # the same dissolve, found with other frames
            continue
        found.append((windows[0][0], middle, windows[-1][0] + SPAN))
    return found


def _crossing(pictures: Float32, first: int) -> int | None:
    """The frame where a dissolve between `first` and the frame SPAN later reaches t = 0.5; None if there is none."""
    before, span = pictures[first], pictures[first : first + SPAN + 1] - pictures[first]
    whole = span[-1]
    energy = float(whole @ whole)
    if energy < MIN_DIFFERENCE**2 * len(whole) or _correlation(before, pictures[first + SPAN]) > MAX_CORRELATION:
        return None
    t = (span @ whole) / energy  # (SPAN + 1,)
    steps = np.diff(t)
    if steps.max() > MAX_STEP or steps.min() < -MAX_BACKSTEP:
        return None
    residual = span - t[:, None] * whole
    if float((residual * residual).sum(1).max()) > MAX_RESIDUAL**2 * energy:
        return None
    return first + int(np.argmax(t >= 0.5))


def _correlation(a: Float32, b: Float32) -> float:
    if a.std() < 1 or b.std() < 1:
        return 1.0  # undefined for a picture of one colour, which counts as the same picture
    return float(np.corrcoef(a, b)[0, 1])


def with_dissolves(cuts: Sequence[int], thumbs: Sequence[UInt8]) -> list[int]:
    """Return, in order, the cuts and the middle of each dissolve that contains none of them."""
    middles = [middle for first, middle, last in find_dissolves(thumbs) if not any(first < cut <= last for cut in cuts)]
    return sorted({*cuts, *middles})
