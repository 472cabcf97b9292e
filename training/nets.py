"""The trained networks: a small UNet and VAE of MuseTalk's structure, and a mouth reader for the losses.

UNet and VAE are classes of diffusers, so that the product loads them like MuseTalk's.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from models.types import CROP_PX, LATENT_PX, WHISPER_WIDTH

# 2.5 M parameters. Fast attention kernels need a multiple of 8 channels per head: 64 / 4 and 80 / 5 are 16.
UNET: dict[str, Any] = {
    "sample_size": LATENT_PX,
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 80),
    "layers_per_block": 1,
    "cross_attention_dim": WHISPER_WIDTH,
    "attention_head_dim": (4, 4, 5),  # diffusers' name for the number of heads
    "norm_num_groups": 8,
}
# Two cores decode 16 channels in real time. The levels at 128² and 256² take 82 % of 1.23 G multiplications, so three
# more blocks at 32² and 64² cost 9 %. The encoder may be wider, because it runs only when an avatar is prepared.
VAE: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (16, 16, 16, 16),
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (6, 6, 3, 1),
    "latent_channels": 4,
}
MOUTH_ROWS, MOUTH_COLUMNS = (
    slice(8, 128),
    slice(48, 208),
)  # part of a crop's lower half with the mouth
READINGS = ("opening", "width", "rounding", "drop", "tuck", "teeth")


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET)


def make_vae() -> AutoencoderTiny:
    return AutoencoderTiny(**VAE)


class MouthReader(nn.Module):  # type: ignore[misc]
    """Reads the mouth's shape from the lower half of a face crop: `(b, 3, 128, 256)` in [-1, 1] → `(b, 6)`.

    The outputs are those of `readings_of`. The losses compare them, so that mouth shapes count and not only pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128 * 4 * 5, len(READINGS))

    def forward(self, lower: Tensor) -> Tensor:
        assert lower.shape[-2:] == (CROP_PX // 2, CROP_PX), lower.shape
        mouth = F.avg_pool2d(lower[:, :, MOUTH_ROWS, MOUTH_COLUMNS], 2)  # (b, 3, 60, 80)
        features = self.body(mouth)  # (b, 128, 4, 5)
        return torch.as_tensor(self.head(features.flatten(1)))


def readings_of(mouth: Tensor) -> Tensor:
    """The true readings for mouth parameters `(b, 7)`: `(b, 6)`, each about 0 to 1.

    Opening and width follow `training.presenter_shape.lips` and `mouth_half_width`: the gap between the inner lips
    relative to that at jaw 1, and the change of the mouth's half width relative to that of a full smile.
    """
    jaw, width, rounding, teeth, _, close, tuck = mouth.unbind(1)
    opened = 1 - close
    opening = (jaw * (1 - 0.85 * tuck) + 0.11 * rounding + 0.03 * tuck) * opened
    spread = width - 1.5 * rounding - 0.24 * jaw * opened
    drop = jaw * (1 - 0.7 * close) * (1 - 0.6 * tuck)
    return torch.stack([opening, spread, rounding, drop, tuck * opened, teeth * opening.clamp(max=0.4) * 2.5], 1)
