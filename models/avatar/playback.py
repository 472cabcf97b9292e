"""Which avatar frame is shown at which position of a session: the source plays forward and backward, in a loop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TURN_FRAMES = 12  # frames to reverse from full speed to full speed, a multiple of 4; half a second at 25 fps


def ping_pong(start: int, count: int, length: int) -> npt.NDArray[np.int64]:
    """Return the avatar frames for `count` session positions from `start` on, int64 `(count,)`.

    length: frames of the avatar. The source plays forward and backward at its own speed. At each end it slows down and
    reverses evenly over TURN_FRAMES (its position there is a parabola of time), so that a moving head does not bounce:
    the end of ten frames is … 6 7 8 8 9 9 9 9 9 8 8 7 6 …. Positions repeat every `period(length)`; position 0 is the
    middle of the turn at frame 0.
    """
    assert start >= 0 and count >= 0 and length > 0, (start, count, length)
    whole = period(length)
    phase = (start + np.arange(count, dtype=np.int64)) % whole
    since_turn = np.minimum(phase, whole - phase)  # 0 at frame 0, whole / 2 at the last
    near = np.minimum(since_turn, whole // 2 - since_turn)  # positions from the nearer turn
    turn = _turn_frames(length)
    # Frames from that end: t² / turn during the turn, then one per position; in integers, halves rounded away from it.
    away = np.where(2 * near <= turn, (2 * near * near + turn) // (2 * max(turn, 1)), near - turn // 4)
    shown: npt.NDArray[np.int64] = np.where(near == since_turn, away, length - 1 - away)
    return shown


def sway(position: int, count: int) -> list[int]:
    """Return `count` positions to show while waiting at `position`: forward, back past it, and to the one before it.

    A sine with the speed of playback at both ends, so that motion before and after continues without a jerk.
    """
    steps = np.sin(2 * np.pi * np.arange(1, count + 1) / count) * count / (2 * np.pi)
    return [max(0, position - 1 + step) for step in np.rint(steps).astype(int).tolist()]


def period(length: int) -> int:
    """Return the positions after which playback of `length` frames repeats: 2 · (length - 1) and the turns' time."""
    return max(1, 2 * (length - 1) + _turn_frames(length))


def _turn_frames(length: int) -> int:
    """TURN_FRAMES, or less for a short source: a turn covers a quarter of its time in frames at either end."""
    return min(TURN_FRAMES, (length - 1) * 2 // 4 * 4)
