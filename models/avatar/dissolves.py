"""Finds dissolves: cuts that take 8 to 25 frames, in which one shot shows through the other. Knows no faces.

Between two shots a picture goes in a straight line: frame = (1 − t) · before + t · after, with t rising. Motion does
not, however fast or slow: what lies half-way between two poses is not their mean. Light that changes does, but then the
pictures at both ends are alike but for their level. A fade through black is none: nothing shows through.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from models.types import Float32, UInt8

Float64 = npt.NDArray[np.float64]

THUMB_PX = 32  # side of the pictures that are compared: the small motion within a shot is small there
SPAN = 26  # frames between the two that stand for the shots: the longest dissolve and one more
LEAST_APART = 12.0  # grey levels rms between the shots: less would show no seam
OTHER_PICTURE = 0.5  # correlation of the shots below which they show another picture, and not another light
LEAST_STRAIGHT = 0.35  # residual of a frame beside the line, rms, of the distance between the shots
LONGEST_STEP = 0.35  # of t in one frame: a larger one is a cut, which is told by other signs
BACK = 0.1  # so far t may go back: each shot moves a little, too


def thumb(frame: UInt8) -> UInt8:
    """A frame `(h, w, 3)` as `find_dissolves` takes it: grey, `(32, 32)`."""
    small = cv2.resize(frame, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    grey: UInt8 = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.uint8)
    return grey


def find_dissolves(thumbs: Sequence[UInt8]) -> list[tuple[int, int, int]]:
    """(first, middle, last) of each dissolve: the frames about it, and the first that shows more of the new shot."""
    pictures: Float32 = np.array(thumbs, np.float32).reshape(len(thumbs), THUMB_PX * THUMB_PX)
    seen = [(first, crossing) for first in range(len(thumbs) - SPAN) if (crossing := _crossing(pictures, first))]
    found: list[tuple[int, int, int]] = []
    for _, group in itertools.groupby(enumerate(seen), key=lambda item: item[1][0] - item[0]):
        windows = [window for _, window in group]
        middle = int(np.median([crossing for _, crossing in windows]))
        if found and middle - found[-1][1] < SPAN // 2:  # the same one, seen through other frames
            continue
        found.append((windows[0][0], middle, windows[-1][0] + SPAN))
    return found


def _crossing(pictures: Float32, first: int) -> int | None:
    """The frame where a dissolve between `first` and the frame SPAN later is half over; None if there is none."""
    before, span = pictures[first], pictures[first : first + SPAN + 1] - pictures[first]
    whole = span[-1]
    energy = float(whole @ whole)
    if energy < LEAST_APART**2 * len(whole) or _correlation(before, pictures[first + SPAN]) > OTHER_PICTURE:
        return None
    t = (span @ whole) / energy  # (SPAN + 1,)
    steps = np.diff(t)
    if steps.max() > LONGEST_STEP or steps.min() < -BACK:
        return None
    beside = span - t[:, None] * whole
    if float((beside * beside).sum(1).max()) > LEAST_STRAIGHT**2 * energy:
        return None
    return first + int(np.argmax(t >= 0.5))


def _correlation(a: Float32, b: Float32) -> float:
    if a.std() < 1 or b.std() < 1:
        return 1.0  # a plain picture says nothing
    return float(np.corrcoef(a, b)[0, 1])


def with_dissolves(cuts: Sequence[int], thumbs: Sequence[UInt8]) -> list[int]:
    """Cuts, and the middles of the dissolves in which none was seen, in order."""
    middles = [middle for first, middle, last in find_dissolves(thumbs) if not any(first < cut <= last for cut in cuts)]
    return sorted({*cuts, *middles})
