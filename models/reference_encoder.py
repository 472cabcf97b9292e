"""Encodes face crops with a tiny VAE: the fast twin of `encode_reference` in models/musetalk.py.

The masked face and the whole face are equal above the mask, and below it every masked face is equally black. An encoder
of plain convolutions needs to compute only the rows between: about a quarter of the masked face.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny
from torch import nn

from models.musetalk import to_images
from models.types import CROP_PX

MASK_TOP = CROP_PX // 2  # the first row of the mask


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of the masked face that one layer computes.

    `start` to `stop`: read at the layer's input; `top` to `bottom` are those that equal neither the whole face's nor
    the black one's. `skipped`: rows at the output's start that miss a neighbour, `kept`: the rows after them.
    """

    start: int
    top: int
    bottom: int
    stop: int
    skipped: int
    kept: int


class ReferenceEncoder(nn.Module):  # type: ignore[misc]
    """Face crops, RGB uint8 `(n, 256, 256, 3)` → latents `(n, 8, 32, 32)`: the masked face's, then the whole's."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.layers = vae.encoder.layers
        self.scaling_factor = float(vae.config.scaling_factor)
        self.rows = list[_Rows]()
        black = torch.zeros(1, 3, CROP_PX, CROP_PX)  # -1, scaled as in `forward`
        top = bottom = MASK_TOP
        with torch.inference_mode():
            for number, layer in enumerate(self.layers):
                height = black.shape[2]
                rows, top, bottom = _rows_of(layer, top, bottom, height)
                self.rows.append(rows)
                self.register_buffer(f"black_{number}", black[:, :, rows.bottom : rows.stop].clone(), persistent=False)
                black = layer(black)
            self.register_buffer("black_latents", black[:, :, bottom:].clone(), persistent=False)
        self.top = top

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        whole = masked = to_images(faces).add(1).div(2)  # (n, 3, 256, 256), as EncoderTiny.forward does
        for number, (layer, rows) in enumerate(zip(self.layers, self.rows, strict=True)):
            read = self._join(whole[:, :, rows.start : rows.top], masked if number else None, f"black_{number}")
            masked = layer(read)[:, :, rows.skipped : rows.skipped + rows.kept]
            whole = layer(whole)
        masked = self._join(whole[:, :, : self.top], masked, "black_latents")
        return torch.cat([masked, whole], dim=1) * self.scaling_factor

    def _join(self, above: torch.Tensor, between: torch.Tensor | None, below: str) -> torch.Tensor:
        """The rows of a masked face, without the parts that have none: OpenVINO cannot join empty ones."""
        black = getattr(self, below).expand(above.shape[0], -1, -1, -1)
        parts = [part for part in (above, between, black) if part is not None and part.shape[2]]
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def convolutions(layer: nn.Module) -> list[nn.Conv2d]:
    """The 3×3 convolutions of a tiny VAE's layer. Each reads one row and column beyond its own."""
    return [part for part in layer.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]


def _rows_of(layer: nn.Module, top: int, bottom: int, height: int) -> tuple[_Rows, int, int]:
    """The rows that a layer reads, given those at its input; and `top` and `bottom` at its output."""
    convs = convolutions(layer)
    reach, stride = len(convs), convs[0].stride[0]
    assert stride == 1 or (stride == 2 and reach == 1), layer
    if stride == 1:
        new_top, new_bottom = max(0, top - reach), min(height, bottom + reach)
        start, stop = max(0, new_top - reach), min(height, new_bottom + reach)
    else:  # output row r reads the rows 2r - 1 to 2r + 1
        new_top, new_bottom = top // 2, min(height // 2, bottom // 2 + 1)
        start, stop = max(0, 2 * new_top - 2), min(height, 2 * new_bottom)
    skipped = new_top - start // stride
    return _Rows(start, top, bottom, stop, skipped, new_bottom - new_top), new_top, new_bottom
