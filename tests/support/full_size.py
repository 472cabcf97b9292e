"""Writes checkpoints in the released format: key set, shapes and file size; the values are random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.weights.manifest import WeightFile, all_files
from tests.support import tiny_onnx

State = dict[str, torch.Tensor]

# musetalk.json and sd-vae's config.json, identical to the released files, whose hashes are in the manifest
UNET_CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 384,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 8,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
VAE_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
WHISPER_TINY = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "vocab_size": 51865,
}
OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
BLOCK = 1 << 20  # random numbers that are repeated: generating 850 M of them would take half a minute


def released(path: str) -> WeightFile:
    """Return the manifest's entry of a file."""
    return next(file for file in all_files() if file.path == path)


def overhead(path: Path, name: str) -> float:
    """Return the relative difference between the size of a file and the released one's."""
    size = released(name).size_bytes
    assert size is not None
    return path.stat().st_size / size - 1


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")
    return path


def random_state(shapes: Mapping[str, Any], scale: float = 0.02, seed: int = 0) -> State:
    """Return float32 tensors of the shapes (or of the tensors' shapes) by key; normalisations have gains near 1."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)) * scale
    return {key: _filled(key, tuple(getattr(shape, "shape", shape)), block) for key, shape in shapes.items()}


def _filled(key: str, shape: tuple[int, ...], block: torch.Tensor) -> torch.Tensor:
    out = torch.empty(int(np.prod(shape)))
    for part in out.split(BLOCK):
        part.copy_(block[: len(part)])
    if key.endswith("weight") and len(shape) == 1:
        out += 1
    return out.view(shape)


def on_meta(build: Any) -> State:
    """Return the state dict of the module that `build` makes, on the meta device: shapes without memory."""
    with torch.device("meta"):
        state: State = build().state_dict()
    return state


def unet_state() -> State:
    from diffusers import UNet2DConditionModel

    return random_state(on_meta(lambda: UNet2DConditionModel.from_config(UNET_CONFIG)))


def vae_state(old_names: bool = True) -> State:
    """Return a state dict of sd-vae-ft-mse, with the old key names of its `.bin` file."""
    from diffusers import AutoencoderKL

    state = random_state(on_meta(lambda: AutoencoderKL.from_config(VAE_CONFIG)))
    for new, old in OLD_NAMES.items() if old_names else ():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def write_taesd(folder: Path) -> Path:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    net = AutoencoderTiny()
    net.save_config(folder)
    save_file(net.state_dict(), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


def write_whisper(folder: Path) -> Path:
    """Write the whole of whisper-tiny, including its decoder, as `pytorch_model.bin`."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    config = WhisperConfig(**WHISPER_TINY)
    shapes = on_meta(lambda: WhisperForConditionalGeneration(config))
    state = random_state({key: value for key, value in shapes.items() if key != "proj_out.weight"})
    config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def write_pose_net(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write a network with DWPose's input, outputs and size: two linear layers. Returns its three matrices."""
    rng = np.random.default_rng(0)
    pixels, width = 3 * 384 * 288, 64
    down = np.resize(rng.standard_normal(BLOCK, np.float32), (pixels, width)) / np.float32(pixels**0.5)
    along_x = np.resize(rng.standard_normal(BLOCK + 1, np.float32), (width, 133 * 576))
    along_y = np.resize(rng.standard_normal(BLOCK + 2, np.float32), (width, 133 * 768))
    nodes = [
        tiny_onnx.node("Flatten", ["input"], ["flat"]),
        tiny_onnx.node("MatMul", ["flat", "down"], ["features"]),
        tiny_onnx.node("MatMul", ["features", "along_x"], ["x"]),
        tiny_onnx.node("MatMul", ["features", "along_y"], ["y"]),
        tiny_onnx.node("Reshape", ["x", "shape_x"], ["simcc_x"]),
        tiny_onnx.node("Reshape", ["y", "shape_y"], ["simcc_y"]),
    ]
    shapes = {"simcc_x": (1, 133, 576), "simcc_y": (1, 133, 768)}
    fixed = {f"shape_{axis}": np.array(shapes[f"simcc_{axis}"], np.int64) for axis in "xy"}
    weights = {"down": down, "along_x": along_x, "along_y": along_y}
    path.write_bytes(tiny_onnx.model(nodes, {"input": (1, 3, 384, 288)}, shapes, weights | fixed))
    return down, along_x, along_y
