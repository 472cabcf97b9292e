"""Runs a network's forward pass as a CUDA graph, optionally compiled with inductor.

At a few faces per call, the GPU waits while Python launches about a thousand kernels. A CUDA graph records them once
for a fixed batch size and replays them with one launch. `inductor` first fuses them (torch.compile): this takes about
a minute per network, or seconds if inductor's cache on disk has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.errors import ConfigError

COMPILE_MODES = ("off", "graphs", "inductor")
WARM_CALLS = 3  # calls before recording, in which cuDNN and cuBLAS choose algorithms and workspaces
SMALL_BATCH = 4  # the smaller batch size for inductor: that of a first chunk
TIMED_REPLAYS = 5

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

    dynamic: inductor compiles once for all sizes of at least 2. pool: of another one, whose memory is then shared.
    """

    def __init__(
        self, function: Function, sizes: Sequence[int], mode: str, device: Any, dynamic: bool = False, pool: Any = None
    ) -> None:
        self.sizes = tuple(sorted(sizes))
        self._device = torch.device(device)
        self._function = torch.compile(function, dynamic=None if dynamic else False) if mode == "inductor" else function
        self._dynamic = dynamic
        self._recordings: dict[Signature, Recording] = {}
        self._pool = pool

    def __call__(self, *inputs: Any) -> torch.Tensor:
        rows = [torch.as_tensor(value) for value in inputs]
        n, largest = len(rows[0]), self.sizes[-1]
        assert n and all(len(value) == n for value in rows), [tuple(value.shape) for value in rows]
        parts = [self._run([value[start : start + largest] for value in rows]) for start in range(0, n, largest)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run(self, rows: list[torch.Tensor]) -> torch.Tensor:
        n = len(rows[0])
        size = next(size for size in self.sizes if size >= n)
        recording = self.recording(size, *((tuple(value.shape[1:]), value.dtype) for value in rows))
        with torch.inference_mode():
            for place, value in zip(recording.inputs, rows, strict=True):
                place[:n].copy_(value)
            recording.replay()
            return recording.output[:n].clone()

    def recording(self, size: int, *rows: tuple[tuple[int, ...], torch.dtype]) -> Recording:
        """The recording for `size` rows, each input's given by its shape without the batch and its dtype."""
        signature = tuple((torch.Size((size, *shape)), dtype) for shape, dtype in rows)
        if signature not in self._recordings:
            with torch.inference_mode():
                self._recordings[signature] = self._record(signature)
        return self._recordings[signature]

    def _record(self, signature: Signature) -> Recording:
        inputs = [torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in signature]
        if self._dynamic:
            for value in inputs:
                torch._dynamo.mark_dynamic(value, 0)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_CALLS):
                self._function(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of the process may use the device during the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self._function(*inputs)
        self._pool = self._pool or graph.pool()
        return Recording(inputs, graph.replay, output)


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded call: its input buffers, the replay function, and its output buffer, which the next call reuses."""

    inputs: list[torch.Tensor]
    replay: Callable[[], None]
    output: torch.Tensor

    def seconds(self) -> float:
        """The time of one replay on the device."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.replay()
        start.record()
        for _ in range(TIMED_REPLAYS):
            self.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / TIMED_REPLAYS


def fastest_split(n: int, seconds: Mapping[int, float]) -> tuple[int, ...]:
    """The batch sizes that together hold n rows in the least time, the largest first. seconds: of each size."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for rows in range(1, n + 1):
        options = ((seconds[size] + best[max(0, rows - size)][0], size) for size in seconds)
        took_s, size = min(options)
        best.append((took_s, (size, *best[max(0, rows - size)][1])))
    return tuple(sorted(best[n][1], reverse=True))
