"""Runs a network's forward pass as a CUDA graph, optionally compiled with inductor.

At a few faces per call, the GPU waits while Python launches about a thousand kernels. A CUDA graph records them once
for a fixed batch size and replays them with one launch. `inductor` first fuses them (torch.compile): this takes about
a minute per batch size, or seconds if inductor's cache on disk has the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from models.errors import ConfigError

COMPILE_MODES = ("off", "graphs", "inductor")
WARM_CALLS = 3  # calls before recording, in which cuDNN and cuBLAS choose algorithms and workspaces
SMALL_BATCH = 4  # the smaller batch size for inductor: that of a first chunk

Function = Callable[..., torch.Tensor]
Signature = tuple[tuple[torch.Size, torch.dtype], ...]


def check_compile(mode: str, device: Any) -> str:
    """Return `mode`. Raises ConfigError unless it is one of COMPILE_MODES and can run on `device`."""
    if mode not in COMPILE_MODES:
        raise ConfigError(f"There is no compile mode {mode!r}.", f"Use one of {', '.join(COMPILE_MODES)}.")
    if mode != "off" and torch.device(device).type != "cuda":
        raise ConfigError(f"compile: {mode} needs a CUDA device.", "Use device: cuda, or compile: off.")
    return mode


def graph_batch_sizes(mode: str, batch_size: int) -> tuple[int, ...]:
    """Batch sizes to record, ascending, up to `batch_size`: powers of two for `graphs`, two sizes for `inductor`."""
    if mode == "graphs":
        powers = (2**k for k in range(batch_size.bit_length()))
        return tuple(sorted({*(size for size in powers if size < batch_size), batch_size}))
    return tuple(sorted({min(SMALL_BATCH, batch_size), batch_size}))


class GraphedFunction:
    """A function of tensors with independent rows, recorded as one CUDA graph per batch size.

    n rows run in the smallest size ≥ n, whose other rows are unused; more rows than the largest size run in several
    replays. Each size and input shape is recorded at its first call. Inputs are numpy arrays or tensors on any device;
    outputs are new tensors on the device. Not thread-safe: all sizes share one memory pool.
    """

    def __init__(self, function: Function, sizes: Sequence[int], mode: str, device: Any) -> None:
        self.sizes = tuple(sorted(sizes))
        self._device = torch.device(device)
        self._function = function
        self._fuse = mode == "inductor"
        self._replays: dict[Signature, _Replay] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Any) -> torch.Tensor:
        rows = [torch.as_tensor(value) for value in inputs]
        n, largest = len(rows[0]), self.sizes[-1]
        assert n and all(len(value) == n for value in rows), [tuple(value.shape) for value in rows]
        parts = [self._run([value[start : start + largest] for value in rows]) for start in range(0, n, largest)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run(self, rows: list[torch.Tensor]) -> torch.Tensor:
        n = len(rows[0])
        size = next(size for size in self.sizes if size >= n)
        signature = tuple((torch.Size((size, *value.shape[1:])), value.dtype) for value in rows)
        if signature not in self._replays:
            self._replays[signature] = self._record(signature)
        return self._replays[signature](rows)

    def _record(self, signature: Signature) -> _Replay:
        inputs = [torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in signature]
        function = torch.compile(self._function, dynamic=False) if self._fuse else self._function
        with torch.inference_mode():
            return self._capture(function, inputs)

    def _capture(self, function: Function, inputs: list[torch.Tensor]) -> _Replay:
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_CALLS):
                function(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may use the device during the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = function(*inputs)
        self._pool = self._pool or graph.pool()
        return _Replay(inputs, graph.replay, output)


class _Replay:
    """A recorded call: its input buffers, the replay function, and its output buffer, which the next call reuses."""

    def __init__(self, inputs: list[torch.Tensor], replay: Callable[[], None], output: torch.Tensor) -> None:
        self._inputs, self._replay, self._output = inputs, replay, output

    def __call__(self, rows: list[torch.Tensor]) -> torch.Tensor:
        n = len(rows[0])
        with torch.inference_mode():
            for place, value in zip(self._inputs, rows, strict=True):
                place[:n].copy_(value)
            self._replay()
            return self._output[:n].clone()
