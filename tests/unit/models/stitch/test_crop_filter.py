"""The temporal filter reduces noise, keeps the timing and the edges of a moving mouth, and leaves no ghosts."""

import dataclasses
from functools import cache

import cv2
import numpy as np
import pytest

from models.avatar.store import AvatarStore
from models.stitch.crop_filter import WHOLE_CROP, CropFilter, pasted_box
from models.stitch.mouth import Mouth
from models.types import CROP_PX
from tests.support.paths import ROOT

EMBEDDED_AVATARS = ROOT / "models" / "embedded" / "avatars"
PART = (slice(None), slice(140, 220), slice(80, 180))  # rows and columns of the mouth


def face(opening_px: float = 0.0, light: float = 1.0, size: int = CROP_PX) -> np.ndarray:
    """A plain face with a dark mouth of that height, with edges soft by a pixel."""
    rows, columns = np.mgrid[:CROP_PX, :CROP_PX].astype(np.float32)
    distance = np.sqrt(((columns - 128) / 30) ** 2 + ((rows - 180) / max(opening_px / 2, 0.5)) ** 2)
    inside = np.clip((1 - distance) * max(opening_px / 2, 0.5) + 0.5, 0, 1)
    skin = 150 + 20 * np.sin(columns / 17) + 10 * np.cos(rows / 11)
    image = (skin * (1 - inside) + 30 * inside)[..., None] * np.float32([1.0, 0.8, 0.7]) * light
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def noisy(faces: np.ndarray, levels: float) -> np.ndarray:
    if not levels:
        return faces
    noise = np.random.default_rng(0).normal(0, levels, faces.shape)
    return np.clip(np.rint(faces + noise), 0, 255).astype(np.uint8)


def steadied(faces: np.ndarray) -> np.ndarray:
    crop_filter = CropFilter()
    return np.stack([crop_filter(one) for one in faces])


def flicker(faces: np.ndarray) -> float:
    """RMS of the second difference over time, relative to independent noise of 1 level."""
    shown = faces[PART].astype(np.float64)
    return float(np.sqrt(np.mean((shown[2:] - 2 * shown[1:-1] + shown[:-2]) ** 2) / 6))


def openings(faces: np.ndarray) -> np.ndarray:
    """The mouth's height in px, from the darkness of its middle column."""
    return (1 - (faces[:, 140:220, 128, 0].astype(np.float64) - 30) / 130).clip(0).sum(1)


@pytest.mark.parametrize("size", [256, 512])
def test_noise_on_a_still_face_falls_to_less_than_half(size):
    faces = noisy(np.stack([face(10, size=size)] * 14), 4.0)
    after = steadied(faces)
    assert flicker(faces) == pytest.approx(4.0, rel=0.1)
    assert flicker(after[8:]) < 0.4 * flicker(faces)
    error = after[8:].mean(0) - face(10, size=size)
    assert np.abs(cv2.blur(error, (15, 15))).max() < 1.0  # still the same face, in every part of it


@cache
def speaking_face() -> np.ndarray:
    times = np.arange(75) / 25
    heights = 14 * np.abs(np.sin(2 * np.pi * 2.5 * times)) * (0.6 + 0.4 * np.sin(2 * np.pi * 0.4 * times))
    return np.stack([face(height) for height in heights])


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_speaking_mouth_keeps_its_opening_and_its_time(noise):
    faces = noisy(speaking_face(), noise)
    before, after = openings(faces), openings(steadied(faces))
    r = {lag: np.corrcoef(before[4:-4], np.roll(after, -lag)[4:-4])[0, 1] for lag in (-1, 0, 1)}
    assert r[0] >= 0.99 and max(r, key=r.get) == 0
    assert after.std() / before.std() == pytest.approx(1.0, abs=0.03)
    centre = (r[1] - r[-1]) / (2 * (2 * r[0] - r[1] - r[-1]))  # the lag in frames, by a parabola through the three
    assert abs(centre) < 0.06


def test_the_first_crop_and_the_first_after_a_reset_are_unchanged():
    mouth, first, other = Mouth(25, crop_filter=CropFilter()), face(0), face(3)
    assert np.array_equal(mouth.crop(first, 1.0), first)
    near = noisy(first[None], 2.0)[0]
    assert not np.array_equal(mouth.crop(near, 1.0), near)
    assert np.array_equal(mouth.crop(other, 0.0), other)
    assert np.array_equal(mouth.crop(near, 0.5), near)
    assert np.array_equal(Mouth(25).crop(near, 1.0), near)  # without a filter


def test_a_change_of_light_leaves_no_ghost():
    dark, bright = face(8, 0.8), face(8, 1.0)
    after = steadied(np.stack([dark] * 6 + [bright] * 2))
    assert np.abs(after[6].astype(int) - bright).max() <= 1


def test_a_mouth_that_shuts_at_once_leaves_no_ghost():
    after = steadied(np.stack([face(24)] * 6 + [face(0)] * 2))
    ghost = np.abs(after[6].astype(int) - face(0))[PART[1:]]
    assert ghost.max() <= 10 and ghost.mean() < 0.05  # of 120 levels, and only at the mouth's corners
    assert np.abs(after[7].astype(int) - face(0))[PART[1:]].max() <= 7  # decreasing


def test_only_the_pasted_box_is_filtered():
    crop_filter, first, second = CropFilter((40, 100, 216, 256)), *noisy(np.stack([face(8)] * 2), 4.0)
    crop_filter(first)
    before = second.copy()
    after = crop_filter(second)
    assert np.array_equal(second, before)
    changed = np.argwhere((after != second).any(2))
    assert changed.min(0).tolist() == [100, 40] and changed.max(0).tolist() == [255, 215]


def test_the_box_holds_every_mask_of_the_avatar():
    presenter = AvatarStore(EMBEDDED_AVATARS).load("presenter", latents=False, frames=False)
    x1, y1, x2, y2 = pasted_box(presenter)
    outside = presenter.masks.copy()
    outside[:, y1:y2, x1:x2] = 0
    assert not outside.any() and (x2 - x1) * (y2 - y1) < 0.5 * CROP_PX**2
    empty = dataclasses.replace(presenter, masks=np.zeros_like(presenter.masks))
    assert pasted_box(empty) == WHOLE_CROP  # without any mask
