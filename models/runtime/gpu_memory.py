"""Limits the GPU memory of this process to its share of a GPU, so that it cannot take what its neighbours need."""

from __future__ import annotations

CONTEXT_BYTES = 512 << 20  # of a process beside torch's allocator: the CUDA context and the kernels of its libraries


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
