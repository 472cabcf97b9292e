"""Which avatar frame is shown at a position of a session: forth and back, for ever. Knows nothing of time or files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def ping_pong(start: int, count: int, length: int) -> npt.NDArray[np.int64]:
    """Avatar frames of `count` frames from session position `start`: 0 1 … n-1 n-2 … 1 0 1 …, int64 `(count,)`."""
    assert start >= 0 and count >= 0 and length > 0, (start, count, length)
    period = max(1, 2 * (length - 1))
    phase = (start + np.arange(count, dtype=np.int64)) % period
    return np.minimum(phase, period - phase) if length > 1 else np.zeros(count, np.int64)
