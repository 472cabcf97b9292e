"""Narrow networks of the real structure with random weights: MuseTalk's UNet and VAEs, GFPGAN, BiSeNet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file

WIDTH = 32  # of the narrow UNet's feature windows
KL_SCALE = 0.18215  # AutoencoderKL's default
GFPGAN_CHANNELS = {2: 32, 3: 32, 4: 32, 5: 32, 6: 32, 7: 16, 8: 8, 9: 4}  # a sixteenth of the released file's
BISENET_WIDTH = 8  # an eighth of the released file's


def make_unet(width: int = WIDTH) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def make_kl() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


def make_tiny() -> AutoencoderTiny:
    torch.manual_seed(2)
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, scaling_factor=1.25
    ).eval()


def make_taesd() -> AutoencoderTiny:
    """A narrow TAESD: its latents are Stable Diffusion's after scaling, so its own factor is 1."""
    torch.manual_seed(8)
    return AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()


def gfpgan_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random weights that keep activations near 1: scaled by fan-in, styles around 1, visible noise."""
    torch.manual_seed(0)
    filled = {}
    for key, shape in shapes.items():
        value = torch.randn(shape)
        if "noises" in key or "constant_input" in key:
            pass
        elif key.endswith("weight") and len(shape) > 1:
            value /= float(np.prod(shape[-3:] if len(shape) > 2 else shape[1:])) ** 0.5
        elif key.endswith("modulation.bias"):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        filled[key] = value
    return filled


def write_vae(folder: Path, vae: torch.nn.Module, name: str = "diffusion_pytorch_model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in vae.config.items() if key != "scaling_factor" or value != KL_SCALE}
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": type(vae).__name__}))
    write_state(folder / name, vae.state_dict())
    return folder


def write_state(path: Path, state: dict[str, torch.Tensor]) -> Path:
    state = {key: value.clone().contiguous() for key, value in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path
