"""The engines and decoders that the config of LipSync loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema import LipSyncConfig
from deployments.lipsync import load_engine
from models.errors import WeightsError
from models.musetalk import MuseTalk
from models.musetalk_openvino import OpenVINOMuseTalk
from tests.support.random_weights import make_kl, make_tiny, make_unet, write_state, write_vae


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("weights")
    unet = make_unet()
    (root / "musetalk.json").write_text(json.dumps(dict(unet.config)))
    write_state(root / "unet.pth", unet.state_dict())
    write_vae(root / "vae", make_kl())
    write_vae(root / "taesd", make_tiny())
    names = {"unet_config": "musetalk.json", "unet_weights": "unet.pth", "vae_dir": "vae", "decoder_dir": "taesd"}
    return {key: str(root / name) for key, name in names.items()}


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_decoder_tiny_decodes_with_taesd(
    weights: dict[str, str], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMTALK_CACHE", str(tmp_path))
    monkeypatch.setattr(OpenVINOMuseTalk, "warm", lambda self: None)  # this test only decodes
    latents = np.random.default_rng(0).standard_normal((1, 4, 32, 32)).astype(np.float32)
    full, tiny = (
        load_engine(LipSyncConfig(engine=engine, decoder=decoder, threads=1, **weights)) for decoder in ("vae", "tiny")
    )
    paths = [Path(weights[key]) for key in ("unet_config", "unet_weights", "vae_dir")]
    wanted = MuseTalk.load(*paths, decoder_dir=weights["decoder_dir"]).decode(latents)
    assert np.abs(tiny.decode(latents).astype(int) - wanted).max() <= 1
    assert np.abs(full.decode(latents).astype(int) - wanted).mean() > 1
    assert tiny.vae_fingerprint == full.vae_fingerprint


def test_a_missing_decoder_is_reported(weights: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        load_engine(
            LipSyncConfig(engine="torch", decoder="tiny", **{**weights, "decoder_dir": str(tmp_path / "nowhere")})
        )


def test_the_decoder_folder_is_not_needed_for_the_vae(weights: dict[str, str]) -> None:
    engine = load_engine(LipSyncConfig(engine="torch", **{**weights, "decoder_dir": "nowhere"}))
    assert engine.decode(np.zeros((1, 4, 32, 32), np.float32)).shape == (1, 256, 256, 3)
