"""A diffusers VAE folder: its files, their fingerprint, and the spelling of their keys. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.weights.loading import find_weights, fingerprint

VAE_CONFIG_FILE = "config.json"
VAE_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # renamed in diffusers 0.12


def modern_vae_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict under today's keys and shapes; one that has them already comes back as it is.

    Only the attention of the two mid blocks was renamed (`query`, `key`, `value`, `proj_attn`). Its weights are linear
    `(c, c)` today; checkpoints that keep them as 1 × 1 convolutions `(c, c, 1, 1)` are flattened.
    """
    modern = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        parent, _, name = module.rpartition(".")
        if ".attentions." in f".{key}" and name in RENAMED:
            key = f"{parent}.{RENAMED[name]}.{leaf}"
        if ".attentions." in f".{key}" and leaf == "weight" and tuple(value.shape[2:]) == (1, 1):
            value = value[:, :, 0, 0]
        modern[key] = value
    return modern


def vae_files(folder: Path | str) -> tuple[Path, Path]:
    """Config and weights of a VAE folder. Raises WeightsError where the weights are missing."""
    return Path(folder) / VAE_CONFIG_FILE, find_weights(Path(folder), VAE_WEIGHT_FILES)


def vae_fingerprint(folder: Path | str) -> str:
    """16 hex digits that change with any byte of the VAE's config or weights; an avatar's latents carry them."""
    return fingerprint(*vae_files(folder))
