"""Copies between the host and a CUDA device that run while the device computes.

Pinned memory comes from torch's allocator, which keeps it and gives a block out again only when the copies of its last
user are done. So a result is handed out as it is, without a copy on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


class Transfers:
    """Copies to and from one device. On a CPU they are plain copies. Not thread-safe."""

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)
        self._pinned = self.device.type == "cuda"
        self._streams = [torch.cuda.Stream(self.device) for _ in range(2)] if self._pinned else []  # up, down

    def up(self, rows: Sequence[Array] | Array) -> torch.Tensor:
        """Return arrays of one shape and type, stacked, on the device, for work on the current stream."""
        first = rows[0]
        dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
        host = torch.empty((len(rows), *first.shape), dtype=dtype, pin_memory=self._pinned)
        np.stack([*rows], out=host.numpy())
        if not self._pinned:
            return host
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._streams[0]):
            there = host.to(self.device, non_blocking=True)
        current.wait_stream(self._streams[0])
        there.record_stream(current)
        return there

    def down(self, tensor: torch.Tensor) -> Callable[[], Array]:
        """Begin to copy what the current stream computes; the function that is returned waits for it."""
        if not self._pinned:
            array = tensor.numpy()
            return lambda: array
        self._streams[1].wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._streams[1]):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._streams[1])
            done = torch.cuda.Event(blocking=True)  # does not keep a core busy
            done.record()

        def wait() -> Array:
            done.synchronize()
            array: Array = host.numpy()
            return array

        return wait
