"""BiSeNet on ResNet-18, with the keys of `79999_iter.pth` of zllrunning/face-parsing.PyTorch.

Yu et al. 2018; the spatial path is replaced by the ResNet's features at an eighth of the size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 19  # of CelebAMask-HQ
WIDTH = 64  # channels of the first layer in the released file; all others are multiples of it


class ConvBnRelu(nn.Module):  # type: ignore[misc]
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):  # type: ignore[misc]
    """ResNet's block of two 3 × 3 convolutions (He et al. 2015)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):  # type: ignore[misc]
    """`(n, 3, h, w)` → features `(n, 128, h/8, w/8)`, `(n, 256, h/16, w/16)`, `(n, 512, h/32, w/32)` at width 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for number, (channels_in, channels_out, stride) in enumerate(
            [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 8 * width, 2)], start=1
        ):
            blocks = BasicBlock(channels_in, channels_out, stride), BasicBlock(channels_out, channels_out, 1)
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class AttentionRefinement(nn.Module):  # type: ignore[misc]
    """Weights channels by their mean over the whole picture."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(channels_in, channels_out)
        self.conv_atten = nn.Conv2d(channels_out, channels_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        weights = self.bn_atten(self.conv_atten(F.adaptive_avg_pool2d(features, 1)))
        return features * torch.sigmoid(weights)


class ContextPath(nn.Module):  # type: ignore[misc]
    """`(n, 3, h, w)` → the ResNet's features at an eighth, and context `(n, 128, h/8, w/8)` at width 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        out = 2 * width
        self.resnet = ResNet18(width)
        self.arm16, self.arm32 = AttentionRefinement(4 * width, out), AttentionRefinement(8 * width, out)
        self.conv_head32, self.conv_head16 = ConvBnRelu(out, out), ConvBnRelu(out, out)
        self.conv_avg = ConvBnRelu(8 * width, out, kernel=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        eighth, sixteenth, thirtysecond = self.resnet(x)
        whole = self.conv_avg(F.adaptive_avg_pool2d(thirtysecond, 1))  # (n, 128, 1, 1), added at all positions
        coarse = F.interpolate(self.arm32(thirtysecond) + whole, sixteenth.shape[2:], mode="nearest")
        fine = F.interpolate(self.arm16(sixteenth) + self.conv_head32(coarse), eighth.shape[2:], mode="nearest")
        return eighth, self.conv_head16(fine)


class FeatureFusion(nn.Module):  # type: ignore[misc]
    """Combines detail and context."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convblk = ConvBnRelu(channels, channels, kernel=1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        features = self.convblk(torch.cat([detail, context], dim=1))
        weights = torch.sigmoid(self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(features, 1)))))
        return features * weights + features


class ScoreHead(nn.Module):  # type: ignore[misc]
    """Features → class scores."""

    def __init__(self, channels_in: int, channels_mid: int) -> None:
        super().__init__()
        self.conv = ConvBnRelu(channels_in, channels_mid)
        self.conv_out = nn.Conv2d(channels_mid, CLASSES, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):  # type: ignore[misc]
    """Normalised pictures `(n, 3, h, w)`, sides multiples of 32 → class scores `(n, 19, h, w)`."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.cp = ContextPath(width)
        self.ffm = FeatureFusion(4 * width)
        self.conv_out = ScoreHead(4 * width, 4 * width)
        # Used in training only: in the checkpoint, but never run.
        self.conv_out16, self.conv_out32 = ScoreHead(2 * width, width), ScoreHead(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)
