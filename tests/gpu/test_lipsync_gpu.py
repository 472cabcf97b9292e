"""Feature windows and faces on a CUDA device in half precision, compared with fp32 on the CPU; the fast decoders."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn

from benchmarks.weights import UNET, VAE
from models.cropped_decoder import CroppedDecoder, decoder_statistics
from models.features import WhisperFeatures
from models.musetalk import Decoder, MuseTalk
from models.musetalk_cuda import CudaFaces
from models.runtime import fused_pass
from models.types import CropWindow
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EMBEDDED = ROOT / "models" / "embedded"
PAIR = (EMBEDDED / "musetalk" / "musetalk.json", EMBEDDED / "musetalk" / "unet.safetensors", EMBEDDED / "vae")
WINDOW = CropWindow((116, 256), (20, 236))


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


def on_the_device(make: Callable[[], nn.Module]) -> nn.Module:
    """A network of the real size with random weights, in half precision; its norms scale and shift."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        network = make()
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm):
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.0, 0.2)
    return network.half().eval().requires_grad_(False).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def kl() -> Any:
    return on_the_device(lambda: AutoencoderKL.from_config(VAE))


def random(*shape: int, layout: bool = True) -> torch.Tensor:
    torch.manual_seed(sum(shape))
    values = torch.randn(shape, device="cuda", dtype=torch.float16)
    return values.contiguous(memory_format=torch.channels_last) if layout else values


@pytest.mark.parametrize("channels", [16, 128, 512])
def test_the_kernels_equal_their_twins_in_torch(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y, rest, wide = random(3, channels, 21, 24), random(3, channels, 23, 26), random(3, 4 * channels, 11, 13)
    bias, affine = random(channels, layout=False), (torch.randn(2, 3, channels + 8, device="cuda")[:, :, 8:]).unbind()
    norm = on_the_device(lambda: nn.GroupNorm(8, channels))

    def run() -> list[torch.Tensor]:
        parts = (
            *fused_pass.combine((y, 2, 1), (15, 17), bias, (rest, 4, 3), False, affine),
            *fused_pass.combine((y, 0, 0), (21, 24), bias, None, False, affine, silu=False, keep=False),
            *fused_pass.combine((wide, 3, 2), (15, 17), bias, None, True, affine),
            *fused_pass.combine((wide, 0, 0), (20, 24), None, None, True),
            *fused_pass.measured_affine(norm, random(3, channels, 70, 60), bias),
        )
        return [part for part in parts if part is not None]

    with torch.inference_mode():
        got = run()
        monkeypatch.setattr(fused_pass, "_has_kernels", lambda x, channels: False)
        wanted = run()
    assert len(got) == len(wanted) == 8
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape and other.float().std() > 0.01
        torch.testing.assert_close(one.float(), other.float(), atol=0.02, rtol=0.005)


@pytest.mark.parametrize("count", [1, 5])
def test_decoders_of_the_real_sizes_are_as_exact_as_eager_ones(kl: Any, count: int) -> None:
    tiny = on_the_device(AutoencoderTiny)
    latents = random(count, 4, 32, 32) * 0.18
    for vae, z in ((kl, latents), (tiny, latents * 5)):
        with torch.inference_mode():
            exact, eager = Decoder(copy.deepcopy(vae).float())(z.float()), Decoder(vae)(z)
            statistics = decoder_statistics(vae, z) if vae is kl else None
            made = {
                "cropped": (CroppedDecoder(vae, WINDOW)(z, statistics), WINDOW.cut(exact)),
                "whole": (CroppedDecoder(vae)(z), exact),
            }
        rounding = (eager - exact).abs()  # of half precision, grey levels
        for name, (got, wanted) in made.items():
            error = (got - wanted).abs()
            assert got.shape == wanted.shape and wanted.std() > 1, name
            assert error.mean() < 1.5 * rounding.mean() and error.max() < 2 * rounding.max(), (name, error.mean())


def test_recorded_networks_keep_up_and_start_the_next_batch_in_time(kl: Any) -> None:
    """The stage's part on the device: at least nine tenths of what the networks alone deliver, with all copies."""
    faces = CudaFaces(on_the_device(lambda: UNet2DConditionModel.from_config(UNET)), kl, "graphs", 32)
    rng = np.random.default_rng(0)
    latents, windows = rng.standard_normal((64, 8, 32, 32)), rng.standard_normal((64, 50, 384)).astype(np.float16)
    statistics = decoder_statistics(kl, random(64, 4, 32, 32)[:16] * 0.18).repeat(4, 1, 1, 1).cpu().numpy()
    avatar = faces.hold(latents.astype(np.float16), WINDOW, statistics)
    report = faces.report()
    alone_ms = sum(report["unet"]["ms"][size] for size in report["unet"]["full_batch"])
    decoder = next(row for name, row in report.items() if name.startswith("decoder rows"))
    alone_ms += sum(decoder["ms"][size] for size in decoder["full_batch"])
    begin_s, batches, pending = time.perf_counter(), 30, None
    for number in range(batches):
        begun = faces.start([(avatar, k, windows[k]) for k in range(32 * (number % 2), 32 * (number % 2) + 32)])
        assert pending is None or len(pending()) == 32
        begun.wait_for_last_part()
        pending = begun
    assert pending is not None and pending()[0].shape == (*WINDOW.shape, 3)
    took_ms = (time.perf_counter() - begin_s) * 1e3 / batches
    assert alone_ms / took_ms > 0.9, (alone_ms, took_ms, report)
