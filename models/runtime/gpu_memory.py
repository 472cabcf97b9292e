"""Memory of a GPU that several processes share: the limit of this process, and computations that do not fit into it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from models.runtime.device_errors import is_out_of_memory

Result = TypeVar("Result")

# Of a process beside torch's allocator: the CUDA context and the kernels of its libraries. Measured with torch 2.11 and
# CUDA 13 on an H200: 690 MiB (tests/gpu/test_device_faults_gpu.py).
CONTEXT_BYTES = 768 << 20


def memory_fraction(share: float, total_bytes: int) -> float:
    """The fraction of a GPU's memory that torch may take in a process with this share of the GPU, 0 to 1.

    The CUDA context comes out of the share, but never more than half of it.
    """
    if share >= 1:
        return 1.0
    return max(share - CONTEXT_BYTES / total_bytes, share / 2)


def limit_gpu_memory(share: float) -> float:
    """Apply `memory_fraction` to every GPU that this process sees; return it, or 1 where there is no CUDA device.

    Torch then raises OutOfMemoryError above the limit, as on a GPU of that size. share: 1 removes the limit.
    """
    import torch

    if not torch.cuda.is_available():
        return 1.0
    fraction = 1.0
    for device in range(torch.cuda.device_count()):
        fraction = memory_fraction(share, torch.cuda.get_device_properties(device).total_memory)
        torch.cuda.set_per_process_memory_fraction(fraction, device)
    return fraction


def empty_device_cache() -> None:
    """Return the memory that torch keeps for later to the device."""
    torch = sys.modules.get("torch")  # do not import torch only to find that it is not used
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def compute_in_parts(compute: Callable[[Any], Iterable[Result]], items: Any) -> list[Result]:
    """The results of `compute(items)`, one per item; in halves, and their halves, where it runs out of memory.

    items: a list or an array.
    A single item is tried twice, because another process may have taken the memory. Raises what `compute` raises then.
    """
    try:
        return list(compute(items))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # outside `except`: the traceback of the error held the tensors of the failed call
    empty_device_cache()
    if len(items) == 1:
        return list(compute(items))
    half = (len(items) + 1) // 2
    return compute_in_parts(compute, items[:half]) + compute_in_parts(compute, items[half:])
