"""Feature windows and faces on a CUDA device in half precision, compared with fp32 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.features import WhisperFeatures
from models.musetalk import MuseTalk
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EMBEDDED = ROOT / "models" / "embedded"
PAIR = (EMBEDDED / "musetalk" / "musetalk.json", EMBEDDED / "musetalk" / "unet.safetensors", EMBEDDED / "vae")


def speech(seconds: float) -> np.ndarray:
    count = round(seconds * 16_000)
    return (np.random.default_rng(0).standard_normal(count) * 0.1).astype(np.float32)


@pytest.mark.parametrize(
    ("dtype", "mean_error"), [(torch.float32, 2e-3), (torch.float16, 3e-3), (torch.bfloat16, 0.03)]
)
def test_windows_of_long_speech_match_the_cpu(dtype: torch.dtype, mean_error: float) -> None:
    samples = speech(45.0)  # several contexts in one batch
    wanted = WhisperFeatures.load(EMBEDDED / "whisper").windows_in_context(samples)
    got = WhisperFeatures.load(EMBEDDED / "whisper", "cuda", dtype).windows_in_context(samples)
    assert got.device.type == "cuda" and got.dtype == dtype
    assert float((got.float().cpu() - wanted).abs().mean()) < mean_error  # four times the rounding error on a CPU


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float16, 0.3), (torch.bfloat16, 1.5)])
def test_faces_match_the_cpu(dtype: torch.dtype, levels: float) -> None:
    cpu, gpu = MuseTalk.load(*PAIR), MuseTalk.load(*PAIR, device="cuda", dtype=dtype)
    face = np.full((3, 256, 256, 3), 120, np.uint8)
    face[:, 30:80, 60:200] = 190
    windows = WhisperFeatures.load(EMBEDDED / "whisper").windows_in_context(speech(0.12))
    wanted = cpu.generate(cpu.encode_reference(face), windows)
    got = gpu.generate(gpu.encode_reference(face), windows.numpy())
    assert got.shape == (3, 256, 256, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - wanted).mean() < levels
