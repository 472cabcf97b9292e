"""A jaw that opens wider than in the source: its drop is measured, mask and chin follow, nothing else moves."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import cv2
import numpy as np
import pytest

from models.avatar.store import AvatarStore
from models.geometry import apply, warp
from models.stitch.jaw import LEAST_DROP_PX, WHOLE_DROP_PX, JawDrop, JawLine
from models.stitch.paste import PasteMemory, Paster, warp_alpha
from models.types import PreparedAvatar
from tests.support.paths import ROOT

PRESENTER = ROOT / "models" / "embedded" / "avatars"


@pytest.fixture(scope="module")
def avatar() -> PreparedAvatar:
    return AvatarStore(PRESENTER).load("presenter", latents=False)


@pytest.fixture(scope="module")
def line(avatar: PreparedAvatar) -> JawLine:
    return JawLine(avatar)


def opened(avatar: PreparedAvatar, line: JawLine, drop: float, index: int = 0) -> np.ndarray:
    """The presenter's own crop with its jaw moved down by `drop` crop px at the chin."""
    frame = np.array(avatar.frames[index])
    if drop:
        line.stretch_chin(frame, avatar.transforms[index], drop)
    return warp(frame, avatar.transforms[index])


@pytest.mark.parametrize("drop", [4.0, 8.0, 12.0])
def test_a_jaw_drop_of_known_size_is_measured(avatar: PreparedAvatar, line: JawLine, drop: float) -> None:
    face = opened(avatar, line, drop)
    assert line.drop(avatar.frames[0], face, avatar.transforms[0], 0) == pytest.approx(drop, abs=1.5)
    large = cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC)
    assert line.drop(avatar.frames[0], large, avatar.transforms[0], 0) == pytest.approx(drop, abs=1.5)


def test_a_jaw_as_open_as_in_the_source_changes_nothing(avatar: PreparedAvatar, line: JawLine) -> None:
    for index in (0, 40, 90):
        face = opened(avatar, line, 0, index)
        assert line.drop(avatar.frames[index], face, avatar.transforms[index], index) < LEAST_DROP_PX
        plain, followed = (np.array(avatar.frames[index]) for _ in range(2))
        paster = Paster(avatar, color_match=False, sharpness_match=False)
        paster.paste_into(plain, face, index)
        paster.paste_into(followed, face, index, memory=PasteMemory())
        assert np.array_equal(plain, followed)


def test_an_opening_jaw_is_followed_at_once_and_a_closing_one_slowly() -> None:
    drop = JawDrop()
    assert drop(12.0, 25) == 12
    falling = [drop(0.0, 25) for _ in range(8)]
    assert all(a > b for a, b in pairwise(falling) if a > 0)
    assert falling[0] > 4 and falling[-1] == 0


def test_small_drops_are_followed_progressively_less() -> None:
    seen = np.arange(0, 2 * WHOLE_DROP_PX, 0.1)
    used = np.array([JawDrop()(float(px), 25) for px in seen])
    assert used[0] == 0 and used[10] < 0.3  # a drop of one px is hardly followed
    assert used[seen >= WHOLE_DROP_PX] == pytest.approx(seen[seen >= WHOLE_DROP_PX])
    assert np.diff(used).min() >= 0 and np.diff(used).max() < 0.2


def test_the_mask_grows_downwards_only_and_ends_within_the_crop(avatar: PreparedAvatar, line: JawLine) -> None:
    mask = avatar.masks[0]
    lowered = line.lower_mask(mask, 10.0)
    assert (lowered >= mask).all()
    assert np.array_equal(lowered[:150], mask[:150])
    assert lowered[-1].max() == mask[-1].max()
    grown = (lowered.astype(int) - mask).sum(1)
    assert grown[200:].sum() > 10 * 255
    assert np.array_equal(line.lower_mask(mask, 0.0), mask)
    steps = np.abs(np.diff(lowered.astype(int), axis=0)).max()
    assert steps <= 64  # no hard edge


def chin_row(avatar: PreparedAvatar, frame: np.ndarray, index: int) -> float:
    """The row of the darkest skin below the chin, in frame px: the edge of the jaw's shadow."""
    x, y = avatar.landmarks[index][8]
    column = frame[round(y) - 12 : round(y) + 40, round(x) - 6 : round(x) + 7].astype(float).mean((1, 2))
    return float(np.argmin(np.diff(cv2.GaussianBlur(column[:, None], (1, 5), 0)[:, 0])) + round(y) - 12)


def test_a_chin_that_leaves_the_crop_is_neither_cut_nor_doubled(avatar: PreparedAvatar, line: JawLine) -> None:
    """The truth is the frame drawn with an open jaw. Its crop, pasted into the closed frame, reproduces the chin."""
    truth = np.array(avatar.frames[0])
    line.stretch_chin(truth, avatar.transforms[0], 13.0)
    face = warp(truth, avatar.transforms[0])
    plain, followed = (np.array(avatar.frames[0]) for _ in range(2))
    paster = Paster(avatar, color_match=False, sharpness_match=False)
    paster.paste_into(plain, face, 0)
    paster.paste_into(followed, face, 0, memory=PasteMemory())
    x, y = avatar.landmarks[0][8].astype(int)
    chin = (slice(y - 20, y + 40), slice(x - 50, x + 50))
    error = [np.sqrt(((image[chin].astype(float) - truth[chin]) ** 2).mean()) for image in (plain, followed)]
    assert error[0] > 8 and error[1] < 0.35 * error[0]
    assert chin_row(avatar, followed, 0) == pytest.approx(chin_row(avatar, truth, 0), abs=2)
    assert abs(chin_row(avatar, plain, 0) - chin_row(avatar, truth, 0)) > 4


def test_pixels_far_from_the_chin_are_unchanged(avatar: PreparedAvatar, line: JawLine) -> None:
    frame = np.array(avatar.frames[0])
    line.stretch_chin(frame, avatar.transforms[0], 16.0)
    changed = np.argwhere((frame != avatar.frames[0]).any(2))
    crop = apply(avatar.transforms[0].astype(float), changed[:, ::-1].astype(float))
    assert len(changed) > 1000
    assert crop[:, 1].min() > 150 and crop[:, 1].max() < 330 and crop[:, 0].min() > 40 and crop[:, 0].max() < 215


def test_the_chin_of_a_fading_mouth_moves_by_its_weight(avatar: PreparedAvatar, line: JawLine) -> None:
    face, plain = opened(avatar, line, 13.0), np.array(avatar.frames[0])
    drop = JawDrop()(line.drop(plain, face, avatar.transforms[0], 0), avatar.fps)
    alpha = warp_alpha(avatar.transforms[0], line.lower_mask(avatar.masks[0], drop), plain.shape[:2])
    free = np.ones(plain.shape[:2], bool)
    free[alpha.region] = alpha.weights == 0
    for weight in (0.0, 0.5, 1.0):
        frame, drawn = plain.copy(), plain.copy()
        Paster(avatar).paste_into(frame, face, 0, weight, PasteMemory())
        line.stretch_chin(drawn, avatar.transforms[0], drop * weight)
        assert np.array_equal(frame[free], drawn[free])
    assert (drawn[free] != plain[free]).any(1).sum() > 300


def test_an_avatar_without_a_jaw_line_is_pasted_without_following_the_jaw() -> None:
    transforms = np.tile(np.float32([[1, 0, 0], [0, 1, 0]]), (2, 1, 1))
    masks, landmarks = np.full((2, 256, 256), 255, np.uint8), np.zeros((2, 68, 2), np.float32)
    for faces in (np.ones(2, bool), np.zeros(2, bool)):
        assert not JawLine(PreparedAvatar("a", "1", 25, 256, 256, transforms, landmarks, masks, faces)).usable


def test_a_jaw_partly_outside_the_crop_is_measured_inside_it(avatar: PreparedAvatar) -> None:
    """Upright crops of a rolled head: a part of the jaw is outside, and the rest gives the drop."""
    turn = np.float32([[1.5, 0, 60], [0, 1, 0]])  # in crop px: the line runs from the middle to beyond the right side
    moved = [np.vstack([turn, [0, 0, 1]]) @ np.vstack([one, [0, 0, 1]]) for one in avatar.transforms]
    wide = dataclasses.replace(avatar, transforms=np.stack(moved)[:, :2].astype(np.float32))
    line = JawLine(wide)
    assert line.usable
    assert apply(wide.transforms[0], wide.landmarks[0])[4:13, 0].max() > 256
    for drop in (0.0, 8.0):
        face = opened(wide, line, drop)
        assert line.drop(wide.frames[0], face, wide.transforms[0], 0) == pytest.approx(drop, abs=1.5)
