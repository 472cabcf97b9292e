"""GFPGAN's fused network against its slow twin: the operations differ, the numbers do not."""

import torch

from models.restore.gfpgan_fused import FusedGFPGAN
from models.restore.gfpgan_net import GFPGANNet, channels_last
from tests.support.random_weights import GFPGAN_CHANNELS, gfpgan_weights


def test_the_fused_network_equals_its_slow_twin() -> None:
    net = GFPGANNet(GFPGAN_CHANNELS)
    net.load_state_dict(gfpgan_weights({key: tuple(value.shape) for key, value in net.state_dict().items()}))
    net = channels_last(net.eval().requires_grad_(False))
    x = torch.rand(2, 3, 512, 512) * 2 - 1
    with torch.inference_mode():
        wanted, got = net(x), FusedGFPGAN(net)(x)
    assert wanted.std() > 0.1 and got.shape == wanted.shape
    assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max()
