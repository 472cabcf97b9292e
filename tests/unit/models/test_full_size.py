"""Every production checkpoint in its released format, key set and size, loaded by the stage that uses it.

Sizes are checked on torch's meta device, without memory. Tests marked `full` write the checkpoints and run the stages
(`make test-full`).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from deployments.enhance import Enhance
from deployments.features import AudioFeatures
from deployments.lipsync import LipSync
from models.avatar.bisenet import BiSeNet
from models.avatar.detect import open_detector
from models.avatar.dwpose import DWPose, decode
from models.avatar.parse import FaceParser
from models.errors import WeightsError
from models.musetalk import load_unet, load_vae
from models.quality.syncnet import SyncNet
from models.quality.syncnet_net import StableSyncNet
from models.restore.align import FFHQ_512
from models.restore.gfpgan_net import GFPGANNet
from models.types import Speech
from models.weights.vae_files import modern_vae_keys
from tests.support import full_size
from tests.support.avatar import astronaut
from tests.support.full_size import overhead, random_state, released
from tests.support.random_weights import gfpgan_weights, make_unet
from tests.unit.models.restore.test_gfpgan import shapes as gfpgan_shapes

NEEDED_GB = 10  # of free memory: a UNet in single precision, and its file's content beside it while it is loaded
CPU = {"engine": "torch", "batch_size": 1, "threads": 1}
RELEASED = 2e-3  # share of a file's size that its container and key names may take


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def enough_memory() -> None:
    free_gb = psutil.virtual_memory().available / 1e9
    if free_gb < NEEDED_GB:
        pytest.skip(f"needs {NEEDED_GB} GB of free memory, and {free_gb:.0f} are")


def holds(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    """Whether a module has exactly the values of a state dict."""
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], value) for key, value in state.items())


def holds_some(module: torch.nn.Module, every: int) -> bool:
    """Whether every `every`-th of a module's parameters has the values that `random_state` gives it."""
    own = dict(list(module.state_dict().items())[::every])
    return all(torch.equal(own[key], value) for key, value in random_state(own).items())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("musetalkV15/musetalk.json", full_size.UNET_CONFIG),
        ("musetalk/musetalk.json", full_size.UNET_CONFIG),
        ("sd-vae/config.json", full_size.VAE_CONFIG),
    ],
)
def test_the_configs_are_the_released_files_to_the_byte(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    data = full_size.write_config(tmp_path / name, config).read_bytes()
    assert len(data) == released(name).size_bytes
    assert hashlib.sha256(data).hexdigest() == released(name).sha256


def numel(state: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in state.values() if value.is_floating_point())


SIZES: dict[str, Any] = {
    "musetalkV15/unet.pth": lambda: UNet2DConditionModel.from_config(full_size.UNET_CONFIG),
    "musetalk/pytorch_model.bin": lambda: UNet2DConditionModel.from_config(full_size.UNET_CONFIG),
    "sd-vae/diffusion_pytorch_model.bin": lambda: AutoencoderKL.from_config(full_size.VAE_CONFIG),
    "taesd/diffusion_pytorch_model.safetensors": AutoencoderTiny,
    "GFPGANv1.4.pth": GFPGANNet,
    "face-parse-bisent/79999_iter.pth": BiSeNet,
    "syncnet/latentsync_syncnet.pt": StableSyncNet,
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_size_of_the_released_files(name: str) -> None:
    """Four bytes per number; the rest of a file is its container, its key names, and training's losses."""
    size = released(name).size_bytes
    assert size is not None
    assert 0 <= 1 - 4 * numel(full_size.on_meta(SIZES[name])) / size < RELEASED


@pytest.mark.full
@pytest.mark.timeout(600)
async def test_lipsync_runs_the_unet_on_sd_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v1.5's file, as large as v1.0's, with the whole VAE under its old key names."""
    enough_memory()
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    weights = tmp_path / "weights"
    full_size.write_config(weights / "musetalkV15/musetalk.json", full_size.UNET_CONFIG)
    full_size.write_config(weights / "sd-vae/config.json", full_size.VAE_CONFIG)
    unet, vae = weights / "musetalkV15/unet.pth", weights / "sd-vae/diffusion_pytorch_model.bin"
    torch.save(full_size.vae_state(), vae)
    torch.save(full_size.unet_state(), unet)
    assert abs(overhead(unet, "musetalkV15/unet.pth")) < RELEASED
    assert abs(overhead(unet, "musetalk/pytorch_model.bin")) < RELEASED
    assert abs(overhead(vae, "sd-vae/diffusion_pytorch_model.bin")) < RELEASED
    stage = LipSync()
    files = {"unet_config": "weights/musetalkV15/musetalk.json", "unet_weights": "weights/musetalkV15/unet.pth"}
    await stage.reconfigure({**CPU, **files, "vae_dir": "weights/sd-vae"})  # it speaks one frame, to be warm
    for path in (unet, unet.with_name("unet.pth.safetensors")):
        path.unlink()  # 3.4 GB each
    assert holds_some(stage.model.unet, 40)
    assert holds(stage.model.vae, modern_vae_keys(full_size.vae_state()))
    faces = stage.model.decode(np.random.default_rng(0).standard_normal((1, 4, 32, 32), np.float32))
    assert faces.shape == (1, 256, 256, 3) and faces.dtype == np.uint8 and faces.std() > 1


@pytest.mark.full
async def test_lipsync_decodes_with_taesd_for_a_vae_of_sds_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a narrow UNet under the name of v1.0's file; TAESD and the VAE are in full size."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    weights = tmp_path / "weights"
    full_size.write_config(weights / "sd-vae/config.json", full_size.VAE_CONFIG)
    torch.save(full_size.vae_state(), weights / "sd-vae/diffusion_pytorch_model.bin")
    full_size.write_taesd(weights / "taesd")
    name = "taesd/diffusion_pytorch_model.safetensors"
    assert overhead(weights / name, name) == 0
    unet = make_unet(384)
    full_size.write_config(weights / "musetalk/musetalk.json", dict(unet.config))
    torch.save(unet.state_dict(), weights / "musetalk/pytorch_model.bin")
    files = {"unet_config": "weights/musetalk/musetalk.json", "unet_weights": "weights/musetalk/pytorch_model.bin"}
    stage = LipSync()
    await stage.reconfigure({**CPU, **files, "vae_dir": "weights/sd-vae", "decoder": "tiny"})
    windows = np.random.default_rng(0).standard_normal((1, 50, 384), np.float32)
    faces = stage.model.generate(np.ones((1, 8, 32, 32), np.float16), windows)
    assert faces.shape == (1, 256, 256, 3) and faces.dtype == np.uint8 and faces.std() > 1


def test_a_partial_or_foreign_unet_names_its_first_keys(tmp_path: Path) -> None:
    """The error is raised before memory is allocated for the network."""
    config = full_size.write_config(tmp_path / "musetalk.json", full_size.UNET_CONFIG)
    torch.save({"conv_in.weight": torch.zeros(320, 4, 3, 3), "logit_scale": torch.zeros(1)}, tmp_path / "unet.pth")
    wanted = (
        r"685 missing \(conv_in\.bias, time_embedding\.linear_1\.weight, time_embedding\.linear_1\.bias and 682 more\)"
        r"; 1 unexpected \(logit_scale\)"
        r"; 1 mis-shaped \(conv_in\.weight \(320, 4, 3, 3\) instead of \(320, 8, 3, 3\)\)"
    )
    with pytest.raises(WeightsError, match=wanted):
        load_unet(config, tmp_path / "unet.pth")


@pytest.mark.full
@pytest.mark.parametrize("old_names", [True, False])
def test_a_partial_vae_names_its_first_keys(tmp_path: Path, old_names: bool) -> None:
    full_size.write_config(tmp_path / "config.json", full_size.VAE_CONFIG)
    state = full_size.vae_state(old_names)
    assert any(".attentions.0.query." in key for key in state) == old_names
    del state["decoder.conv_in.weight"]
    state["encoder.conv_in.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    wanted = (
        r"1 missing \(decoder\.conv_in\.weight\); 1 mis-shaped \(encoder\.conv_in\.bias \(3,\) instead of \(128,\)\)"
    )
    with pytest.raises(WeightsError, match=wanted):
        load_vae(tmp_path)


@pytest.mark.full
async def test_audio_features_runs_on_the_whole_of_whisper_tiny(tmp_path: Path) -> None:
    folder = full_size.write_whisper(tmp_path / "whisper")
    assert abs(overhead(folder / "pytorch_model.bin", "whisper/pytorch_model.bin")) < RELEASED
    stage = AudioFeatures()
    await stage.reconfigure({"weights": str(folder), "context_s": None, "threads": 1})
    voice = np.random.default_rng(0).uniform(-0.3, 0.3, 12_000).astype(np.float32)
    windows = (await stage.windows(Speech(voice, 24_000), 25)).value.windows
    assert windows.shape == (12, 50, 384) and np.isfinite(windows).all() and windows.std() > 0.01
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({k: v for k, v in state.items() if "encoder.layers.3" not in k}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"15 missing \(layers\.3\."):
        await AudioFeatures().reconfigure({"weights": str(folder)})


@pytest.mark.full
async def test_enhance_restores_a_face_with_gfpgan(tmp_path: Path) -> None:
    path = tmp_path / "GFPGANv1.4.pth"
    torch.save({"params_ema": gfpgan_weights(gfpgan_shapes())}, path)
    assert abs(overhead(path, "GFPGANv1.4.pth")) < RELEASED
    stage = Enhance()
    await stage.reconfigure({"engine": "gfpgan", "batch_size": 1, "options": {"path": str(path)}})
    face = cv2.resize(astronaut(), (256, 256))[None]
    landmarks = ((FFHQ_512 + 0.5) / 2 - 0.5)[None].astype(np.float32)
    restored = stage.engine.restore(face, 1.0, landmarks)
    assert restored.shape == (1, 512, 512, 3) and restored[:, 100:400, 100:400].std() > 1


@pytest.mark.full
def test_preparation_parses_with_bisenet(tmp_path: Path) -> None:
    path = tmp_path / "79999_iter.pth"
    torch.manual_seed(0)
    torch.save(BiSeNet().state_dict(), path)
    assert abs(overhead(path, "face-parse-bisent/79999_iter.pth")) < RELEASED
    labels = FaceParser.load(path).labels(astronaut())
    assert labels.shape == (512, 512) and len(np.unique(labels)) > 1


@pytest.mark.full
def test_preparation_finds_landmarks_with_a_pose_net_of_dwposes_size(tmp_path: Path) -> None:
    """The ONNX file contains the network, so only DWPose's input, outputs and their decoding are tested."""
    path = tmp_path / "dw-ll_ucoco_384.onnx"
    down, along_x, along_y = full_size.write_pose_net(path)
    assert abs(overhead(path, "dwpose/dw-ll_ucoco_384.onnx")) < 0.03
    detector = open_detector("dwpose", path)
    assert isinstance(detector, DWPose)
    seen: list[np.ndarray] = []
    run = detector._run
    detector._run = lambda x: (seen.append(x), run(x))[1]  # type: ignore[method-assign, func-returns-value]
    detector.mirror = False
    points, peaks = detector.points(astronaut())
    features = seen[0].transpose(2, 0, 1).reshape(1, -1) @ down
    scores = [(features @ matrix).reshape(133, -1)[23:91] for matrix in (along_x, along_y)]
    places, wanted = decode(*scores)
    assert points.shape == (68, 2) and np.abs(peaks - wanted).max() < 1e-2 and len(np.unique(places)) > 30
    path.write_bytes(path.read_bytes()[:-1_000_000])
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        open_detector("dwpose", path)


@pytest.mark.full
def test_syncnet_loads_and_runs(tmp_path: Path) -> None:
    """1.49 GB on disk, in single precision, beside what its training left in it."""
    path = tmp_path / "latentsync_syncnet.pt"
    losses = {"global_step": 2, "train_step_list": [1, 2], "train_loss_list": [0.7, 0.6]}
    torch.save({"state_dict": random_state(full_size.on_meta(StableSyncNet), 0.03), **losses}, path)
    assert abs(overhead(path, "syncnet/latentsync_syncnet.pt")) < RELEASED
    net = SyncNet.load(path)
    for file in tmp_path.iterdir():
        file.unlink()  # it and its safetensors copy are large
    with torch.inference_mode():
        pictures = net.net.visual_encoder(torch.randn(1, 48, 128, 256))
        sounds = net.net.audio_encoder(torch.randn(2, 1, 80, 52))
    assert pictures.shape == (1, 2048) and sounds.shape == (2, 2048) and pictures.dtype == torch.float32
    assert torch.allclose(sounds.norm(dim=1), torch.ones(2), atol=1e-5) and float((sounds[0] - sounds[1]).norm()) > 0.01


MISSING: list[tuple[Any, dict[str, Any], str, str]] = [
    (AudioFeatures, {"weights": "weights/whisper"}, "whisper", "AudioFeatures"),
    (
        LipSync,
        {
            "engine": "torch",
            "unet_config": "weights/musetalkV15/musetalk.json",
            "unet_weights": "weights/musetalkV15/unet.pth",
            "vae_dir": "weights/sd-vae",
        },
        "musetalkV15",
        "LipSync",
    ),
    (LipSync, {"engine": "torch", "vae_dir": "weights/sd-vae"}, "sd-vae", "LipSync"),
    (LipSync, {"engine": "torch", "decoder": "tiny"}, "taesd", "LipSync"),
    (Enhance, {"engine": "gfpgan"}, "GFPGANv1.4", "Enhance"),
]


@pytest.mark.parametrize(("stage", "config", "name", "needs"), MISSING, ids=[row[2] for row in MISSING])
async def test_missing_weights_name_the_file_the_stage_and_the_command(
    stage: Any, config: dict[str, Any], name: str, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        await stage().reconfigure(config)
    assert f"/weights/{name}" in caught.value.message and f"for {needs}" in caught.value.message
    assert caught.value.remedy == f"Run `warmtalk fetch-weights --only {name}`."
