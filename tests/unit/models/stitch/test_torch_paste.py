"""The batch on a device gives what the paste on the CPU gives, within 2 grey levels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from models.errors import ConfigError
from models.stitch.paste import paste
from models.stitch.torch_paste import paste_batch

FRAME = data.astronaut()


def similarity(scale: float, angle_deg: float, centre: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(angle_deg)
    linear = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.hstack([linear, (127.5 - linear @ centre)[:, None]]).astype(np.float32)


def soft_mask() -> np.ndarray:
    mask = np.zeros((256, 256), np.uint8)
    cv2.ellipse(mask, (128, 140), (88, 96), 0, 0, 360, 255, -1)
    return cv2.GaussianBlur(mask, (31, 31), 0)


@pytest.mark.parametrize("side", [256, 512])
def test_a_batch_agrees_with_the_paste_of_each(side: int) -> None:
    """Turned, small, large, half outside the frame, and one that needs the low-pass: all in one batch."""
    views = [(1.02, 0, (220.3, 120.7)), (0.7, -11, (230.5, 140.25)), (1.0, 5, (40, 40)), (1.9, 3, (300.2, 200.9))]
    transforms = np.stack([similarity(*view) for view in views])
    frames = np.stack([np.ascontiguousarray(np.roll(FRAME, 5 * k, 1)) for k in range(len(views))])
    faces = np.stack([cv2.resize(FRAME[40 + k : 296 + k, 100:356, ::-1], (side, side)) for k in range(len(views))])
    masks = np.stack([soft_mask()] * len(views))
    out = paste_batch(torch.from_numpy(frames), torch.from_numpy(faces), transforms, torch.from_numpy(masks)).numpy()
    for k in range(len(views)):
        one = paste(frames[k], faces[k], transforms[k], masks[k])
        assert np.abs(one.astype(int) - frames[k]).max() > 60  # something was pasted
        assert np.abs(out[k].astype(int) - one).max() <= 2
        assert (out[k] != one).mean() < 0.02


def test_one_mask_serves_all_the_input_stays_and_a_crop_outside_changes_nothing() -> None:
    frames = torch.from_numpy(np.stack([FRAME, FRAME]))
    faces = torch.zeros((2, 256, 256, 3), dtype=torch.uint8)
    transforms = np.stack([similarity(1, 0, (220, 130)), similarity(1, 0, (-400, 100))])
    out = paste_batch(frames, faces, transforms, torch.from_numpy(soft_mask()[None]))
    assert np.array_equal(frames[0].numpy(), FRAME)
    assert (out[0].numpy() != FRAME).any(2).sum() > 20_000
    assert np.array_equal(out[1].numpy(), FRAME)


def test_a_mode_that_tensors_do_not_have_is_refused_by_name() -> None:
    frames, faces = torch.zeros((1, 64, 64, 3), dtype=torch.uint8), torch.zeros((1, 256, 256, 3), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="feather"):
        paste_batch(frames, faces, similarity(1, 0, (9, 9))[None], torch.zeros((1, 256, 256)), mode="poisson")
