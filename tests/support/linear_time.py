"""Checks that a computation takes linear time, independent of the speed of the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

SMALL, LARGE = 2_500, 20_000  # linear work grows by 8 between the two, quadratic work by 64
MAX_GROWTH = 25  # about the geometric mean
RESOLUTION_S = 0.002  # shorter times are not measured reliably


def check_linear_time(work: Callable[[int], object]) -> None:
    """Asserts that `work(LARGE)` takes at most MAX_GROWTH times the CPU time of `work(SMALL)`, in this thread."""
    small_s = max(min(_cpu_time_s(work, SMALL) for _ in range(3)), RESOLUTION_S)
    large_s = _cpu_time_s(work, LARGE)
    assert large_s < MAX_GROWTH * small_s, (small_s, large_s)


def _cpu_time_s(work: Callable[[int], object], size: int) -> float:
    gc.disable()  # a collection takes longer than the work
    try:
        began_s = time.thread_time()
        work(size)
        return time.thread_time() - began_s
    finally:
        gc.enable()
