"""GFPGAN's network in as few passes over memory as possible: for CUDA. `GFPGANNet` is the slow twin.

Convolutions are cuDNN's; all that lies between two of them is one kernel (models/restore/gfpgan_passes.py). The weights
are folded when it is constructed:

- All style codes, their modulations and demodulations come from one linear layer and one batched product.
- The first convolutions of both condition branches of a level are one.
- A reduction and the 1 × 1 skip connection after it are one 2 × 2 convolution of stride 2. A skip connection is
  convolved before it is enlarged, which commutes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.restore.gfpgan_net import EPSILON, GAIN, SLOPE, GFPGANNet, ModulatedConv, ResBlock, StyleConv, ToRGB
from models.restore.gfpgan_passes import Colours, Condition, first_features, joined, resized, split_activation, styled


class FusedGFPGAN:
    """Made for inference on the device and in the dtype of `net`, whose weights it shares where they are not folded."""

    def __init__(self, net: GFPGANNet) -> None:
        with torch.inference_mode():
            self._fold(net)

    def _fold(self, net: GFPGANNet) -> None:
        decoder = net.stylegan_decoder
        self._net = net
        self._first = net.conv_body_first.weight[:, :, 0, 0].contiguous()
        self._down = [_Block(block) for block in net.conv_body_down]
        self._up = [_Block(block) for block in net.conv_body_up]
        self._conditions = [_Conditions(*pair) for pair in zip(net.condition_scale, net.condition_shift, strict=True)]
        convs: list[StyleConv] = [decoder.style_conv1, *decoder.style_convs]
        colours: list[ToRGB] = [decoder.to_rgb1, *decoder.to_rgbs]
        self._styles = _Styles(net, [conv.modulated_conv for conv in convs], [one.modulated_conv for one in colours])
        self._convs = [_StyleConv(conv, decoder.noises[k]) for k, conv in enumerate(convs)]
        self._colours = [
            (layer.modulated_conv.weight[0, :, :, 0, 0].float().contiguous(), layer.bias.float().flatten())
            for layer in colours
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """RGB `(n, 3, 512, 512)` in [-1, 1], float32 → the restored RGB in float32."""
        net = self._net
        # 1. down to 4 px, keeping each level's features
        x, skips = first_features(x, self._first, net.conv_body_first.bias), list[Tensor]()
        for down in self._down:
            x, _ = down(x)
            skips.append(x)
        x = F.leaky_relu(net.final_conv(x), SLOPE)
        # 2. what the style codes multiply
        scales, gains = self._styles(x)
        # 3. the lowest level
        constant = net.stylegan_decoder.constant_input.weight * scales[0, :, :, None, None]
        features = constant.to(x.dtype).contiguous(memory_format=torch.channels_last)  # scaled, as all below
        features, image = self._styled(0, features, scales, gains, colours=(0, None))
        # 4. level by level: the U-Net's features and their conditions, two convolutions, colours
        total: Tensor | None = x + skips.pop()
        for k, (up, conditions) in enumerate(zip(self._up, self._conditions, strict=True)):
            x, total = up(total, skips.pop() if skips else None)
            condition, first = conditions(x), 2 * k + 1
            features, _ = self._styled(first, resized(features, 2), scales, gains, condition=condition)
            features, image = self._styled(first + 1, features, scales, gains, colours=(k + 1, image))
        return image

    def _styled(
        self,
        k: int,
        x: Tensor,
        scales: Tensor,
        gains: Tensor,
        condition: Condition | None = None,
        colours: tuple[int, Tensor | None] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Style convolution `k` of scaled features: its features, scaled for the next one, and its colours."""
        conv, count, channels = self._convs[k], len(self._convs), self._convs[k].kernel.shape[0]
        onto = scales[k + 1, :, :channels] if k + 1 < count else None
        paint = None
        if colours is not None:
            number, below = colours
            paint = Colours(*self._colours[number], scales[count + number, :, :channels], below)
        y = F.conv2d(x, conv.kernel, padding=1)
        return styled(y, gains[k, :, :channels], conv.noise, conv.bias, condition, paint, onto)


class _Block:
    """ResBlock."""

    def __init__(self, block: ResBlock) -> None:
        self._factor, self._first, self._second = block.factor, block.conv1, block.conv2
        self._skip, self._stride = block.skip.weight, 1
        if block.factor < 1:
            self._skip, self._stride = _last((block.skip.weight / 4).expand(-1, -1, 2, 2)), 2

    def __call__(self, x: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The block's result, and its sum with `added`."""
        deep = resized(F.conv2d(x, self._first.weight, padding=1), self._factor, self._first.bias)
        shallow = F.conv2d(x, self._skip, stride=self._stride)
        return joined(F.conv2d(deep, self._second.weight, padding=1), self._second.bias, shallow, added)


class _Conditions:
    """Both condition branches of a level."""

    def __init__(self, scale: nn.Sequential, shift: nn.Sequential) -> None:
        self._first = _last(torch.cat([scale[0].weight, shift[0].weight]))
        self._bias = torch.cat([scale[0].bias, shift[0].bias])
        self._scale, self._shift = scale[2], shift[2]

    def __call__(self, x: Tensor) -> Condition:
        one, two = split_activation(F.conv2d(x, self._first, padding=1), self._bias)
        scale, shift = (
            F.conv2d(half, last.weight, padding=1) for half, last in ((one, self._scale), (two, self._shift))
        )
        return Condition(scale, self._scale.bias, shift, self._shift.bias)


class _StyleConv:
    def __init__(self, conv: StyleConv, noise: Tensor) -> None:
        self.kernel, self.bias = conv.modulated_conv.weight[0], conv.bias.flatten()
        self.noise = (conv.weight.float() * noise.float())[0, 0].contiguous()  # (h, w)


class _Styles:
    """The U-Net's lowest features → the scales of all modulated convolutions, and the gains of those that demodulate.

    Rows are filled up to the widest convolution.
    """

    def __init__(self, net: GFPGANNet, convs: list[ModulatedConv], colours: list[ModulatedConv]) -> None:
        # style codes: 0 for the first convolution, 1 for its colours, then two per level and one for its colours, which
        # the first convolution of the next level shares
        codes = [*range(len(convs)), *range(1, len(convs) + 1, 2)]
        layers = convs + colours
        self._layers, self._styled = len(layers), len(convs)
        self._width = max(layer.weight.shape[2] for layer in layers)
        features = layers[0].modulation.in_features
        linear = net.final_linear.weight.float().unflatten(0, (-1, features))  # (codes, 512, values)
        bias = net.final_linear.bias.float().unflatten(0, (-1, features))
        weights, biases, powers = list[Tensor](), list[Tensor](), list[Tensor]()
        for layer, code in zip(layers, codes, strict=True):
            missing, modulation = self._width - layer.weight.shape[2], layer.modulation.weight.float()
            weights.append(F.pad(modulation @ linear[code], (0, 0, 0, missing)))
            biases.append(F.pad(modulation @ bias[code] + layer.modulation.bias.float(), (0, missing)))
            if layer.demodulate:
                power = layer.weight[0].float().square().sum((2, 3)).T  # (channels, out)
                powers.append(F.pad(power, (0, self._width - power.shape[1], 0, missing)))
        self._weight = torch.cat(weights).to(net.final_linear.weight.dtype)  # (layers · width, values)
        self._biases, self._powers = torch.stack(biases)[:, None], torch.stack(powers)

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`(n, c, 4, 4)` → float32 scales `(layers, n, width)` and gains `(styled, n, width)`.

        Scales of a layer that demodulates are divided by their largest magnitude, so that fp16 does not overflow; its
        gains make up for that.
        """
        product = F.linear(features.flatten(1), self._weight).float()
        scales = product.unflatten(1, (self._layers, self._width)).transpose(0, 1) + self._biases
        styles = scales[: self._styled]
        largest = styles.abs().amax(2, keepdim=True).clamp_min(EPSILON)
        styles = styles / largest
        power = torch.bmm(styles.square(), self._powers)
        gains = GAIN * largest * torch.rsqrt(largest.square() * power + EPSILON)
        return torch.cat([styles, scales[self._styled :]]), gains


def _last(kernel: Tensor) -> Tensor:
    return kernel.contiguous(memory_format=torch.channels_last)
