"""GFPGAN's network with the same numbers in fewer and larger operations: for a GPU, compiled with inductor.

`GFPGANNet` is the slow twin. What differs:

- A 3 × 3 convolution after a bilinear enlargement is one convolution of the small picture with four times the outputs,
  one for each place of a 2 × 2 block (sub-pixel convolution, Shi et al. 2016): the enlarged picture is never written.
- All styles and their demodulation come from one linear layer and one batched product.
- Both condition branches of a level are one convolution each; colours are sums inside the kernel that makes the
  features; the skip connection of a block is convolved before it is enlarged, which commutes.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.restore.gfpgan_net import EPSILON, GAIN, SLOPE, GFPGANNet, ModulatedConv, ResBlock, StyleConv

SUBPIXEL_FROM = 64  # px of the small picture: below, the enlarged one is small too, and its borders a large part of it

# Bilinear enlargement by 2 gives u[2i] = ¼ x[i−1] + ¾ x[i] and u[2i+1] = ¾ x[i] + ¼ x[i+1]. So a kernel k on u is, for
# even and for odd results, a kernel on x: TAPS[parity, tap on x, tap of k].
TAPS = (
    ((0.75, 0.25, 0.0), (0.25, 0.75, 0.75), (0.0, 0.0, 0.25)),
    ((0.25, 0.0, 0.0), (0.75, 0.75, 0.25), (0.0, 0.25, 0.75)),
)
# With zeros beyond the border, u[0] = ¾ x[0] and u[−1] = ¼ x[0]; but they are x[0] and 0. What the first pixel must add
# to its results, and at the other end the last one: ENDS[end, parity, tap of k].
ENDS = (((-0.25, 0.25, 0.0), (0.25, 0.0, 0.0)), ((0.0, 0.0, 0.25), (0.0, 0.25, -0.25)))


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _halve(x: Tensor) -> Tensor:
    """Bilinear reduction by 2: the mean of each 2 × 2 block. As slices, so that inductor reads each value once."""
    return (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) * 0.25


def _last(kernel: Tensor) -> Tensor:
    return kernel.contiguous(memory_format=torch.channels_last)


class Kernel(nn.Module):  # type: ignore[misc]
    """A convolution without a bias, kernel `(out, channels, k, k)`."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", _last(kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=self.kernel.shape[-1] // 2)


class DoubledKernel(Kernel):
    """A convolution of the enlarged picture, which is written."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_double(x))


class SubpixelKernel(nn.Module):  # type: ignore[misc]
    """DoubledKernel from the small picture `(n, channels, s, s)`: kernel `(out, channels, 3, 3)` of the large one."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        taps, ends = (torch.tensor(value, dtype=kernel.dtype, device=kernel.device) for value in (TAPS, ENDS))
        out, channels = kernel.shape[:2]
        full = torch.einsum("pak,qbl,ockl->pqocab", taps, taps, kernel)  # (2, 2, out, channels, 3, 3)
        self.register_buffer("kernel", _last(full.flatten(0, 2)))
        rows = torch.einsum("epk,qbl,ockl->ebcpqo", ends, taps, kernel)  # what the first and the last row add
        columns = torch.einsum("pak,eql,ockl->eacpqo", taps, ends, kernel)
        corners = torch.einsum("epk,fql,ockl->efcpqo", ends, ends, kernel)  # added with the rows
        sides = torch.cat([torch.cat([rows, corners], 1), torch.cat([columns, torch.zeros_like(corners)], 1)])
        self.register_buffer("sides", sides.reshape(4, 5 * channels, 4 * out).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        n, _, side, _ = x.shape
        # 1. every pixel, as if there were zeros beyond the border; channels last
        y = F.conv2d(x, self.kernel, padding=1).permute(0, 2, 3, 1)  # (n, side, side, 4 · out)
        # 2. what the border adds
        lines = torch.stack([x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]]).transpose(2, 3)  # (4, n, side, channels)
        beside = F.pad(lines, (0, 0, 1, 1))
        ends = F.pad(lines[:, :, :1], (0, 0, 0, side - 1)), F.pad(lines[:, :, -1:], (0, 0, side - 1, 0))
        around = torch.cat([beside[:, :, :-2], lines, beside[:, :, 2:], *ends], -1)
        added = torch.bmm(around.flatten(1, 2), self.sides).unflatten(1, (n, side))  # (4, n, side, 4 · out)
        y = (
            y
            + F.pad(added[0][:, None], (0, 0, 0, 0, 0, side - 1))
            + F.pad(added[1][:, None], (0, 0, 0, 0, side - 1, 0))
        )
        y = y + F.pad(added[2][:, :, None], (0, 0, 0, side - 1)) + F.pad(added[3][:, :, None], (0, 0, side - 1, 0))
        # 3. blocks of 2 × 2 to pixels
        y = y.unflatten(3, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * side, 2 * side, -1)
        return cast(Tensor, y.permute(0, 3, 1, 2))


def doubled(kernel: Tensor, side: int) -> nn.Module:
    """Return a convolution of a picture of `side` px that is enlarged by 2 first."""
    return SubpixelKernel(kernel) if side >= SUBPIXEL_FROM else DoubledKernel(kernel)


class FusedBlock(nn.Module):  # type: ignore[misc]
    """ResBlock."""

    def __init__(self, block: ResBlock, side: int) -> None:
        super().__init__()
        self.up = block.factor == 2
        self.first, self.skip = Kernel(block.conv1.weight), Kernel(block.skip.weight)
        self.second = doubled(block.conv2.weight, side) if self.up else Kernel(block.conv2.weight)
        self.register_buffer("first_bias", block.conv1.bias[:, None, None])
        self.register_buffer("second_bias", block.conv2.bias[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        deep = _leaky(self.first(x) + self.first_bias)
        deep = self.second(deep if self.up else _halve(deep))
        shallow = _double(self.skip(x)) if self.up else self.skip(_halve(x))
        return _leaky(deep + self.second_bias) + shallow


class FusedConditions(nn.Module):  # type: ignore[misc]
    """Both condition branches of a level → scale and shift, each `(n, channels, s, s)`."""

    def __init__(self, scale: nn.Sequential, shift: nn.Sequential) -> None:
        super().__init__()
        self.first = Kernel(torch.cat([scale[0].weight, shift[0].weight]))
        self.scale, self.shift = Kernel(scale[2].weight), Kernel(shift[2].weight)
        self.register_buffer("first_bias", torch.cat([scale[0].bias, shift[0].bias])[:, None, None])
        self.register_buffer("scale_bias", scale[2].bias[:, None, None])
        self.register_buffer("shift_bias", shift[2].bias[:, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, two = _leaky(self.first(x) + self.first_bias).chunk(2, 1)
        return self.scale(one) + self.scale_bias, self.shift(two) + self.shift_bias


class FusedStyles(nn.Module):  # type: ignore[misc]
    """The U-Net's lowest features → the scales of every modulated convolution and the gains of those that demodulate.

    Rows are filled up to the widest convolution.
    """

    def __init__(self, net: GFPGANNet) -> None:
        super().__init__()
        convs = [net.stylegan_decoder.style_conv1, *net.stylegan_decoder.style_convs]
        colours = [net.stylegan_decoder.to_rgb1, *net.stylegan_decoder.to_rgbs]
        # style codes: 0 for the first convolution, 1 for its colours, then two per level and one for its colours,
        # which the first convolution of the next level shares
        codes = [*range(len(convs)), *range(1, len(convs) + 1, 2)]
        layers: list[ModulatedConv] = [layer.modulated_conv for layer in (*convs, *colours)]
        self.width, self.layers, self.styled = max(layer.weight.shape[2] for layer in layers), len(layers), len(convs)
        linear = net.final_linear.weight.unflatten(0, (-1, layers[0].modulation.in_features))  # (codes, 512, features)
        bias = net.final_linear.bias.unflatten(0, linear.shape[:2])
        weights, biases, powers = [], [], []
        for layer, code in zip(layers, codes, strict=True):
            missing = self.width - layer.weight.shape[2]
            weights.append(F.pad(layer.modulation.weight @ linear[code], (0, 0, 0, missing)))
            biases.append(F.pad(layer.modulation.weight @ bias[code] + layer.modulation.bias, (0, missing)))
            if layer.demodulate:
                power = layer.weight[0].square().sum((2, 3)).T  # (channels, out)
                powers.append(F.pad(power, (0, self.width - power.shape[1], 0, missing)))
        self.register_buffer("weight", torch.cat(weights))  # (layers · width, features)
        self.biases, self.powers = (nn.Parameter(torch.stack(rows), requires_grad=False) for rows in (biases, powers))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`(n, features)` → fp32 scales `(layers, n, width)`; for the styled ones divided by their largest magnitude,
        whose product with the gain is not applied yet, and gains `(styled, n, width)`."""
        scales = F.linear(features, self.weight).float().unflatten(1, (self.layers, self.width)).transpose(0, 1)
        scales = scales + self.biases[:, None]
        styled = scales[: self.styled]
        largest = styled.abs().amax(2, keepdim=True).clamp_min(EPSILON)
        styled = styled / largest
        power = torch.bmm(styled.square(), self.powers)
        gains = largest * torch.rsqrt(largest.square() * power + EPSILON)
        return torch.cat([styled, scales[self.styled :]]), gains


class FusedStyleConv(nn.Module):  # type: ignore[misc]
    """StyleConv, of features that are scaled already. side: of its input."""

    def __init__(self, conv: StyleConv, noise: Tensor, side: int) -> None:
        super().__init__()
        kernel = conv.modulated_conv.weight[0]
        self.conv = doubled(kernel, side) if conv.upsample else Kernel(kernel)
        self.register_buffer("added", conv.weight * noise)  # (1, 1, s, s)
        self.register_buffer("bias", conv.bias)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """gain: fp32 `(n, out)`."""
        out = self.conv(x) * (gain * GAIN)[:, :, None, None].to(x.dtype)
        return _leaky(out + self.added + self.bias)


class FusedGFPGAN(nn.Module):  # type: ignore[misc]
    """GFPGANNet's function, from its weights in fp32; `dtype` of the operations. The weights are copied."""

    def __init__(self, net: GFPGANNet, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.no_grad():
            decoder = net.stylegan_decoder
            self.register_buffer("first", net.conv_body_first.weight)  # (out, 3, 1, 1)
            self.register_buffer("first_bias", net.conv_body_first.bias[:, None, None])
            self.down = nn.ModuleList(FusedBlock(block, 0) for block in net.conv_body_down)
            self.lowest = Kernel(net.final_conv.weight)
            self.register_buffer("lowest_bias", net.final_conv.bias[:, None, None])
            self.up = nn.ModuleList(FusedBlock(block, 4 << k) for k, block in enumerate(net.conv_body_up))
            self.conditions = nn.ModuleList(map(FusedConditions, net.condition_scale, net.condition_shift))
            self.styles = FusedStyles(net)
            self.register_buffer("constant", decoder.constant_input.weight)
            convs = [decoder.style_conv1, *decoder.style_convs]
            self.convs = nn.ModuleList(
                FusedStyleConv(conv, decoder.noises[k], 4 << max(0, k - 1) // 2) for k, conv in enumerate(convs)
            )
            colours = [decoder.to_rgb1, *decoder.to_rgbs]
            self.colours = nn.ParameterList(
                nn.Parameter(layer.modulated_conv.weight[0, :, :, 0, 0].float(), requires_grad=False)
                for layer in colours
            )  # (3, channels)
            self.colour_biases = nn.Parameter(torch.stack([layer.bias for layer in colours]), requires_grad=False)
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):  # the parameters stay in fp32: sums and roots
                setattr(module, name, buffer.to(dtype, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """RGB `(n, 3, 512, 512)` in [-1, 1], any float type → the restored RGB in fp32."""
        # 1. down, keeping each level's features
        x = x.to(self.first.dtype)
        x = sum(x[:, k : k + 1] * self.first[:, k] for k in range(3)) + self.first_bias
        x, skips = _leaky(x), []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = _leaky(self.lowest(x) + self.lowest_bias)
        # 2. scales and gains of every convolution
        scales, gains = self.styles(x.flatten(1))
        # 3. the lowest level
        features, image = self._styled(0, self.constant, scales, gains), None
        # 4. level by level: the U-Net's features, their conditions, two convolutions, colours
        for k, (up, conditions) in enumerate(zip(self.up, self.conditions, strict=True)):
            image = self._coloured(k, features, scales, image)
            x = up(x + skips.pop())
            scale, shift = conditions(x)
            features = self._styled(2 * k + 1, features, scales, gains)
            same = (0, 0, 0, 0, features.shape[1] - scale.shape[1], 0)  # the first channels, which stay the same
            features = features * F.pad(scale, same, value=1.0) + F.pad(shift, same)
            features = self._styled(2 * k + 2, features, scales, gains)
        return self._coloured(len(self.up), features, scales, image)

    def _styled(self, k: int, x: Tensor, scales: Tensor, gains: Tensor) -> Tensor:
        conv = self.convs[k]
        scaled = x * scales[k, :, : x.shape[1], None, None].to(x.dtype)
        return cast(Tensor, conv(scaled, gains[k, :, : conv.bias.shape[1]]))

    def _coloured(self, k: int, x: Tensor, scales: Tensor, below: Tensor | None) -> Tensor:
        """Colours `(n, 3, s, s)` in fp32, from features `(n, channels, s, s)`, added to those of the level below."""
        kernel = self.colours[k] * scales[len(self.convs) + k, :, None, : x.shape[1]]  # (n, 3, channels)
        colours = [(x.float() * kernel[:, c, :, None, None]).sum(1) for c in range(3)]
        image = torch.stack(colours, 1) + self.colour_biases[k]
        return image if below is None else image + _double(below)
