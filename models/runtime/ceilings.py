"""What a device can do at most, measured now: products of matrices, memory traffic, and the start of an operation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 0.25  # measured per figure
MATRIX = {"cpu": 1536, "cuda": 8192}  # rows: large enough that the time goes into multiplications
COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # larger than caches
LAUNCHES = 200


@dataclass(frozen=True, slots=True)
class Ceilings:
    """flop_s: operations per second in `dtype`, the best of several products. bytes_s: read and written by a copy.

    launch_s: from Python to the device for one small operation.
    """

    device: str
    dtype: str
    flop_s: float
    bytes_s: float
    launch_s: float

    def least_s(self, flop: float, moved_bytes: float) -> tuple[float, float]:
        """Seconds that the operations and the traffic take at least."""
        return flop / self.flop_s, moved_bytes / self.bytes_s


def measure_ceilings(device: str, dtype: str, threads: int | None = None) -> Ceilings:
    """Measure a torch device. dtype: name of a torch dtype. threads: of a CPU; None leaves torch's setting."""
    import torch

    kind = torch.device(device).type
    before = torch.get_num_threads()
    if kind == "cpu" and threads:
        torch.set_num_threads(threads)
    try:
        n = MATRIX[kind]
        with torch.inference_mode():
            left, right = (torch.rand((n, n), device=device).to(getattr(torch, dtype)) for _ in range(2))
            source = torch.zeros(COPY_BYTES[kind], dtype=torch.uint8, device=device)
            to, one = torch.empty_like(source), torch.zeros(1, device=device)
            product_s = _best_s(lambda: left @ right, device)
            copy_s = _best_s(lambda: to.copy_(source), device)
            launch_s = _best_s(lambda: [one.add_(1) for _ in range(LAUNCHES)], device) / LAUNCHES
    finally:
        torch.set_num_threads(before)
    return Ceilings(device, dtype, 2.0 * n**3 / product_s, 2.0 * COPY_BYTES[kind] / copy_s, launch_s)


def _best_s(call: Callable[[], Any], device: str) -> float:
    """The shortest time of a call: what the device can do, although others may use it now and then."""
    import torch

    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    call()
    wait()
    best_s, end_s = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        call()
        wait()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s
