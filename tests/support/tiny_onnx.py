"""Writes small ONNX files for tests as protobuf (onnx.proto, IR version 8), without the onnx package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FLOAT, INT64 = 1, 7  # TensorProto.DataType
INT, INTS = 2, 7  # AttributeProto.AttributeType


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a message: integers as varints, other values with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: npt.NDArray[np.generic]) -> bytes:
    kind = {np.dtype(np.float32): FLOAT, np.dtype(np.int64): INT64}[array.dtype]
    dims = b"".join(field(1, size) for size in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, np.ascontiguousarray(array).tobytes())


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]) -> bytes:
    message = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs)
    message += field(4, kind)
    for name, value in attributes.items():
        if isinstance(value, int):
            body = field(3, value) + field(20, INT)
        else:
            body = b"".join(field(8, item) for item in value) + field(20, INTS)
        message += field(5, field(1, name) + body)
    return message


def value_info(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dims)))


def model(
    nodes: Sequence[bytes],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    initializers: dict[str, npt.NDArray[np.generic]],
) -> bytes:
    """A complete file with opset 13; all inputs and outputs are float32."""
    graph = b"".join(field(1, item) for item in nodes) + field(2, "tiny")
    graph += b"".join(field(5, tensor(name, array)) for name, array in initializers.items())
    graph += b"".join(field(11, value_info(name, shape)) for name, shape in inputs.items())
    graph += b"".join(field(12, value_info(name, shape)) for name, shape in outputs.items())
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))
