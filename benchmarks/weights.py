"""Random weights in the formats and sizes of MuseTalk v1.5, sd-vae, TAESD, whisper-tiny and GFPGAN, for benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import WhisperConfig, WhisperModel

from models.restore.gfpgan_net import GFPGANNet

UNET = {  # musetalkV15/musetalk.json
    "in_channels": 8,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 384,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
VAE = {  # sd-vae-ft-mse's config.json
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}
WHISPER = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
SMALL_UNET = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8}
SMALL_VAE = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}


def make_weights(folder: Path, device: str, small: bool) -> None:
    """Write random weights in the real formats, laid out as in the manual. Existing weights are kept."""
    if (folder / "GFPGANv1.4.pth").exists():
        return
    torch.manual_seed(0)
    unet, vae = UNET | (SMALL_UNET if small else {}), VAE | (SMALL_VAE if small else {})
    for name in ("musetalkV15", "sd-vae", "taesd", "whisper"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with torch.device(device):  # initialisation is faster on a GPU
        networks = {
            "musetalkV15/unet.pth": UNet2DConditionModel.from_config(unet),
            "sd-vae/diffusion_pytorch_model.bin": AutoencoderKL.from_config(vae),
            "taesd/diffusion_pytorch_model.bin": AutoencoderTiny(),
            "whisper/pytorch_model.bin": WhisperModel(WhisperConfig(**WHISPER, vocab_size=51865, decoder_layers=1)),
        }
        gfpgan = GFPGANNet()
    (folder / "musetalkV15/musetalk.json").write_text(json.dumps(unet))
    (folder / "sd-vae/config.json").write_text(json.dumps({**vae, "_class_name": "AutoencoderKL"}))
    (folder / "taesd/config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    (folder / "whisper/config.json").write_text(networks["whisper/pytorch_model.bin"].config.to_json_string())
    for name, network in networks.items():
        torch.save({key: value.half().cpu() for key, value in network.state_dict().items()}, folder / name)
    torch.save({"params_ema": {k: v.float().cpu() for k, v in gfpgan.state_dict().items()}}, folder / "GFPGANv1.4.pth")
