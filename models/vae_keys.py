"""Key names of diffusers' AutoencoderKL: from the original spelling to today's. Knows nothing of files or images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
