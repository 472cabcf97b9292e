"""Crops a decoder that is an OpenVINO network: it computes only what a window of its picture needs.

The network is changed, not traced again, so torch is not imported, and a new window is compiled in a fifth of a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.errors import ConfigError
from models.map_window import MapWindow
from models.runtime.openvino_cache import import_openvino

PARAMETERS = ("Parameter", "Constant", "Result")
POINTWISE = ("Add", "Subtract", "Multiply", "Divide", "Relu", "Tanh", "Clamp", "Round", "Convert", "Transpose")


def crop_decoder(model: Any, target: MapWindow) -> Any:
    """A copy of `model` that gives only the window `target` of its pictures.

    model: latents `(n, c, h, w)` → pictures `(n, size, size, 3)`. It is a chain of convolutions of stride 1 whose
    borders are padded, residuals beside them, and nearest-neighbour upsamplings by two. After each upsampling, the
    rows and columns that no later convolution reads are cut off. Raises ConfigError for another network.
    """
    model = model.clone()
    operations = model.get_ordered_ops()
    # 1. the window after each upsampling, and of the latents, worked back from the target
    entries, window, reach = list[tuple[Any, MapWindow]](), target, 0
    for operation in reversed(operations):
        kind = operation.get_type_name()
        if kind == "Convolution":
            reach += _reach(operation)
        elif kind in ("Interpolate", "Parameter"):
            window, reach = window.grown(reach), 0
            entries.insert(0, (operation, window))
            window = window if kind == "Parameter" else _before(operation, window)
        elif kind not in (*POINTWISE, *PARAMETERS):
            raise ConfigError(f"The decoder cannot be cropped: it contains {kind}.", "Use decode: full.")
    # 2. cut there
    has = MapWindow((0, window.size), (0, window.size), window.size)
    for operation, wanted in entries:
        has = has if operation.get_type_name() == "Parameter" else has.upsampled()
        _cut(operation.output(0), has, wanted, rows_axis=2)
        has = wanted
    (result,) = model.get_results()
    _cut(result.input(0).get_source_output(), has, target, rows_axis=1)
    model.validate_nodes_and_infer_types()
    return model


def _reach(convolution: Any) -> int:
    """Rows and columns that it reads on every side of a pixel."""
    settings, kernel = convolution.get_attributes(), list(convolution.input(1).get_shape())[2:]
    reach = int(kernel[0]) // 2
    padding = {*settings["pads_begin"], *settings["pads_end"]}
    if {*settings["strides"], *settings["dilations"]} != {1} or padding != {reach} or kernel != [2 * reach + 1] * 2:
        raise ConfigError(f"The decoder cannot be cropped: a convolution has {settings}.", "Use decode: full.")
    return reach


def _before(upsampling: Any, window: MapWindow) -> MapWindow:
    """The window that it reads."""
    shapes = [list(port.get_partial_shape())[2:] for port in (upsampling.input(0), upsampling.output(0))]
    before, after = ([side.get_length() for side in shape] for shape in shapes)
    if upsampling.get_attributes()["mode"] != "nearest" or after != [2 * side for side in before]:
        raise ConfigError(f"The decoder cannot be cropped: it enlarges {before} to {after}.", "Use decode: full.")
    return window.before_upsampling()


def _cut(output: Any, has: MapWindow, wanted: MapWindow, rows_axis: int) -> None:
    """Give what reads `output`, a map of the window `has`, only the window `wanted` of it."""
    if wanted == has:
        return
    operators = import_openvino().opset13
    readers = output.get_target_inputs()
    start = wanted.origin_in(has)
    stop = tuple(first + length for first, length in zip(start, wanted.shape, strict=True))
    axes = (rows_axis, rows_axis + 1)
    arguments = [operators.constant(np.array(values, np.int64)) for values in (start, stop, (1, 1), axes)]
    part = operators.slice(output, *arguments).output(0)
    for reader in readers:
        reader.replace_source_output(part)
