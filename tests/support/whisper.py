"""Small Whispers with random weights and real tokenizer files in folders; audio that is detected as speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration

from models.types import WHISPER_HZ

LANGUAGES = ("en", "de", "yue")
SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES)),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
TIMES = 1501


def make_tokenizer() -> Tokenizer:
    """Byte-level, with a few merges and Whisper's special tokens. Timestamps are the ids after them, without text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: k for k, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def make_whisper(vocabulary: int, width: int = 32, seed: int = 0) -> WhisperForConditionalGeneration:
    """Random weights, large enough that tokens differ between steps."""
    torch.manual_seed(seed)
    end = vocabulary - TIMES - len(SPECIAL)
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        init_std=0.3,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def write_whisper(folder: Path, multilingual: bool = True, seed: int = 0, prefix: str = "model.") -> Path:
    """A folder like that of `save_pretrained`: tied weights once, tokenizer.json, generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_whisper(tokenizer.get_vocab_size() + TIMES, seed=seed)
    state = {prefix + key: value.clone().contiguous() for key, value in model.model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    hints = {"is_multilingual": multilingual, "suppress_tokens": [1, 2], "begin_suppress_tokens": [3]}
    (folder / "generation_config.json").write_text(json.dumps(hints))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def buzz(seconds: float, hz: float = 140.0, level: float = 0.2) -> Any:
    """A voiced sound, float32 `(n,)` at 16 kHz: harmonics that fall by 6 dB per octave."""
    times = np.arange(round(seconds * WHISPER_HZ)) / WHISPER_HZ
    wave = sum(np.sin(2 * np.pi * hz * k * times) / k for k in range(1, 12))
    return (level * wave / 2).astype(np.float32)


def silence(seconds: float) -> Any:
    return np.zeros(round(seconds * WHISPER_HZ), np.float32)
