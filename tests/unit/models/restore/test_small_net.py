"""The restorer's network: bicubic upsampling by default, linear in strength."""

import cv2
import numpy as np
import torch

from models.restore.small_net import ImageGraph, SmallRestorerNet, bicubic_kernel

MAX_BYTES = 600_000  # of the embedded file, in fp16


def noise(n: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (n, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_untrained_network_is_opencvs_bicubic_up_to_the_borders() -> None:
    faces = noise()
    ours = ImageGraph(SmallRestorerNet())(faces, torch.ones(1)).numpy()
    theirs = np.stack([cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC) for face in faces.numpy()])
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_the_bicubic_kernel_sums_to_one() -> None:
    kernel = bicubic_kernel()
    assert kernel.shape == (48, 12, 3, 3)
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(48))


def test_the_output_is_linear_in_strength() -> None:
    torch.manual_seed(0)
    net = SmallRestorerNet()
    torch.nn.init.normal_(net.tail.weight, std=0.02)
    faces = noise().permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        none, some, full = (net(faces, torch.tensor([strength])) for strength in (0.0, 0.3, 1.0))
    assert (full - none).abs().mean() > 1
    torch.testing.assert_close(some, none + 0.3 * (full - none), atol=1e-2, rtol=0)


def test_the_weights_are_small_enough_to_embed() -> None:
    assert 2 * sum(parameter.numel() for parameter in SmallRestorerNet().parameters()) < MAX_BYTES
