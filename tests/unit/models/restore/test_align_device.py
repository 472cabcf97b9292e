"""models.restore.align_device: a batch in torch, compared with single faces in OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from models.restore.align import FFHQ_512, restore_aligned
from models.restore.align_device import aligned_pass, enlarges, restore_on_device

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


def both(n: int, side: int, strength: float, landmarks: np.ndarray | None, around: np.ndarray | None):
    faces = pictures(n, side)
    run = aligned_pass(brighten, "cpu")
    return (
        restore_on_device(run, "cpu", faces, strength, landmarks, around, batch=2).astype(int),
        restore_aligned(faces, strength, landmarks, on_cpu, batch=2, around=around).astype(int),
    )


@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("laid", ["filling", "over grey", "over the head"])
def test_both_ways_give_the_same_picture(side: int, strength: float, laid: str) -> None:
    landmarks = None if laid == "filling" else points(3, side)
    around = pictures(3, 512, seed=5) if laid == "over the head" else None
    got, wanted = both(3, side, strength, landmarks, around)
    assert got.shape == (3, 512, 512, 3)
    error = np.abs(got - wanted)
    assert error.mean() < 0.25 and np.percentile(error, 99.5) <= BOUND


def test_a_shift_by_half_a_pixel_exceeds_the_bound() -> None:
    landmarks, faces, run = points(3, 256), pictures(3, 256), aligned_pass(brighten, "cpu")

    def askew(faces: torch.Tensor, into: torch.Tensor, back: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return run(faces, into, back + torch.tensor([0, 0, 0.5]), *rest)

    wanted = restore_aligned(faces, 1.0, landmarks, on_cpu, batch=2).astype(int)
    moved = restore_on_device(askew, "cpu", faces, 1.0, landmarks).astype(int)
    assert np.percentile(np.abs(moved - wanted), 99.5) > 2 * BOUND


def test_a_face_that_would_shrink_is_not_sent_to_the_device_pass() -> None:
    assert enlarges(None) and enlarges(points(2, 256))
    assert not enlarges(FFHQ_512[None] * 1.2)
