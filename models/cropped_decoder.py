"""VAE decoders that compute only the part of the face that is pasted. The slow twin is `Decoder` in models/musetalk.py.

Convolutions can be cropped exactly; a GroupNorm cannot, because its mean and variance are those of the whole picture.
With *given* statistics it is one multiply-add per channel, and the decoder of a KL VAE becomes a plain stack of
convolutions. The statistics come from other mouths of the same frame (models/avatar/decoding.py), so a cropped KL
decoder is an approximation: each mouth has slightly other statistics. A tiny VAE has no norms: its crop is exact.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from models.errors import ConfigError
from models.map_window import WHOLE_FACE, MapWindow
from models.musetalk import to_faces
from models.reference_encoder import convolutions
from models.runtime.fused_pass import Affine, Placed, combine, measured_affine, upsampling_kernel
from models.types import CROP_PX, LATENT_PX, CropWindow

RESNET_REACH = 2  # rows that a resnet reads beyond its own: one per 3×3 convolution
RGB = 3


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


WHOLE_LATENTS = MapWindow((0, LATENT_PX), (0, LATENT_PX), LATENT_PX)


class CroppedDecoder(nn.Module):  # type: ignore[misc]
    """Scaled latents `(n, 4, 32, 32)` → RGB in [0, 255], float, unrounded: the window's `(n, rows, columns, 3)`.

    Every convolution computes only what the next one reads of it, and what lies between two is one pass over memory
    (models/runtime/fused_pass.py). Upsampling is folded into the convolution after it. Made for inference: the weights
    are folded when it is constructed.
    """

    def __init__(self, vae: nn.Module, window: CropWindow = WHOLE_FACE) -> None:
        """Raises ConfigError for another kind of VAE."""
        super().__init__()
        if not isinstance(vae, AutoencoderKL | AutoencoderTiny):
            raise ConfigError(
                f"A {type(vae).__name__} cannot be cropped.",
                "Use decode: full, or an AutoencoderKL or AutoencoderTiny.",
            )
        self.scaling_factor = float(vae.config.scaling_factor)
        self.parts = _KLParts(vae) if isinstance(vae, AutoencoderKL) else _TinyParts(vae)
        self._crop_to(window)

    def at(self, window: CropWindow) -> CroppedDecoder:
        """A decoder of another window, with the same weights in memory."""
        other = copy.copy(self)
        other._crop_to(window)
        return other

    @property
    def statistics_shape(self) -> tuple[int, ...] | None:
        """Of one frame: `(norms, 2, groups)`, or None for a tiny VAE."""
        return (len(self.parts.norms), 2, self.parts.groups) if isinstance(self.parts, _KLParts) else None

    def _crop_to(self, window: CropWindow) -> None:
        self.window = window
        target = MapWindow(window.rows, window.columns, CROP_PX)
        make = _KLPass if isinstance(self.parts, _KLParts) else _TinyPass
        self._pass = make(self.parts, target)

    def forward(self, latents: torch.Tensor, statistics: torch.Tensor | None = None) -> torch.Tensor:
        """statistics: of `decoder_statistics`, `(n, norms, 2, groups)`, for a KL VAE. Without them its norms measure
        the map that they get, which is right only for the whole face."""
        if isinstance(self._pass, _KLPass):
            assert statistics is not None or self.window == WHOLE_FACE, "a cropped KL decoder needs statistics"
            return to_faces(self._pass(latents / self.scaling_factor, statistics))
        return to_faces(self._pass(latents / self.scaling_factor))


@dataclass(frozen=True, slots=True)
class _Raw:
    """What a convolution gave, and what has still to be added to it."""

    y: torch.Tensor
    has: MapWindow
    bias: torch.Tensor | None = None
    residual: tuple[torch.Tensor, MapWindow] | None = None
    shuffled: bool = False  # the result of `upsampling_kernel`

    def combined(
        self, want: MapWindow, affine: Affine | None = None, silu: bool = True, keep: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The window `want` of the sum, and of its activation: see `fused_pass.combine`."""
        residual = None if self.residual is None else _placed(want, *self.residual)
        placed = _placed(want, self.y, self.has)
        return combine(placed, want.shape, self.bias, residual, self.shuffled, affine, silu, keep)

    def value(self, want: MapWindow) -> torch.Tensor:
        value, _ = self.combined(want)
        assert value is not None
        return value


def _placed(want: MapWindow, x: torch.Tensor, has: MapWindow) -> Placed:
    """`x`, which has the window `has`, and where the window `want` begins in it."""
    return x, *want.origin_in(has)


# --- a KL VAE


class _KLParts(nn.Module):  # type: ignore[misc]
    """The decoder of an AutoencoderKL, and its folded weights."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae, self.norms = vae, group_norms(vae.decoder)
        attention = vae.decoder.mid_block.attentions[0]
        layers = (attention.to_q, attention.to_k, attention.to_v)
        weights, biases = [layer.weight.detach() for layer in layers], [layer.bias.detach() for layer in layers]
        factor = weights[0].shape[0] ** -0.5  # of the scores: one head
        self.qkv = torch.cat([weights[0] * factor, *weights[1:]])
        self.qkv_bias = torch.cat([biases[0] * factor, *biases[1:]])
        self.upsampling = [
            upsampling_kernel(block.upsamplers[0].conv.weight.detach()) if block.upsamplers else None
            for block in vae.decoder.up_blocks
        ]
        self.last, self.last_bias = _padded(vae.decoder.conv_out)
        # for every channel of every norm, in a row: where its group's mean is among the numbers of a frame
        sizes = [(norm.num_groups, norm.num_channels // norm.num_groups) for norm in self.norms]
        places = [
            torch.arange(groups).repeat_interleave(size) + 2 * groups * number
            for number, (groups, size) in enumerate(sizes)
        ]
        self.places, self.groups = torch.cat(places).to(self.last.device), sizes[0][0]
        self.weights, self.biases = (
            torch.cat([getattr(norm, name).detach().float() for norm in self.norms]) for name in ("weight", "bias")
        )

    def affine(self, statistics: torch.Tensor) -> Affine:
        """All norms with given statistics: one multiply-add per channel. Scale and shift: `(n, all channels)`."""
        numbers = statistics.float().flatten(1)
        scale = numbers[:, self.places + self.groups] * self.weights
        return scale, self.biases - numbers[:, self.places] * scale


class _Norms:
    """The norms of a pass, in the order in which they are applied."""

    def __init__(self, norms: list[nn.GroupNorm], affine: Affine | None) -> None:
        self._norms, self._affine, self._used, self._channels = norms, affine, 0, 0

    def apply(
        self, raw: _Raw, want: MapWindow, silu: bool = True, keep: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """`raw` in the window, or None if not `keep`, and what the next norm and SiLU make of it."""
        norm, start = self._norms[self._used], self._channels
        self._used, self._channels = self._used + 1, start + norm.num_channels
        value: torch.Tensor | None = None
        if self._affine is not None:
            scale, shift = (part[:, start : self._channels] for part in self._affine)
            value, activated = raw.combined(want, (scale, shift), silu, keep)
        elif keep or raw.residual is not None or raw.shuffled or want != raw.has:
            value = raw.value(want)
            _, activated = _Raw(value, want).combined(want, measured_affine(norm, value, None), silu, keep=False)
        else:
            _, activated = raw.combined(want, measured_affine(norm, raw.y, raw.bias), silu, keep=False)
        assert activated is not None
        return value, activated


class _KLPass:
    """Decodes a window: `(n, 4, 32, 32)` → images `(n, 3, rows, columns)`."""

    def __init__(self, parts: _KLParts, target: MapWindow) -> None:
        self.parts, self._target = parts, target
        decoder, window = parts.vae.decoder, target.grown(1)  # conv_out
        # the resnets of each block with the windows of their results, worked back from the target
        self._blocks = list[list[tuple[nn.Module, MapWindow]]]()
        for block in reversed(decoder.up_blocks):
            window = window.grown(1).before_upsampling() if block.upsamplers else window
            resnets = list[tuple[nn.Module, MapWindow]]()
            for resnet in reversed(block.resnets):
                resnets.insert(0, (resnet, window))
                window = window.grown(RESNET_REACH)
            self._blocks.insert(0, resnets)
        self._middle = window  # of the middle block's result

    def __call__(self, latents: torch.Tensor, statistics: torch.Tensor | None) -> torch.Tensor:
        parts, decoder = self.parts, self.parts.vae.decoder
        norms = _Norms(parts.norms, None if statistics is None else parts.affine(statistics))
        # 1. the middle block, whole up to its attention
        first, second = decoder.mid_block.resnets
        y = _conv(decoder.conv_in, parts.vae.post_quant_conv(latents))
        raw = _resnet(first, _Raw(y, WHOLE_LATENTS, decoder.conv_in.bias), WHOLE_LATENTS, norms)
        raw = _resnet(second, self._attention(raw, norms), self._middle, norms)
        # 2. the blocks that upsample, and the last one
        for number, resnets in enumerate(self._blocks):
            raw = self._upsampled(number - 1, raw) if number else raw
            for resnet, window in resnets:
                raw = _resnet(resnet, raw, window, norms)
        window = self._target.grown(1)
        _, activated = norms.apply(raw, window, keep=False)
        image = self._target.cut_from(F.conv2d(activated, parts.last, padding=1), window)
        return image[:, :RGB] + parts.last_bias

    def _attention(self, raw: _Raw, norms: _Norms) -> _Raw:
        block = self.parts.vae.decoder.mid_block.attentions[0]
        value, normed = norms.apply(raw, raw.has, silu=False)
        assert value is not None
        n, channels, height, width = normed.shape
        tokens = normed.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        query, key, values = F.linear(tokens, self.parts.qkv, self.parts.qkv_bias).chunk(3, dim=2)
        # not F.scaled_dot_product_attention: it has no fast kernel for a head of 512 channels
        mixed = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(dim=2), values)
        y = F.linear(mixed, block.to_out[0].weight).reshape(n, height, width, channels).permute(0, 3, 1, 2)
        return _Raw(y, raw.has, block.to_out[0].bias, (value, raw.has))

    def _upsampled(self, number: int, raw: _Raw) -> _Raw:
        """After block `number`: its upsampling."""
        window = self._blocks[number][-1][1]
        y = F.conv2d(raw.value(window), self.parts.upsampling[number], padding=1)
        bias = self.parts.vae.decoder.up_blocks[number].upsamplers[0].conv.bias
        return _Raw(y, window.upsampled(), bias, shuffled=True)


def _resnet(block: nn.Module, raw: _Raw, out: MapWindow, norms: _Norms) -> _Raw:
    """The window `out` of the block's result. Each convolution computes one row and column more than is right."""
    read, between = out.grown(RESNET_REACH), out.grown(1)
    value, activated = norms.apply(raw, read)
    assert value is not None
    _, activated = norms.apply(_Raw(_conv(block.conv1, activated), read, block.conv1.bias), between, keep=False)
    y, bias = _conv(block.conv2, activated), block.conv2.bias
    if block.conv_shortcut is not None:
        value, bias = _conv(block.conv_shortcut, value), bias + block.conv_shortcut.bias
    return _Raw(y, between, bias, (value, read))


def _conv(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Without the bias, which is added in the next pass."""
    return F.conv2d(x, layer.weight, padding=layer.padding)


def _padded(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel of the layer that gives RGB, with the eight channels that tensor cores need; its bias `(3, 1, 1)`."""
    weight = layer.weight.detach()
    padded = torch.cat([weight, weight.new_zeros(8 - RGB, *weight.shape[1:])])
    return padded.contiguous(memory_format=torch.channels_last), layer.bias.detach()[:, None, None]


# --- a tiny VAE


@dataclass(frozen=True, slots=True)
class _Up:
    """An upsampling and the convolution after it."""

    kernel: torch.Tensor  # of `upsampling_kernel`


class _TinyParts(nn.Module):  # type: ignore[misc]
    """The decoder of an AutoencoderTiny as steps: convolutions with their activation, blocks, and upsamplings."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae
        self.steps = list[tuple[nn.Conv2d, nn.Module] | nn.Module | _Up]()
        *layers, last = vae.decoder.layers
        layers = iter(layers)
        for layer in layers:
            if isinstance(layer, nn.Upsample):
                self.steps.append(_Up(upsampling_kernel(next(layers).weight.detach())))
            else:
                self.steps.append((layer, next(layers)) if isinstance(layer, nn.Conv2d) else layer)
        self.last, self.last_bias = _padded(last)


class _TinyPass:
    """Decodes a window: `(n, 4, 32, 32)` → images `(n, 3, rows, columns)`. A crop follows each upsampling."""

    def __init__(self, parts: _TinyParts, target: MapWindow) -> None:
        self.parts, self._target = parts, target
        self._windows, window = list[MapWindow](), target.grown(1)  # after each upsampling, worked back
        self._last = window
        for step in reversed(parts.steps):
            if isinstance(step, _Up):
                self._windows.insert(0, window)
                window = window.grown(1).before_upsampling()
            else:
                window = window.grown(len(convolutions(step[0] if isinstance(step, tuple) else step)))
        self._windows.insert(0, window)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        has, *windows = self._windows
        x = torch.tanh(latents / 3) * 3  # as DecoderTiny.forward does
        x = has.cut_from(x, WHOLE_LATENTS).contiguous(memory_format=torch.channels_last)
        for step in self.parts.steps:
            if isinstance(step, _Up):
                raw = _Raw(F.conv2d(x, step.kernel, padding=1), has.upsampled(), shuffled=True)
                has, *windows = windows
                x = raw.value(has)
            elif isinstance(step, tuple):
                layer, activation = step
                x = _activated(layer, activation, x)
            else:
                first, one, second, two, third = step.conv
                x = _activated(third, step.fuse, _activated(second, two, _activated(first, one, x)), step.skip(x))
        image = self._target.cut_from(F.conv2d(x, self.parts.last, padding=1), has)[:, :RGB]
        return (image + self.parts.last_bias).mul(2).sub(1)


def _activated(
    layer: nn.Conv2d, activation: nn.Module, x: torch.Tensor, added: torch.Tensor | None = None
) -> torch.Tensor:
    """`activation(layer(x) + added)`: one kernel of cuDNN for a ReLU on CUDA."""
    if x.device.type != "cuda" or not isinstance(activation, nn.ReLU):
        y = layer(x)
        return activation(y if added is None else y + added)
    how = layer.stride, layer.padding, layer.dilation, layer.groups
    if added is None:
        return torch.cudnn_convolution_relu(x, layer.weight, layer.bias, *how)
    return torch.cudnn_convolution_add_relu(x, layer.weight, added, 1.0, layer.bias, *how)
