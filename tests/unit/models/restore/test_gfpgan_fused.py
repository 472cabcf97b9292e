"""GFPGAN's fused network against its slow twin, in float64: the operations differ, the numbers do not."""

from __future__ import annotations

import pytest
import torch

from models.restore.gfpgan_fused import DoubledKernel, FusedGFPGAN, SubpixelKernel
from models.restore.gfpgan_net import GFPGANNet
from tests.support.random_weights import GFPGAN_CHANNELS, gfpgan_weights


@pytest.mark.parametrize("side", [1, 2, 7])
def test_a_convolution_of_the_small_picture_equals_that_of_the_enlarged_one(side: int) -> None:
    torch.manual_seed(side)
    kernel, x = torch.randn(5, 3, 3, 3).double(), torch.randn(2, 3, side, side).double()
    assert (SubpixelKernel(kernel)(x) - DoubledKernel(kernel)(x)).abs().max() < 1e-12


def test_the_whole_network_equals_its_slow_twin() -> None:
    net = GFPGANNet(GFPGAN_CHANNELS)
    net.load_state_dict(gfpgan_weights({key: tuple(value.shape) for key, value in net.state_dict().items()}))
    net = net.double().eval().requires_grad_(False)
    x = torch.rand(2, 3, 512, 512).double() * 2 - 1
    with torch.inference_mode():
        fused = FusedGFPGAN(net, torch.float64)
        wanted, got = net(x), fused(x)
    assert all(buffer._base is None for buffer in fused.buffers())  # views of another dtype cannot be compiled
    assert wanted.std() > 0.1 and got.shape == wanted.shape
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()  # styles and colours are in fp32
