"""models.restore.align_device: a batch in torch, compared with single faces in OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from models.restore.align import FFHQ_512, restore_aligned
from models.restore.align_device import aligned_pass, enlarges, start_on_device
from models.runtime.transfers import Transfers

BOUND = 4  # grey levels, for 99.5 % of the pixels: OpenCV rounds positions to 1/32 px, which matters at hard edges


def brighten(x: torch.Tensor) -> torch.Tensor:
    """A fake network: [-1, 1] → darker, with red and blue exchanged."""
    return 0.8 * x.flip(1) - 0.1


def on_cpu(faces: np.ndarray) -> np.ndarray:
    """The same network on uint8 pictures."""
    x = faces[..., ::-1].astype(np.float32) / 127.5 - 1
    return np.rint((np.clip(0.8 * x - 0.1, -1, 1) + 1) * 127.5).astype(np.uint8)


def pictures(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise, with an edge."""
    rng = np.random.default_rng(seed)
    faces = rng.integers(0, 256, (n, side // 8, side // 8, 3), dtype=np.uint8)
    faces = np.stack([cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC) for face in faces])
    faces[:, side // 3 : side // 2, side // 4 : side // 2] = (250, 20, 90)
    return faces


def points(n: int, side: int) -> np.ndarray:
    """Landmarks of faces smaller than the template, slightly rotated."""
    rng = np.random.default_rng(3)
    out = []
    for _ in range(n):
        turn, scale = np.deg2rad(rng.uniform(-10, 10)), side / 512 * rng.uniform(0.75, 0.95)
        matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        out.append((FFHQ_512 - 256) @ matrix.T + side / 2 + rng.uniform(-6, 6, 2))
    return np.array(out, np.float32)


def on_device(run: Callable[..., torch.Tensor], *given: Any) -> np.ndarray:
    return start_on_device(run, Transfers("cpu"), *given, batch=2)().astype(int)


@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("laid", ["filling", "over grey", "over the head"])
def test_both_ways_give_the_same_picture(side: int, laid: str) -> None:
    landmarks = None if laid == "filling" else points(3, side)
    around = pictures(3, 512, seed=5) if laid == "over the head" else None
    given = pictures(3, side), np.array([1.0, 0.4, 0.0]), landmarks
    got = on_device(aligned_pass(brighten, "cpu"), *given, around)
    wanted = restore_aligned(*given, on_cpu, batch=2, around=around).astype(int)
    assert got.shape == (3, 512, 512, 3)
    error = np.abs(got - wanted)
    assert error.mean() < 0.25 and np.percentile(error, 99.5) <= BOUND


def test_a_shift_by_half_a_pixel_exceeds_the_bound() -> None:
    landmarks, faces, run = points(3, 256), pictures(3, 256), aligned_pass(brighten, "cpu")

    def askew(faces: torch.Tensor, placements: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        placements[:, 8] += 0.5  # the matrix of the paste: x and y
        placements[:, 11] += 0.5
        return run(faces, placements, around)

    wanted = restore_aligned(faces, 1.0, landmarks, on_cpu, batch=2).astype(int)
    assert np.percentile(np.abs(on_device(askew, faces, 1.0, landmarks) - wanted), 99.5) > 2 * BOUND


def test_a_face_that_would_shrink_is_not_sent_to_the_device_pass() -> None:
    assert enlarges(None) and enlarges(points(2, 256))
    assert not enlarges(FFHQ_512[None] * 1.2)
