"""The network of the small restorer: bicubic upsampling plus a learned correction.

A three-level residual U-Net over cells of 2 × 2 pixels. Most of its arithmetic happens at 64² and 32², so it sees the
whole face and takes a few milliseconds on two cores. Sub-pixel convolution (Shi et al. 2016, "Real-Time Single Image
and Video Super-Resolution") writes 4 × 4 output pixels per cell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32  # channels at 128²
DEEP = 48  # channels at 64² and 32²
CELL = 2  # width of a cell in pixels of the 256² input
CELL_OUT = 4  # width of a cell in pixels of the 512² output
MARGIN_PX = 2  # bicubic reads two pixels beyond the block
BICUBIC_A = -0.75  # Keys' constant, the value of OpenCV and torch


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel (1981) at `distance` pixels."""
    d, a = abs(distance), BICUBIC_A
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic_kernel() -> Tensor:
    """Return bicubic upsampling × 2 as one convolution kernel over unshuffled cells, `(48, 12, 3, 3)`.

    Exact up to the borders if two pixels are padded there by replication, as OpenCV and torch do.
    """
    taps = torch.zeros(CELL_OUT, 3 * CELL)  # output pixel of a cell × input pixel of three neighbouring cells
    for out in range(CELL_OUT):
        centre = (out + 0.5) / 2 - 0.5  # in input pixels from the cell's first
        for pixel in range(-CELL, 2 * CELL):
            taps[out, pixel + CELL] = _cubic(pixel - centre)
    taps = taps.view(CELL_OUT, 3, CELL)  # (output pixel, cell, pixel within the cell)
    plane = torch.einsum("icu,jdv->ijuvcd", taps, taps).reshape(CELL_OUT**2, CELL**2, 3, 3)
    kernel = torch.zeros(3, CELL_OUT**2, 3, CELL**2, 3, 3)
    for colour in range(3):
        kernel[colour, :, colour] = plane
    return kernel.view(3 * CELL_OUT**2, 3 * CELL**2, 3, 3)


class ResidualBlock(nn.Module):  # type: ignore[misc]
    """Two 3 × 3 convolutions around a ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


class SmallRestorerNet(nn.Module):  # type: ignore[misc]
    """256² degraded face → 512² face, both float RGB in 0..255. 0.29 M parameters, 1.6 G multiply-adds per face."""

    base_kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3 * CELL**2, WIDTH, 3)  # without padding: it uses up the margin
        self.down_64 = nn.Conv2d(WIDTH, DEEP, 3, stride=2, padding=1)
        self.before = ResidualBlock(DEEP)
        self.down_32 = nn.Conv2d(DEEP, DEEP, 3, stride=2, padding=1)
        self.middle = nn.Sequential(ResidualBlock(DEEP), ResidualBlock(DEEP))
        self.up_64 = nn.Conv2d(DEEP, 4 * DEEP, 1)
        self.after = nn.Sequential(ResidualBlock(DEEP), ResidualBlock(DEEP))
        self.up_128 = nn.Conv2d(DEEP, 4 * WIDTH, 1)
        self.fine = ResidualBlock(WIDTH)
        self.tail = nn.Conv2d(WIDTH, 3 * CELL_OUT**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)  # an untrained network is plain bicubic upsampling
        nn.init.zeros_(self.tail.bias)
        self.register_buffer("base_kernel", bicubic_kernel(), persistent=False)

    def forward(self, faces: Tensor, strength: Tensor) -> Tensor:
        """`(n, 3, 256, 256)` and `(1,)` → `(n, 3, 512, 512)`, not clipped; linear in strength."""
        cells = self.cells(faces)
        return F.pixel_shuffle(self.base(cells) + strength * self.correction(cells), CELL_OUT)

    def cells(self, faces: Tensor) -> Tensor:
        """`(n, 3, 256, 256)` → `(n, 12, 130, 130)`: 2 × 2 pixels per cell, with a margin of one cell."""
        return F.pixel_unshuffle(F.pad(faces, (MARGIN_PX,) * 4, mode="replicate"), CELL)

    def base(self, cells: Tensor) -> Tensor:
        """`(n, 12, 130, 130)` → `(n, 48, 128, 128)`: bicubic upsampling."""
        return F.conv2d(cells, self.base_kernel)

    def correction(self, cells: Tensor) -> Tensor:
        """`(n, 12, 130, 130)` → `(n, 48, 128, 128)`: the learned correction in grey levels."""
        level_128 = F.relu(self.head(cells / 255.0))
        level_64 = self.before(F.relu(self.down_64(level_128)))
        level_32 = self.middle(F.relu(self.down_32(level_64)))
        level_64 = self.after(level_64 + F.pixel_shuffle(self.up_64(level_32), 2))
        level_128 = self.fine(level_128 + F.pixel_shuffle(self.up_128(level_64), 2))
        out: Tensor = 255.0 * self.tail(level_128)
        return out


class ImageGraph(nn.Module):  # type: ignore[misc]
    """The network as engines run it: uint8 NHWC in and out."""

    def __init__(self, net: SmallRestorerNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, faces: Tensor, strength: Tensor) -> Tensor:
        """uint8 `(n, 256, 256, 3)` and float32 `(1,)` → uint8 `(n, 512, 512, 3)`, rounded."""
        out = self.net(faces.permute(0, 3, 1, 2).float(), strength)
        return out.clamp(0, 255).round().permute(0, 2, 3, 1).to(torch.uint8)
