"""CUDA graphs and compiled passes compared with plain ones, in half precision: MuseTalk's networks and GFPGAN."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.musetalk_cuda import CudaMuseTalk
from models.restore.align import FFHQ_512
from models.restore.gfpgan import GFPGAN
from models.restore.gfpgan_net import GFPGANNet
from tests.support.paths import ROOT
from tests.support.random_weights import gfpgan_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EMBEDDED = ROOT / "models" / "embedded"
PAIR = (EMBEDDED / "musetalk" / "musetalk.json", EMBEDDED / "musetalk" / "unet.safetensors", EMBEDDED / "vae")


@pytest.mark.parametrize("mode", ["graphs", "inductor"])
def test_recorded_faces_equal_plain_ones_for_every_number_of_frames(mode: str) -> None:
    model = CudaMuseTalk.load(*PAIR, device="cuda", dtype=torch.float16)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((11, 8, 32, 32)).astype(np.float16)
    windows = rng.standard_normal((11, 50, 384)).astype(np.float16)
    plain = model.generate(latents, windows)
    model.record(mode, 8)
    for n in (1, 3, 4, 8, 11):
        recorded = model.generate(latents[:n], windows[:n])
        error = np.abs(recorded.astype(int) - plain[:n])
        assert recorded.dtype == np.uint8 and error.mean() < 0.3 and np.percentile(error, 99) <= 2
    model.record("off", 8)
    assert np.array_equal(model.generate(latents, windows), plain)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GFPGAN's own format and size, random weights that keep activations near 1."""
    shapes = {key: tuple(value.shape) for key, value in GFPGANNet().state_dict().items()}
    path = tmp_path_factory.mktemp("gfpgan") / "GFPGANv1.4.pth"
    torch.save({"params_ema": gfpgan_weights(shapes)}, path)
    return path


def faces(n: int) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return np.stack([cv2.resize(face, (256, 256), interpolation=cv2.INTER_CUBIC) for face in coarse])


def landmarks(n: int) -> np.ndarray:
    return np.tile(((FFHQ_512 - 256) * 0.9 / 2 + 128)[None], (n, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("placed", [False, True])
def test_gfpgan_on_the_device_matches_the_cpu(checkpoint: Path, placed: bool) -> None:
    crops, points = faces(2), landmarks(2) if placed else None
    wanted = GFPGAN.load(checkpoint).restore(crops, 1.0, points).astype(int)
    exact = np.abs(GFPGAN.load(checkpoint, "cuda").restore(crops, 1.0, points) - wanted)
    half = np.abs(GFPGAN.load(checkpoint, "cuda", "float16").restore(crops, 1.0, points) - wanted)
    assert wanted.std() > 20  # a picture, not a flat or broken one
    assert exact.mean() < 0.5 and half.mean() < 1.0


@pytest.mark.parametrize("mode", ["graphs", "inductor"])
def test_recorded_gfpgan_equals_the_plain_one(checkpoint: Path, mode: str) -> None:
    crops, points = faces(3), landmarks(3)
    around = np.random.default_rng(2).integers(0, 256, (3, 512, 512, 3), dtype=np.uint8)
    plain = GFPGAN.load(checkpoint, "cuda", "float16", max_faces=2)
    recorded = GFPGAN.load(checkpoint, "cuda", "float16", max_faces=2, compile=mode)
    for given in ((None, None), (points, None), (points, around)):
        wanted = plain.restore(crops, 0.8, *given).astype(int)
        assert wanted.std() > 20
        assert np.abs(recorded.restore(crops, 0.8, *given) - wanted).mean() < 0.5


def test_a_recorded_pass_is_faster_than_launching_each_kernel() -> None:
    """Recording exists for speed: at four frames it must beat the plain pass."""
    model = CudaMuseTalk.load(*PAIR, device="cuda", dtype=torch.float16)
    latents, windows = np.zeros((4, 8, 32, 32), np.float16), np.zeros((4, 50, 384), np.float16)

    def milliseconds() -> float:
        model.generate(latents, windows)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            model.generate(latents, windows)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 10

    plain = milliseconds()
    model.record("graphs", 4)
    assert milliseconds() < 0.7 * plain
