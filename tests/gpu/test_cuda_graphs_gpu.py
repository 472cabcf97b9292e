"""CUDA graphs and compiled passes compared with plain ones, in half precision: MuseTalk's networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.musetalk_cuda import CudaMuseTalk
from tests.support.paths import ROOT

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
