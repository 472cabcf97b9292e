"""VAE decoders that compute only the part of the face that is pasted. The slow twin is `Decoder` in models/musetalk.py.

Convolutions can be cropped exactly; a GroupNorm cannot, because its mean and variance are those of the whole picture.
With *given* statistics it is one multiply-add per channel, and the decoder of a KL VAE becomes a plain stack of
convolutions. The statistics come from decoding the avatar's own frame, so a cropped KL decoder is an approximation:
another mouth has slightly other statistics. A tiny VAE has no norms: its crop is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from models.errors import ConfigError
from models.musetalk import to_faces
from models.reference_encoder import convolutions
from models.types import CROP_PX, LATENT_PX, CropWindow, Span

RESNET_REACH = 2  # rows that a resnet reads beyond its own: one per 3×3 convolution


@dataclass(frozen=True, slots=True)
class _Window:
    """A window of a feature map whose sides are `size`."""

    rows: Span
    columns: Span
    size: int

    def grown(self, reach: int) -> _Window:
        """With `reach` more rows and columns on every side, as far as there are any."""
        rows, columns = ((max(0, a - reach), min(self.size, b + reach)) for a, b in (self.rows, self.columns))
        return _Window(rows, columns, self.size)

    def before_upsampling(self) -> _Window:
        """What a nearest-neighbour upsampling by two reads."""
        rows, columns = ((a // 2, -(-b // 2)) for a, b in (self.rows, self.columns))
        return _Window(rows, columns, self.size // 2)

    def upsampled(self) -> _Window:
        rows, columns = ((2 * a, 2 * b) for a, b in (self.rows, self.columns))
        return _Window(rows, columns, self.size * 2)

    def cut_from(self, x: torch.Tensor, has: _Window) -> torch.Tensor:
        """This window of `x`, `(n, c, h, w)`, which has the window `has`."""
        (top, bottom), (left, right) = self.rows, self.columns
        y, z = has.rows[0], has.columns[0]
        return x[:, :, top - y : bottom - y, left - z : right - z]


def group_norms(decoder: nn.Module) -> list[nn.GroupNorm]:
    """The norms of a KL decoder in the order in which they are applied: 30 in Stable Diffusion's."""
    norms = list[nn.GroupNorm]()
    middle = decoder.mid_block
    for resnet in (middle.resnets[0], middle.attentions[0], middle.resnets[1]):
        norms += [resnet.group_norm] if hasattr(resnet, "group_norm") else [resnet.norm1, resnet.norm2]
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            norms += [resnet.norm1, resnet.norm2]
    return [*norms, decoder.conv_norm_out]


def decoder_statistics(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Mean and reciprocal deviation of every group while these scaled latents `(n, 4, 32, 32)` are decoded.

    Returns float32 `(n, norms, 2, groups)`: for Stable Diffusion's VAE 1,920 numbers per frame.
    """
    norms = group_norms(vae.decoder)
    found: dict[nn.Module, torch.Tensor] = {}

    def measure(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        groups = inputs[0].float().reshape(len(inputs[0]), norm.num_groups, -1)  # (n, groups, values)
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        found[norm] = torch.stack([mean, (variance + norm.eps).rsqrt()], dim=1)  # (n, 2, groups)

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with torch.inference_mode():
            vae.decode(latents / vae.config.scaling_factor, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([found[norm] for norm in norms], dim=1)


class CroppedDecoder(nn.Module):  # type: ignore[misc]
    """Scaled latents `(n, 4, 32, 32)` → RGB in [0, 255], float, unrounded: the window's `(n, rows, columns, 3)`.

    statistics: of `decoder_statistics`, `(n, norms, 2, groups)`, for a KL VAE; a tiny VAE takes none.
    """

    def __init__(self, vae: nn.Module, window: CropWindow) -> None:
        """Raises ConfigError for another kind of VAE."""
        super().__init__()
        if not isinstance(vae, AutoencoderKL | AutoencoderTiny):
            raise ConfigError(
                f"A {type(vae).__name__} cannot be cropped.",
                "Use decoder: full, or an AutoencoderKL or AutoencoderTiny.",
            )
        self.vae, self.window = vae, window
        self.scaling_factor = float(vae.config.scaling_factor)
        self._whole = _Window((0, LATENT_PX), (0, LATENT_PX), LATENT_PX)
        self._target = _Window(window.rows, window.columns, CROP_PX)
        # planned here, so that torch.compile sees one graph
        if isinstance(vae, AutoencoderKL):
            self._norms, self._windows = group_norms(vae.decoder), self._needed()
        else:
            self._parts = self._tiny_parts()

    def forward(self, latents: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        scaled = latents / self.scaling_factor
        image = self._decode_tiny(scaled) if isinstance(self.vae, AutoencoderTiny) else self._decode(scaled, statistics)
        return to_faces(image)

    # --- a KL VAE

    def _decode(self, latents: torch.Tensor, statistics: torch.Tensor | None) -> torch.Tensor:
        assert statistics is not None, "a KL decoder needs the statistics of the avatar's frames"
        decoder = self.vae.decoder
        affine = [_affine(norm, statistics[:, number]) for number, norm in enumerate(self._norms)]
        x = decoder.conv_in(self.vae.post_quant_conv(latents))
        x = _resnet(decoder.mid_block.resnets[0], x, *affine[:2])
        x = _attention(decoder.mid_block.attentions[0], x, affine[2])
        x = _resnet(decoder.mid_block.resnets[1], x, *affine[3:5])
        has, used = self._whole, 5
        for block, needed in zip(decoder.up_blocks, self._windows, strict=True):
            x, has = needed.cut_from(x, has), needed
            for resnet in block.resnets:
                x, used = _resnet(resnet, x, *affine[used : used + 2]), used + 2
            for upsampler in block.upsamplers or ():
                x, has = upsampler.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), has.upsampled()
        x = decoder.conv_out(F.silu(_normed(x, affine[used])))
        return self._target.cut_from(x, has)

    def _needed(self) -> list[_Window]:
        """The window that each block reads, worked back from the result."""
        windows, window = list[_Window](), self._target.grown(1)  # conv_out
        for block in reversed(self.vae.decoder.up_blocks):
            if block.upsamplers:
                window = window.grown(1).before_upsampling()
            window = window.grown(RESNET_REACH * len(block.resnets))
            windows.insert(0, window)
        return windows

    # --- a tiny VAE

    def _decode_tiny(self, latents: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(latents / 3) * 3  # as DecoderTiny.forward does
        has = self._whole
        for layers, needed in self._parts:
            x, has = needed.cut_from(x, has), needed
            for layer in layers:
                x = layer(x)
                has = has.upsampled() if isinstance(layer, nn.Upsample) else has
        return self._target.cut_from(x, has).mul(2).sub(1)

    def _tiny_parts(self) -> list[tuple[list[nn.Module], _Window]]:
        """The layers between two crops, with the window that they read: a crop follows each upsampling."""
        parts, layers, window = list[tuple[list[nn.Module], _Window]](), list[nn.Module](), self._target
        for layer in reversed(self.vae.decoder.layers):
            if isinstance(layer, nn.Upsample):
                parts.insert(0, (layers, window))
                layers, window = [], window.before_upsampling()
            layers.insert(0, layer)
            window = window.grown(len(convolutions(layer)))
        return [(layers, window), *parts]


Affine = tuple[torch.Tensor, torch.Tensor]  # scale and shift, each (n, channels, 1, 1)


def _affine(norm: nn.GroupNorm, statistics: torch.Tensor) -> Affine:
    """A norm with given statistics `(n, 2, groups)`: one multiply-add per channel."""
    size = norm.num_channels // norm.num_groups
    mean, factor = statistics.float().repeat_interleave(size, dim=2).unbind(1)  # each (n, channels)
    scale = factor * norm.weight.float()
    return scale[:, :, None, None], (norm.bias.float() - mean * scale)[:, :, None, None]


def _normed(x: torch.Tensor, affine: Affine) -> torch.Tensor:
    scale, shift = affine
    return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def _resnet(block: nn.Module, x: torch.Tensor, first: Affine, second: Affine) -> torch.Tensor:
    h = block.conv1(F.silu(_normed(x, first)))
    h = block.conv2(F.silu(_normed(h, second)))
    return h + (x if block.conv_shortcut is None else block.conv_shortcut(x))


def _attention(block: nn.Module, x: torch.Tensor, affine: Affine) -> torch.Tensor:
    n, channels, height, width = x.shape
    tokens = _normed(x, affine).flatten(2).transpose(1, 2)  # (n, h·w, channels), one head
    query, key, value = (layer(tokens)[:, None] for layer in (block.to_q, block.to_k, block.to_v))
    mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
    return x + block.to_out[0](mixed).transpose(1, 2).reshape(n, channels, height, width)
