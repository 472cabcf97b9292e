"""A diffusers VAE folder: its files, their fingerprint, and the names of its keys. No torch import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.weights.loading import find_weights, fingerprint

VAE_CONFIG_FILE = "config.json"
VAE_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # renamed in diffusers 0.12


def modern_vae_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with the keys and shapes of current diffusers; a current one is unchanged.

    diffusers 0.12 renamed only the attention of the two mid blocks (`query`, `key`, `value`, `proj_attn`). Its weights
    are linear `(c, c)` now; older 1 × 1 convolutions `(c, c, 1, 1)` are reshaped.
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
    """The paths of config and weights of a VAE folder. Raises WeightsError: the weights are missing."""
    return Path(folder) / VAE_CONFIG_FILE, find_weights(Path(folder), VAE_WEIGHT_FILES)


def vae_fingerprint(folder: Path | str) -> str:
    """16 hex digits that identify the VAE's config and weights; stored with an avatar's latents."""
    return fingerprint(*vae_files(folder))
