"""Counts the work of a call: floating-point operations and bytes of memory traffic, on the networks that really run.

Torch's operations are counted while they are dispatched, those of OpenVINO and ONNX Runtime from the networks that the
call uses. A multiplication and an addition count as two operations. Bytes: each operation reads its inputs and writes
its outputs once; caches are not considered. An OpenVINO network is counted as it is executed, after fusion.

CUDA graphs and compiled functions are not dispatched, so count an engine that was loaded without `compile`.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SHAPE_ONLY = frozenset(("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select",
                        "unsqueeze", "squeeze", "split", "chunk", "detach", "alias", "as_strided", "unbind", "empty",
                        "split_with_sizes", "lift_fresh"))  # fmt: skip

NOT_COMPUTED = ("Const", "Input", "Output")  # layers of OpenVINO


@dataclass(slots=True)
class Work:
    """flop, moved_bytes: of the counted call. seconds: by kind of operation, where the runtime measures them."""

    flop: float = 0.0
    moved_bytes: float = 0.0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: Work, times: float = 1.0) -> None:
        self.flop += other.flop * times
        self.moved_bytes += other.moved_bytes * times
        for kind, seconds in other.seconds.items():
            self.seconds[kind] += seconds * times


def count_work(call: Callable[[], T], fused: bool = False) -> tuple[Work, T]:
    """The work of a call, which runs once, and its result. Call it once before, so that nothing is loaded meanwhile.

    fused: do not count the traffic of torch's pointwise operations, which a compiler fuses with their neighbours.
    """
    work = Work()
    with ExitStack() as modes:
        nets = modes.enter_context(
            _observed(sys.modules.get("models.runtime.openvino_cache"), "CompiledNet", "__call__")
        )
        sessions = modes.enter_context(_observed(sys.modules.get("onnxruntime"), "InferenceSession", "run"))
        counters = []
        if "torch" in sys.modules:
            counters = [modes.enter_context(mode) for mode in _torch_modes(work, fused)]
        result = call()
    for counter in counters[:1]:
        work.flop += float(counter.get_total_flops())
    for net, inputs in nets:
        work.add(_openvino_work(net, inputs))
    for session, (_names, feeds, *_) in sessions:
        work.add(_onnx_work(session, feeds))
    return work, result


@contextmanager
def _observed(module: Any, owner: str, method: str) -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """The objects of a class whose method is called meanwhile, with the arguments."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    if module is None:
        yield calls
        return
    kind = getattr(module, owner)
    original = getattr(kind, method)

    def run(self: Any, *args: Any, **options: Any) -> Any:
        calls.append((self, args))
        return original(self, *args, **options)

    setattr(kind, method, run)
    try:
        yield calls
    finally:
        setattr(kind, method, original)


# --- torch


def _torch_modes(work: Work, fused: bool) -> list[Any]:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    whole = torch.ops.aten.scaled_dot_product_attention.default  # its kernels keep the products in registers and caches
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to FlopCounterMode
    known = {on_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)}

    class Traffic(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is not whole:  # inference mode dispatches composed operations: count their parts
                with self:
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            out = func(*args, **kwargs)
            name = func._schema.name.removeprefix("aten::").rstrip("_")
            if name not in SHAPE_ONLY and not (fused and torch.Tag.pointwise in func.tags):
                work.moved_bytes += _tensor_bytes((args, kwargs, out))
            return out

    return [FlopCounterMode(display=False, custom_mapping=known), Traffic()]


def _tensor_bytes(values: Any) -> float:
    import torch
    from torch.utils._pytree import tree_leaves

    # a tensor that is broadcast is read once
    return float(sum(_stored(value) for value in tree_leaves(values) if isinstance(value, torch.Tensor)))


def _stored(tensor: Any) -> int:
    numbers = math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return int(numbers * tensor.element_size())


# --- OpenVINO


def _openvino_work(net: Any, inputs: tuple[Any, ...]) -> Work:
    """Of one call of a CompiledNet. Compiles the same network with performance counters and runs it once more."""
    from models.runtime.openvino_cache import import_openvino

    ov, work = import_openvino(), Work()
    count = next(len(value) for value, flag in zip(inputs, net.batched, strict=True) if flag)
    for size, times in Counter(stop - start for start, stop in net.pieces(count)).items():
        model = net.shaped(size)
        compiled = ov.Core().compile_model(model, "CPU", {**net.options, "PERF_COUNT": True})
        request = compiled.create_infer_request()
        arrays = [value[:size] if flag else value for value, flag in zip(inputs, net.batched, strict=True)]
        for _ in range(2):  # the first run is slower
            request.infer(arrays)
        seconds = defaultdict[str, float](float)
        for node in request.profiling_info:
            seconds[node.node_type] += node.real_time.total_seconds()
        part = Work(openvino_flop(model), executed_bytes(compiled.get_runtime_model()), seconds)
        work.add(part, times)
    return work


def openvino_flop(model: Any) -> float:
    """Floating-point operations of an OpenVINO model whose shapes are fixed: convolutions, products, attention."""
    return float(sum(_node_flop(node) for node in model.get_ordered_ops()))


def _node_flop(node: Any) -> float:
    kind = node.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul",
                    "ScaledDotProductAttention"):  # fmt: skip
        return 0.0
    first, second = ([int(n) for n in node.input(k).get_shape()] for k in (0, 1))
    out = int(math.prod(node.output(0).get_shape()))
    if kind == "MatMul":
        return 2.0 * out * first[-2 if node.get_attributes().get("transpose_a") else -1]
    if kind == "ScaledDotProductAttention":
        values = [int(n) for n in node.input(2).get_shape()]
        return 2.0 * math.prod(first[:-1]) * second[-2] * (first[-1] + values[-1])
    return convolution_flop(kind, first, second, out)


def convolution_flop(kind: str, data: list[int], weights: list[int], outputs: int) -> float:
    """weights: `(out, in, …)`, `(groups, out, in, …)` or, of a transposed one, `(in, out, …)`."""
    if kind == "ConvolutionBackpropData":
        return 2.0 * math.prod(data) * math.prod(weights[1:])
    return 2.0 * outputs * math.prod(weights[2 if kind == "GroupConvolution" else 1 :])


def executed_bytes(runtime_model: Any) -> float:
    """Bytes that the operations of a compiled OpenVINO network read and write."""
    total = 0.0
    for node in runtime_model.get_ordered_ops():
        facts = {name: str(value.astype(str)) for name, value in node.get_rt_info().items() if hasattr(value, "astype")}
        # constants are counted where they are read; without a primitive nothing is moved, as in a reshape
        if facts.get("layerType") in NOT_COMPUTED or facts.get("primitiveType", "").startswith("unknown"):
            continue
        ports = [node.output(k) for k in range(node.get_output_size())]
        ports += [source.get_source_output() for source in node.inputs()]
        total += sum(math.prod(port.get_shape()) * port.get_element_type().size for port in ports)
    return total


# --- ONNX Runtime


def _onnx_work(session: Any, feeds: Any) -> Work:
    """Run the same network with ONNX Runtime's profiler, which gives the shapes and times of its nodes."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "run")
        options.intra_op_num_threads = session.get_session_options().intra_op_num_threads
        profiled = onnxruntime.InferenceSession(session._model_path or session._model_bytes, options)
        profiled.run(None, feeds)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    work = Work()
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") == "Node" and "input_type_shape" in facts:
            inputs = [_shape(entry) for entry in facts["input_type_shape"]]
            outputs = [_shape(entry) for entry in facts["output_type_shape"]]
            work.flop += _onnx_flop(facts["op_name"], [s for s, _ in inputs], [s for s, _ in outputs])
            work.moved_bytes += sum(math.prod(shape) * size for shape, size in (*inputs, *outputs))
            work.seconds[facts["op_name"]] += event["dur"] / 1e6
    return work


def _shape(entry: dict[str, list[int]]) -> tuple[list[int], int]:
    """Of `{"float": [1, 2]}`: the shape, and the bytes per number."""
    ((kind, shape),) = entry.items()
    return shape, {"double": 8, "int64": 8, "float16": 2, "bfloat16": 2, "bool": 1, "int8": 1, "uint8": 1}.get(kind, 4)


def _onnx_flop(kind: str, inputs: list[list[int]], outputs: list[list[int]]) -> float:
    kind = re.sub("^Fused|^DynamicQuantize|Integer$", "", kind)
    if kind in ("Conv", "ConvTranspose"):
        name = {"Conv": "Convolution", "ConvTranspose": "ConvolutionBackpropData"}[kind]
        return convolution_flop(name, inputs[0], inputs[1], math.prod(outputs[0]))
    if kind in ("MatMul", "Gemm"):
        return 2.0 * math.prod(outputs[0]) * inputs[0][-1]
    if kind == "LSTM":  # four gates, of the input and of the state; inputs[1]: (directions, 4 · hidden, input)
        steps, batch = inputs[0][:2]
        return 2.0 * steps * batch * (math.prod(inputs[1]) + math.prod(inputs[2]))
    return 0.0
