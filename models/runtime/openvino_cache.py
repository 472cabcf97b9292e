"""Converts torch modules to OpenVINO networks and caches them in a folder.

A process that finds its network in the cache does not import torch and starts in about a second. Each network is
compiled for a few fixed batch sizes: measured here, about 15 % faster than one compiled for any batch size. Two pieces
of a batch run at once, each on half of the threads: 20 % less processor time than two threads that wait for each other
in every layer.
"""

from __future__ import annotations

import copy
import logging
import re
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import ConfigError

BATCH_SIZES = (1, 2)  # four batches of 2 take within 3 % of one batch of 8, compile faster and need less memory
STREAMS = 2  # pieces of a batch that run at once
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names
BFLOAT16_FLAGS = {
    "avx512_bf16",
    "amx_bf16",
}  # processors that multiply bfloat16; OpenVINO emulates it on others, slowly
CACHE_VERSION = 1  # increase it when the content stored under the same name changes
_IR_FILE = "net.xml"  # with net.bin next to it

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]  # (current activity, steps done, total steps)


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would send a report at each import and conversion.

    If `openvino_telemetry` cannot be imported, OpenVINO uses its own empty stub. A telemetry package that is imported
    already stays.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def has_fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 numbers. Always False where there is no `cpuinfo`."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not BFLOAT16_FLAGS.isdisjoint(flags.group(1).split())


def compile_cached(
    name: str,
    build_torch_module: Callable[[], Any],
    example_inputs: Sequence[Array],
    fingerprint: str,
    cache_dir: Path | str | None = None,
    threads: int = 0,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    batched: Sequence[bool] | None = None,
    progress: Progress | None = None,
    precision: str = "float32",
) -> CompiledNet:
    """An OpenVINO network equal to a torch module, read from the cache if it is there.

    name: of the network, a-z, 0-9 and `-`; part of the cache entry's name.
    build_torch_module: returns the module on the CPU, in eval mode, with one output. Called only if the cache does not
    have the network: import torch inside it.
    example_inputs: arrays with the module's input shapes and dtypes and a batch of 2 (a 1 may be traced as constant).
    fingerprint: changes whenever the network changes: hash the weights, the config and the source file that builds the
    module (`models.weights.loading.fingerprint`).
    cache_dir: None converts without storing. threads: 0 lets OpenVINO choose.
    batch_sizes: compiled at first use, or all by `warm()`; must contain 1.
    batched: which inputs have the batch as first axis; the output always has. None: all of them.
    precision: a key of PRECISIONS, in which the network computes. Inputs, output and the cache entry stay float32.

    Safe in several processes at once: an entry appears complete, by a rename; the slower process discards its own.

    Raises ConfigError: `batch_sizes` lacks 1.
    """
    assert re.fullmatch(r"[a-z0-9-]+", name), name
    if 1 not in batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"Batch sizes {tuple(batch_sizes)} lack 1.", "Add 1 to the batch sizes.")
    flags = tuple(batched) if batched is not None else (True,) * len(example_inputs)
    assert len(flags) == len(example_inputs) and any(flags), flags
    report = progress or _no_progress
    if cache_dir is None:
        model = _convert(name, build_torch_module, example_inputs, flags, report)
    else:
        entry = Path(cache_dir) / f"{name}-{fingerprint}-{_version()}"
        model = _read(entry)
        if model is None:
            _store(_convert(name, build_torch_module, example_inputs, flags, report), entry)
            model = _read(entry)
            assert model is not None, entry
    return CompiledNet(name, model, example_inputs, flags, threads, batch_sizes, precision)


class CompiledNet:
    """An OpenVINO network that takes numpy arrays with any batch size: `net(*inputs) -> array`. Thread-safe.

    A batch is split into the compiled sizes, without padding: as large as they can be while every stream has one. With
    sizes 1 and 2, 5 frames run as 2 + 2 + 1, and 2 frames as 1 + 1.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        example_inputs: Sequence[Array],
        batched: tuple[bool, ...],
        threads: int,
        batch_sizes: Sequence[int],
        precision: str,
    ) -> None:
        self.name = name
        self.batch_sizes = tuple(sorted(set(batch_sizes), reverse=True))
        self._model, self.batched = model, batched
        self._streams = min(STREAMS, threads or STREAMS)
        self.options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "NUM_STREAMS": self._streams,
            "ENABLE_CPU_PINNING": False,  # the processes of other stages use the same cores
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        self._inputs = [(array.shape, array.dtype) for array in example_inputs]
        self._queues: dict[int, Any] = {}  # by batch size
        self._lock = threading.Lock()  # an infer request handles one input at a time

    def changed(self, change: Callable[[Any], Any]) -> CompiledNet:
        """What `change` makes of the OpenVINO model, with the same inputs and options. It is compiled on its own."""
        other = copy.copy(self)
        other._model, other._queues, other._lock = change(self._model), {}, threading.Lock()
        return other

    def warm(self, progress: Progress | None = None) -> None:
        """Compile every batch size and run it once, about 0.5 s per size, so that later calls are fast."""
        report = progress or _no_progress
        for done, size in enumerate(self.batch_sizes):
            report(f"compiling {self.name} for batches of {size}", done, len(self.batch_sizes))
            count = size * self._streams if size > 1 else 1
            zeros = [
                np.zeros((count, *shape[1:]) if flag else shape, dtype)
                for (shape, dtype), flag in zip(self._inputs, self.batched, strict=True)
            ]
            self(*zeros)
        report(f"{self.name} is compiled", len(self.batch_sizes), len(self.batch_sizes))

    def __call__(self, *inputs: Array) -> Array:
        """Run on arrays with the example inputs' shapes and any batch ≥ 1; inputs are cast to the examples' dtypes."""
        arrays = [np.ascontiguousarray(array, dtype) for array, (_, dtype) in zip(inputs, self._inputs, strict=True)]
        for array, (shape, _), flag in zip(arrays, self._inputs, self.batched, strict=True):
            assert array.shape[1:] == shape[1:] if flag else array.shape == shape, (self.name, array.shape, shape)
        (count,) = {len(array) for array, flag in zip(arrays, self.batched, strict=True) if flag}
        assert count > 0, (self.name, "empty batch")
        pieces = self.pieces(count)
        with self._lock:
            queues = {stop - start: self._queue(stop - start) for start, stop in pieces}
            output = next(iter(queues.values()))[0].get_output_tensor(0)
            out: Array = np.empty((count, *output.shape[1:]), output.element_type.to_dtype())
            for start, stop in pieces:
                piece = [a[start:stop] if flag else a for a, flag in zip(arrays, self.batched, strict=True)]
                queues[stop - start].start_async(piece, out[start:stop], share_inputs=True)
            for queue in queues.values():
                queue.wait_all()
        return out

    def shaped(self, size: int) -> Any:
        """The OpenVINO model for a fixed batch size."""
        ov, model = import_openvino(), self._model.clone()
        shapes = {
            port: ov.PartialShape([size, *shape[1:]] if flag else list(shape))
            for port, ((shape, _), flag) in enumerate(zip(self._inputs, self.batched, strict=True))
        }
        model.reshape(shapes)
        return model

    def pieces(self, count: int) -> list[tuple[int, int]]:
        """The parts of a batch that run as one, as (first, one past the last)."""
        pieces, start = list[tuple[int, int]](), 0
        for size in self.batch_sizes:
            while count - start >= size and (size == 1 or size * self._streams <= count):
                pieces.append((start, start + size))
                start += size
        return pieces

    def _queue(self, size: int) -> Any:
        """The infer requests for batches of `size`: one per stream."""
        if size not in self._queues:
            ov = import_openvino()
            compiled = ov.Core().compile_model(self.shaped(size), "CPU", self.options)
            self._queues[size] = ov.AsyncInferQueue(compiled, self._streams)
            self._queues[size].set_callback(_copy_result)
        return self._queues[size]


def _copy_result(request: Any, out: Array) -> None:
    """Called when a request is ready. The next piece overwrites its memory."""
    out[:] = request.get_output_tensor(0).data


def _no_progress(_what: str, _done: int, _total: int) -> None:
    return None


def _version() -> str:
    release = re.match(r"[0-9.]+", import_openvino().get_version())
    return f"ov{release.group().strip('.') if release else '0'}-{CACHE_VERSION}"


def _convert(
    name: str, build: Callable[[], Any], example_inputs: Sequence[Array], batched: tuple[bool, ...], report: Progress
) -> Any:
    """Trace the torch module and convert it to an OpenVINO model with a dynamic batch size."""
    import torch

    ov = import_openvino()
    report(f"converting {name} for OpenVINO (first start only)", 0, 1)
    shapes = [
        ov.PartialShape([-1 if f else a.shape[0], *a.shape[1:]]) for a, f in zip(example_inputs, batched, strict=True)
    ]
    example = tuple(torch.from_numpy(np.array(array)) for array in example_inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about each Python branch on a shape; shapes are fixed here
        module = build().eval()
        traced = torch.jit.trace(module, example, check_trace=False)
        model = ov.convert_model(traced, example_input=example, input=shapes)
    report(f"{name} is converted", 1, 1)
    return model


def _read(entry: Path) -> Any | None:
    """The network of a cache entry; None if there is none. A damaged entry is removed."""
    if not (entry / _IR_FILE).is_file():
        return None
    try:
        return import_openvino().Core().read_model(entry / _IR_FILE)
    except RuntimeError:
        log.warning("The cached network %s is damaged; it is converted again.", entry, exc_info=True)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _store(model: Any, entry: Path) -> None:
    """Write an entry atomically. If another process was faster, its equal entry stays."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    temp.chmod(0o755)  # mkdtemp's 0700 would exclude other users of a shared cache
    try:
        import_openvino().save_model(model, temp / _IR_FILE, compress_to_fp16=False)
        try:
            temp.replace(entry)
        except OSError:
            if not (entry / _IR_FILE).is_file():
                raise
    finally:
        shutil.rmtree(temp, ignore_errors=True)
