"""Which avatar frame is shown at a position of a session: forth and back, for ever. Knows nothing of time or files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TURN_FRAMES = 12  # from full speed one way to full speed the other, a multiple of 4; half a second at 25 fps


def ping_pong(start: int, count: int, length: int) -> npt.NDArray[np.int64]:
    """Avatar frames of `count` frames from session position `start`, int64 `(count,)`; a function of these alone.

    The source runs forth and back at its own pace. At either end it slows down and comes back evenly over TURN_FRAMES
    (its place there is a parabola of time), so that a moving head does not bounce: the end of
    ten frames is … 6 7 8 8 9 9 9 9 9 8 8 7 6 …. Positions repeat every `period(length)`; position 0 is the
    middle of the turn at frame 0.
    """
    assert start >= 0 and count >= 0 and length > 0, (start, count, length)
    whole = period(length)
    phase = (start + np.arange(count, dtype=np.int64)) % whole
    since_turn = np.minimum(phase, whole - phase)  # 0 at frame 0, whole / 2 at the last
    near = np.minimum(since_turn, whole // 2 - since_turn)  # positions from the nearer turn
    turn = _turn_frames(length)
    # frames from that end: t² / turn while it turns, then one a position; in whole numbers, halves go outwards
    away = np.where(2 * near <= turn, (2 * near * near + turn) // (2 * max(turn, 1)), near - turn // 4)
    shown: npt.NDArray[np.int64] = np.where(near == since_turn, away, length - 1 - away)
    return shown


def sway(position: int, count: int) -> list[int]:
    """Positions of `count` frames in which a head that must wait goes on, comes back and arrives before `position`.

    A sine, as fast as playback at both its ends: what was moving on before and moves on after does so without a jerk.
    """
    steps = np.sin(2 * np.pi * np.arange(1, count + 1) / count) * count / (2 * np.pi)
    return [max(0, position - 1 + step) for step in np.rint(steps).astype(int).tolist()]


def period(length: int) -> int:
    """Positions after which playback of `length` frames begins anew: 2 · (length - 1), with two turns' extra time."""
    return max(1, 2 * (length - 1) + _turn_frames(length))


def _turn_frames(length: int) -> int:
    """TURN_FRAMES, or less where the source is too short: a turn covers a quarter of its time in frames at its end."""
    return min(TURN_FRAMES, (length - 1) * 2 // 4 * 4)
