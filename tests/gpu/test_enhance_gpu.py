"""GFPGAN on a CUDA device, with fresh random weights and faces: every way of running it against fp32, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.restore.align import FFHQ_512
from models.restore.align_device import aligned_pass, placements
from models.restore.gfpgan import GFPGAN
from models.restore.gfpgan_fused import FusedGFPGAN
from models.restore.gfpgan_net import GFPGANNet, channels_last
from models.restore.heads import Heads
from tests.support.random_weights import gfpgan_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LARGEST = 16
SIZES = (1, 4, 5, 16, 17)


def net() -> GFPGANNet:
    """GFPGAN in its own size, with random weights that keep activations near 1."""
    made = GFPGANNet()
    made.load_state_dict(gfpgan_weights({key: tuple(value.shape) for key, value in made.state_dict().items()}))
    return channels_last(made.cuda().eval().requires_grad_(False))


def faces(n: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return np.stack([cv2.resize(face, (256, 256), interpolation=cv2.INTER_CUBIC) for face in coarse])


def landmarks(n: int, seed: int) -> np.ndarray:
    moved = np.random.default_rng(seed).uniform(-4, 4, (n, 1, 2))
    return (((FFHQ_512 - 256) * 0.9 / 2 + 128)[None] + moved).astype(np.float32)


def around(n: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, 512, 512, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exact() -> Iterator[GFPGAN]:
    """In float32, not recorded. Without TF32, whose products are no more exact than those of fp16."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield GFPGAN(net(), max_faces=2)


@pytest.fixture(scope="module", params=["off", "graphs"])
def half(request: pytest.FixtureRequest) -> GFPGAN:
    return GFPGAN(net().half(), LARGEST, request.param)


def test_the_device_matches_the_cpu(exact: GFPGAN, tmp_path: Path) -> None:
    torch.save({"params_ema": exact.module.state_dict()}, tmp_path / "GFPGANv1.4.pth")
    cpu = GFPGAN.load(tmp_path / "GFPGANv1.4.pth")
    for points in (None, landmarks(2, 0)):
        wanted = cpu.restore(faces(2, 0), 1.0, points).astype(int)
        assert wanted.std() > 20  # a picture, not a flat or broken one
        assert np.abs(exact.restore(faces(2, 0), 1.0, points) - wanted).mean() < 0.5


def test_half_precision_recorded_or_not_matches_fp32(half: GFPGAN, exact: GFPGAN) -> None:
    for n in SIZES:
        shares = np.linspace(0, 1, n + 1)[1:]
        for given in ((None, None), (landmarks(n, n), None), (landmarks(n, n), around(n))):
            got = half.restore(faces(n, n), shares, *given)
            error = np.abs(got.astype(int) - exact.restore(faces(n, n), shares, *given))
            assert got.shape == (n, 512, 512, 3) and error.mean() < 0.2 and np.percentile(error, 99.9) <= 6


def test_the_kernels_around_the_network_match_torch() -> None:
    for side, points in ((256, landmarks(3, 0)), (256, None), (512, landmarks(3, 0) * 2)):
        rows = torch.from_numpy(placements(3, side, np.array([1, 0.4, 1]), points, soft=points is not None))
        crops = np.stack([cv2.resize(face, (side, side)) for face in faces(3, 0)])
        given = [torch.from_numpy(crops), rows, torch.from_numpy(around(3))]
        wanted = aligned_pass(lambda x: -1.1 * x, "cpu")(*given).int()
        got = aligned_pass(lambda x: -1.1 * x, "cuda")(*(one.cuda() for one in given)).cpu()
        error = (got - wanted).abs()
        assert wanted.float().std() > 20 and error.max() <= 2 and (error > 0).float().mean() < 5e-3


def test_calls_that_overlap_do_not_mix(half: GFPGAN) -> None:
    given = [(faces(n, seed), 1.0, landmarks(n, seed), around(n)) for seed, n in enumerate((16, 3, 16, 4, 16, 16))]
    alone = [half.restore(*one) for one in given]
    for _ in range(3):
        waits = [half.start(list(crops), *rest) for crops, *rest in given]
        for wait, wanted in zip(waits, alone, strict=True):
            assert np.array_equal(wait(), wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_large_styles_do_not_overflow_in_half_precision(fused: bool) -> None:
    large = net()
    for name, value in large.state_dict().items():
        if "modulation" in name:
            value *= 300  # scales near 300: times x, squared, past 65504
    x = torch.rand(2, 3, 512, 512, device="cuda") * 2 - 1
    with torch.inference_mode():
        wanted = large(x)
        half = large.half()
        got = FusedGFPGAN(half)(x) if fused else half(x.half()).float()
    assert torch.isfinite(got).all()
    assert (got - wanted).norm() < 0.02 * wanted.norm()


def test_heads_on_the_device_are_those_that_were_drawn() -> None:
    class Avatar:
        key = ("one", "1")

        def head(self, frame: int) -> np.ndarray:
            return np.full((512, 512, 3), frame, np.uint8)

    heads = Heads("cuda", cache_bytes=0)
    for wanted in ([3, 4, 3], list(range(100)), [99, 3, 200]):
        rows = heads.rows([(Avatar(), frame, None) for frame in wanted])
        assert rows.is_cuda and rows[:, 9, 9, 0].tolist() == wanted
