"""A batch pasted on a CUDA device against the paste of each on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.stitch.paste import paste
from models.stitch.torch_paste import paste_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("side", [256, 512])
def test_the_device_pastes_within_two_levels_of_the_cpu(side: int) -> None:
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8), np.ones((1, 10, 10, 1), np.uint8))
    faces = np.kron(
        rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), np.ones((1, side // 32, side // 32, 1), np.uint8)
    )
    mask = np.full((256, 256), 200, np.uint8)
    turn, scale = np.deg2rad(7), 0.9
    linear = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centres = [(310.3, 240.7), (200.1, 180.2), (30.0, 20.5)]
    transforms = np.stack([np.hstack([linear, (127.5 - linear @ c)[:, None]]) for c in centres]).astype(np.float32)
    onto = [torch.from_numpy(array).cuda() for array in (frames, faces)]
    out = paste_batch(*onto, transforms, torch.from_numpy(mask[None]).cuda()).cpu().numpy()
    for k in range(3):
        one = paste(frames[k], faces[k], transforms[k], mask).astype(int)
        assert np.abs(one - frames[k]).max() > 60
        assert np.abs(out[k] - one).max() <= 2
