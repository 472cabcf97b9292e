"""The network of GFPGAN v1.3 and v1.4: a U-Net that conditions a StyleGAN2 decoder.

Wang et al. 2021, "Towards Real-World Blind Face Restoration with Generative Facial Prior", in the "clean" form (plain
torch operations) and with the settings of the released weights: 512 px, 512 style features, channel multiplier 2, one
style code per layer directly from the U-Net (so the weights of the mapping network `style_mlp` are never read), and
spatial feature transform (SFT) on half of the channels. Module names are the keys of `params_ema`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STYLE_FEATURES = 512
LOG_SIZE = 9  # log2 of 512 px
LEVELS = range(3, LOG_SIZE + 1)  # 8 px to 512 px
CHANNELS = {
    2: 512,
    3: 512,
    4: 512,
    5: 512,
    6: 512,
    7: 256,
    8: 128,
    9: 64,
}  # of the decoder, by log2 of the side; multiplier 2
MAPPING_LAYERS = 8
NOISES = 2 * (LOG_SIZE - 2) + 1  # one per style convolution: one at 4 px, two at each level
STYLES = 2 * LOG_SIZE - 2  # 16 style codes: two per level, and one for the last level's colour
SLOPE = 0.2  # of every leaky ReLU
EPSILON = 1e-8  # under the root of demodulation
GAIN = 2**0.5  # of a style convolution: replaces StyleGAN2's scaled activation in the clean form


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _resize(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class ResBlock(nn.Module):  # type: ignore[misc]
    """Two convolutions with a bilinear resize between them, and a resized 1 × 1 skip connection."""

    def __init__(self, channels: int, out: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        deep = _leaky(self.conv2(_resize(_leaky(self.conv1(x)), self.factor)))
        # the two commute, and the small picture has a quarter of the pixels
        shallow: Tensor = self.skip(_resize(x, self.factor)) if self.factor < 1 else _resize(self.skip(x), self.factor)
        return deep + shallow


class ModulatedConv(nn.Module):  # type: ignore[misc]
    """StyleGAN2's modulated convolution (Karras et al. 2020), without a bias.

    The style scales the input's channels instead of the weights, which gives the same sum, and all faces of a batch
    share one convolution. Styles are divided by their largest magnitude and the output is multiplied by it, in fp32, so
    that fp16 does not overflow.
    """

    def __init__(self, channels: int, out: int, side: int, demodulate: bool) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.modulation = nn.Linear(STYLE_FEATURES, channels)
        self.weight = nn.Parameter(torch.empty(1, out, channels, side, side))

    def forward(self, x: Tensor, style: Tensor, upsample: bool = False) -> Tensor:
        scales = self.modulation(style).float()  # (n, channels)
        largest = scales.abs().amax(1, keepdim=True).clamp_min(EPSILON)  # (n, 1)
        scales = scales / largest
        kernel = self.weight[0]  # (out, channels, side, side)
        gain = largest
        if self.demodulate:
            power = kernel.float().square().sum((2, 3))  # (out, channels)
            gain = largest * torch.rsqrt(largest.square() * (scales.square() @ power.T) + EPSILON)  # (n, out)
        x = x * scales.to(x.dtype)[:, :, None, None]
        if upsample:  # after the scaling: the two commute
            x = _resize(x, 2)
        out: Tensor = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return out * gain.to(x.dtype)[:, :, None, None]


class StyleConv(nn.Module):  # type: ignore[misc]
    """Modulated 3 × 3 convolution, noise, bias, leaky ReLU."""

    def __init__(self, channels: int, out: int, upsample: bool = False) -> None:
        super().__init__()
        self.upsample = upsample
        self.modulated_conv = ModulatedConv(channels, out, 3, demodulate=True)
        self.weight = nn.Parameter(torch.empty(1))  # strength of the noise
        self.bias = nn.Parameter(torch.empty(1, out, 1, 1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        out = self.modulated_conv(x, style, self.upsample) * GAIN
        return _leaky(out + self.weight * noise + self.bias)


class ToRGB(nn.Module):  # type: ignore[misc]
    """Features → colours, added to the upsampled colours of the level below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv(channels, 3, 1, demodulate=False)
        self.bias = nn.Parameter(torch.empty(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, below: Tensor | None = None) -> Tensor:
        out: Tensor = self.modulated_conv(x, style) + self.bias
        return out if below is None else out + _resize(below, 2)


class ConstantInput(nn.Module):  # type: ignore[misc]
    """The learned 4 × 4 input that every face starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, 4, 4))


class Noises(nn.Module):  # type: ignore[misc]
    """The stored noise of each style convolution: `noise0` at 4 px, then two per level."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(NOISES):
            side = 2 ** ((index + 5) // 2)
            self.register_buffer(f"noise{index}", torch.empty(1, 1, side, side))

    def __getitem__(self, index: int) -> Tensor:
        noise: Tensor = getattr(self, f"noise{index}")
        return noise


class StyleDecoder(nn.Module):  # type: ignore[misc]
    """StyleGAN2's generator; the U-Net scales and shifts half of each level's channels (SFT)."""

    def __init__(self, channels: Mapping[int, int]) -> None:
        super().__init__()
        mapping = [nn.Linear(STYLE_FEATURES, STYLE_FEATURES) for _ in range(MAPPING_LAYERS)]
        # Keys style_mlp.1, .3 … .15: index 0 is a normalisation, and an activation follows each layer.
        self.style_mlp = nn.Sequential(nn.Identity(), *(part for layer in mapping for part in (layer, nn.Identity())))
        self.constant_input = ConstantInput(channels[2])
        self.style_conv1 = StyleConv(channels[2], channels[2])
        self.to_rgb1 = ToRGB(channels[2])
        self.style_convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for level in LEVELS:
            self.style_convs.append(StyleConv(channels[level - 1], channels[level], upsample=True))
            self.style_convs.append(StyleConv(channels[level], channels[level]))
            self.to_rgbs.append(ToRGB(channels[level]))
        self.noises = Noises()

    def forward(self, styles: Tensor, scales: list[Tensor], shifts: list[Tensor]) -> Tensor:
        """styles `(n, 16, 512)`; scales and shifts from 8 px to 512 px → RGB `(n, 3, 512, 512)`."""
        x = self.constant_input.weight.expand(len(styles), -1, -1, -1)
        x = self.style_conv1(x, styles[:, 0], self.noises[0])
        image: Tensor = self.to_rgb1(x, styles[:, 1])
        for k, (scale, shift, to_rgb) in enumerate(zip(scales, shifts, self.to_rgbs, strict=True)):
            first = 2 * k + 1  # of this level's noises and style codes
            x = self.style_convs[2 * k](x, styles[:, first], self.noises[first])
            same, guided = x.chunk(2, dim=1)
            x = torch.cat([same, guided * scale + shift], 1)
            x = self.style_convs[2 * k + 1](x, styles[:, first + 1], self.noises[first + 1])
            image = to_rgb(x, styles[:, first + 2], image)
        return image


def _condition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(channels, channels, 3, padding=1)
    )


class GFPGANNet(nn.Module):  # type: ignore[misc]
    """RGB `(n, 3, 512, 512)` in [-1, 1] → the restored RGB, nominally in [-1, 1], unclipped.

    channels: of the decoder, by log2 of the side, all even. The released weights have CHANNELS.
    """

    def __init__(self, channels: Mapping[int, int] = CHANNELS) -> None:
        super().__init__()
        half = {level: count // 2 for level, count in channels.items()}  # of the U-Net, and the part that SFT changes
        self.conv_body_first = nn.Conv2d(3, half[LOG_SIZE], 1)
        self.conv_body_down = nn.ModuleList(ResBlock(half[k], half[k - 1], 0.5) for k in reversed(LEVELS))
        self.final_conv = nn.Conv2d(half[2], half[2], 3, padding=1)
        self.conv_body_up = nn.ModuleList(ResBlock(half[k - 1], half[k], 2) for k in LEVELS)
        self.toRGB = nn.ModuleList(nn.Conv2d(half[k], 3, 1) for k in LEVELS)  # for training only
        self.final_linear = nn.Linear(half[2] * 4 * 4, STYLES * STYLE_FEATURES)
        self.stylegan_decoder = StyleDecoder(channels)
        self.condition_scale = nn.ModuleList(_condition(half[k]) for k in LEVELS)
        self.condition_shift = nn.ModuleList(_condition(half[k]) for k in LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        # 1. down to 4 px, keeping each level's features
        x, skips = _leaky(self.conv_body_first(x)), []
        for down in self.conv_body_down:
            x = down(x)
            skips.append(x)
        x = _leaky(self.final_conv(x))  # (n, 256, 4, 4)
        # 2. the style codes, from channels-first order in any memory format
        styles = self.final_linear(x.flatten(1)).view(len(x), STYLES, STYLE_FEATURES)
        # 3. up again: scale and shift for each level
        scales, shifts = [], []
        parts = zip(self.conv_body_up, reversed(skips), self.condition_scale, self.condition_shift, strict=True)
        for up, skip, scale, shift in parts:
            x = up(x + skip)
            scales.append(scale(x))
            shifts.append(shift(x))
        image: Tensor = self.stylegan_decoder(styles, scales, shifts)
        return image


def channels_last(net: GFPGANNet) -> GFPGANNet:
    """Lay out every kernel channels-last, also those of modulated convolutions, `(1, out, in, k, k)`."""
    for parameter in net.parameters():
        kernel = parameter.data[0] if parameter.ndim == 5 else parameter.data
        if kernel.ndim == 4:
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            parameter.data = kernel[None] if parameter.ndim == 5 else kernel
    return net
