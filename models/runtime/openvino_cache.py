"""Torch modules as OpenVINO networks, converted once and kept in a cache folder. Knows nothing of any single model.

A process that finds its network in the cache never imports torch: it starts in about a second. Each network is compiled
for a few fixed batch sizes, which run about 15 % faster here than one compiled for any batch.
"""

from __future__ import annotations

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

BATCH_SIZES = (1, 4)  # 4 frames twice run within 3 % of 8 at once, and compile sooner
LAYOUT = 1  # of the cache; raise it when what is stored under the same name changes
_IR_FILE = "net.xml"  # and net.bin beside it

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)


def import_openvino() -> Any:
    """OpenVINO's package, without the usage reports that it would send at each import and conversion.

    A module that cannot be imported makes it take its own silent stub. Where something else has imported the reporting
    package already, it stays as it is.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


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
) -> CompiledNet:
    """An OpenVINO network equal to a torch module, from the cache where it is there.

    name: what it is, a-z, 0-9 and `-`; part of the cache entry's name.
    build_torch_module: makes the module, in eval mode and on the CPU, with one output. Called (and torch imported) only
    where the cache has no such network, so import torch inside it.
    example_inputs: arrays of the shapes and dtypes that the module takes, in batches of 2 (1 may be traced as fixed).
    fingerprint: changes whenever the network would: hash the weights, the config and the source file that builds the
    module (`models.weights.loading.fingerprint`).
    cache_dir: None converts anew and keeps nothing. threads: 0 lets OpenVINO choose.
    batch_sizes: compiled when first needed, or all by `warm()`; 1 must be among them.
    batched: which inputs have the batch as their first axis, as the output always has; None is all of them.

    Two processes may do this at once: an entry appears whole, by one rename, and the second's work is thrown away.
    """
    assert re.fullmatch(r"[a-z0-9-]+", name), name
    if 1 not in batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"Batch sizes {tuple(batch_sizes)} lack 1.", "Give a list of sizes that begins with 1.")
    flags = tuple(batched) if batched is not None else (True,) * len(example_inputs)
    assert len(flags) == len(example_inputs) and any(flags), flags
    say = progress or _silent
    if cache_dir is None:
        model = _convert(name, build_torch_module, example_inputs, flags, say)
    else:
        entry = Path(cache_dir) / f"{name}-{fingerprint}-{_version()}"
        model = _read(entry)
        if model is None:
            _store(_convert(name, build_torch_module, example_inputs, flags, say), entry)
            model = _read(entry)
            assert model is not None, entry
    return CompiledNet(name, model, example_inputs, flags, threads, batch_sizes)


class CompiledNet:
    """An OpenVINO network that takes numpy arrays of any batch: `net(*inputs) -> array`. Safe to share between threads.

    A batch is cut into pieces of the compiled sizes, largest first, so nothing is padded: 6 frames are 4 + 1 + 1.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        example_inputs: Sequence[Array],
        batched: tuple[bool, ...],
        threads: int,
        batch_sizes: Sequence[int],
    ) -> None:
        self.name = name
        self.batch_sizes = tuple(sorted(set(batch_sizes), reverse=True))
        self._model, self._batched, self._threads = model, batched, threads
        self._inputs = [(array.shape, array.dtype) for array in example_inputs]
        self._requests: dict[int, Any] = {}
        self._lock = threading.Lock()  # an infer request holds one input at a time

    def warm(self, progress: Progress | None = None) -> None:
        """Compile every batch size and run each once, so that no later call pays for it: about 0.5 s a size."""
        say = progress or _silent
        for done, size in enumerate(self.batch_sizes):
            say(f"compiling {self.name} for batches of {size}", done, len(self.batch_sizes))
            zeros = [
                np.zeros((size, *shape[1:]) if flag else shape, dtype)
                for (shape, dtype), flag in zip(self._inputs, self._batched, strict=True)
            ]
            self(*zeros)
        say(f"{self.name} is compiled", len(self.batch_sizes), len(self.batch_sizes))

    def __call__(self, *inputs: Array) -> Array:
        """Run on arrays of the example inputs' shapes, with any batch ≥ 1; cast to the examples' dtypes."""
        arrays = [np.ascontiguousarray(array, dtype) for array, (_, dtype) in zip(inputs, self._inputs, strict=True)]
        for array, (shape, _), flag in zip(arrays, self._inputs, self._batched, strict=True):
            assert array.shape[1:] == shape[1:] if flag else array.shape == shape, (self.name, array.shape, shape)
        (count,) = {len(array) for array, flag in zip(arrays, self._batched, strict=True) if flag}
        assert count > 0, (self.name, "empty batch")
        out: Array | None = None
        with self._lock:
            for start, stop in self._pieces(count):
                piece = [a[start:stop] if flag else a for a, flag in zip(arrays, self._batched, strict=True)]
                result = self._request(stop - start).infer(piece, share_inputs=True, share_outputs=True)[0]
                if out is None:
                    out = np.empty((count, *result.shape[1:]), result.dtype)
                out[start:stop] = result  # a copy: the request's own memory is written again by the next piece
        assert out is not None
        return out

    def _pieces(self, count: int) -> list[tuple[int, int]]:
        pieces, start = list[tuple[int, int]](), 0
        for size in self.batch_sizes:
            while count - start >= size:
                pieces.append((start, start + size))
                start += size
        return pieces

    def _request(self, size: int) -> Any:
        if size not in self._requests:
            ov = import_openvino()
            shapes = {
                port: ov.PartialShape([size, *shape[1:]] if flag else list(shape))
                for port, ((shape, _), flag) in enumerate(zip(self._inputs, self._batched, strict=True))
            }
            model = self._model.clone()
            model.reshape(shapes)
            options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            if self._threads:
                options["INFERENCE_NUM_THREADS"] = self._threads
            self._requests[size] = ov.Core().compile_model(model, "CPU", options).create_infer_request()
        return self._requests[size]


def _silent(_what: str, _done: int, _total: int) -> None:
    return None


def _version() -> str:
    release = re.match(r"[0-9.]+", import_openvino().get_version())
    return f"ov{release.group().strip('.') if release else '0'}-{LAYOUT}"


def _convert(
    name: str, build: Callable[[], Any], example_inputs: Sequence[Array], batched: tuple[bool, ...], say: Progress
) -> Any:
    """Trace the torch module and turn it into an OpenVINO model whose batch is open."""
    import torch

    ov = import_openvino()
    say(f"converting {name} for OpenVINO, once", 0, 1)
    shapes = [
        ov.PartialShape([-1 if f else a.shape[0], *a.shape[1:]]) for a, f in zip(example_inputs, batched, strict=True)
    ]
    example = tuple(torch.from_numpy(np.array(array)) for array in example_inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of each Python branch on a shape; shapes are fixed here
        module = build().eval()
        traced = torch.jit.trace(module, example, check_trace=False)
        model = ov.convert_model(traced, example_input=example, input=shapes)
    say(f"{name} is converted", 1, 1)
    return model


def _read(entry: Path) -> Any | None:
    """The network of a cache entry; None where there is none, or where it is damaged (which removes it)."""
    if not (entry / _IR_FILE).is_file():
        return None
    try:
        return import_openvino().Core().read_model(entry / _IR_FILE)
    except RuntimeError:
        log.warning("the cached network %s is damaged and is made anew", entry, exc_info=True)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _store(model: Any, entry: Path) -> None:
    """Write an entry whole or not at all. Another process that was faster keeps its own, which is equal."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    making.chmod(0o755)  # mkdtemp's 0700 would keep other users of a shared cache out
    try:
        import_openvino().save_model(model, making / _IR_FILE, compress_to_fp16=False)
        try:
            making.replace(entry)
        except OSError:
            if not (entry / _IR_FILE).is_file():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
