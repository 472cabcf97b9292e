"""What the LipSync stage passes to its engines from the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import LipSyncConfig
from deployments.lipsync import load_engine
from models.errors import ConfigError, WeightsError
from models.musetalk import MuseTalk
from models.musetalk_openvino import OpenVINOMuseTalk
from tests.support.paths import ROOT

EMBEDDED = ROOT / "models" / "embedded"
PATHS = (EMBEDDED / "musetalk" / "musetalk.json", EMBEDDED / "musetalk" / "unet.safetensors", EMBEDDED / "vae")


class Loaded:
    """Records the arguments of `load` and of `record`."""

    def __init__(self, *paths: Path, **options: Any) -> None:
        self.paths, self.options, self.recorded = paths, options, None

    def record(self, *arguments: Any) -> None:
        self.recorded = arguments


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setenv("WARMTALK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    for engine in (MuseTalk, OpenVINOMuseTalk):
        monkeypatch.setattr(engine, "load", Loaded)


def test_openvino_gets_its_files_its_cache_its_threads_and_its_number_format(tmp_path: Path) -> None:
    engine = load_engine(LipSyncConfig(engine="openvino", threads=3, precision="bfloat16"))
    assert engine.paths == PATHS
    assert engine.options == {"cache_dir": tmp_path / "cache", "threads": 3, "precision": "bfloat16"}


def test_torch_gets_its_device_its_number_format_and_what_to_compile() -> None:
    engine = load_engine(LipSyncConfig(engine="torch", device="cuda", dtype="float16", compile="graphs", batch_size=16))
    assert engine.paths == PATHS
    assert engine.options == {"device": "cuda", "dtype": torch.float16}
    assert engine.recorded == ("graphs", 16)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_folder_of_the_tiny_decoder_is_passed_only_when_it_is_used(engine: str, tmp_path: Path) -> None:
    tiny = load_engine(LipSyncConfig(engine=engine, decoder="tiny", decoder_dir="weights/other"))
    assert tiny.options["decoder_dir"] == tmp_path / "weights" / "other"
    assert "decoder_dir" not in load_engine(LipSyncConfig(engine=engine, decoder_dir="weights/other")).options


def test_only_torch_can_compile() -> None:
    with pytest.raises(ConfigError, match="'openvino' does not support compile: graphs"):
        load_engine(LipSyncConfig(engine="openvino", compile="graphs"))


def test_a_missing_decoder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real engine
    with pytest.raises(WeightsError, match="nowhere"):
        load_engine(LipSyncConfig(engine="torch", decoder="tiny", decoder_dir="nowhere"))
