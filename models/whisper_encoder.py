"""Whisper's encoder (Radford et al. 2022): log-mel spectrograms → hidden states.

The same tensors and results as transformers' WhisperEncoder, whose import takes 3 s of processor time: as long as all
else that a replica of AudioFeatures does at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class WhisperEncoder(nn.Module):  # type: ignore[misc]
    """Log-mel `(b, mel_bins, 2 · steps)` → hidden states `(b, steps, layers + 1, width)`, for any number of steps up to
    that of the position table: the embedding with positions, the output of each layer, the last one normalised.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: a Whisper's config.json."""
        super().__init__()
        width, heads, hidden = (config[key] for key in ("d_model", "encoder_attention_heads", "encoder_ffn_dim"))
        self.conv1 = nn.Conv1d(config["num_mel_bins"], width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config["max_source_positions"], width)
        self.layers = nn.ModuleList(_Layer(width, heads, hidden) for _ in range(config["encoder_layers"]))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)  # (b, steps, width)
        states = [x + self.embed_positions.weight[: x.shape[1]]]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return torch.stack([*states[:-1], self.layer_norm(states[-1])], dim=2)


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (proj(x).unflatten(2, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (b, steps, width)
