"""Canvas: its frames equal a paste into the whole frame, and samples outside the face are unchanged."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from models.avatar.store import AvatarStore
from models.geometry import warp
from models.media.yuv import PatchedPicture, Picture, ReplacedPicture, picture_at, picture_of, rgb_part
from models.stitch.canvas import Canvas
from models.stitch.paste import PasteMemory, Paster
from models.types import PreparedAvatar
from tests.support.paths import ROOT

PRESENTER = ROOT / "models" / "embedded" / "avatars"
FRAMES = (0, 3, 40, 41, 90, 149)


@pytest.fixture(scope="module")
def avatar() -> PreparedAvatar:
    return AvatarStore(PRESENTER).load("presenter", latents=False)


def boxed(avatar: PreparedAvatar) -> PreparedAvatar:
    """The same avatar with whole-pixel boxes, as MuseTalk cuts."""
    boxes = np.tile(np.array([[170, 110, 330, 290]], np.int32), (len(avatar), 1))
    return dataclasses.replace(avatar, boxes=boxes)


def speaking(avatar: PreparedAvatar, index: int) -> np.ndarray:
    """A crop of frame `index` whose chin is 12 px lower and whose colour is slightly off."""
    crop = warp(avatar.frames[index], avatar.transforms[index])
    crop[150:] = np.roll(crop[150:], 12, 0)
    return cv2.convertScaleAbs(crop, alpha=0.97)


def drawn(frame: Picture | PatchedPicture | ReplacedPicture) -> Picture:
    picture = Picture.empty(*frame.shape)
    picture.copy_from(frame)
    return picture


def pasted_whole(avatar: PreparedAvatar, paster: Paster, memory: PasteMemory, index: int, weight: float) -> np.ndarray:
    """The slow implementation: convert the whole frame to RGB and paste the face."""
    own = picture_at(avatar.frames, index)
    frame = rgb_part(own, (0, 0, avatar.width, avatar.height))
    paster.paste_into(frame, speaking(avatar, index), index, weight, memory)
    return frame


@pytest.mark.parametrize(
    ("mode", "geometry"),
    [("poisson", "similarity"), ("multiband", "similarity"), ("feather", "musetalk"), ("poisson", "musetalk")],
)
def test_a_canvas_frame_equals_a_paste_into_the_whole_frame(avatar: PreparedAvatar, mode: str, geometry: str) -> None:
    given = boxed(avatar) if geometry == "musetalk" else avatar
    canvas, memory, memory_of_whole = Canvas(given), PasteMemory(), PasteMemory()
    paster, whole = Paster(given, mode), Paster(given, mode)
    for index, weight in zip(FRAMES, (1.0, 1.0, 0.5, 1.0, 0.1, 1.0), strict=True):
        frame = canvas.frame(paster, speaking(given, index), index, weight, memory)
        assert isinstance(frame, PatchedPicture)
        expected, own = pasted_whole(given, whole, memory_of_whole, index, weight), picture_at(given.frames, index)
        rgb = rgb_part(own, (0, 0, given.width, given.height))
        touched = (expected != rgb).any(-1)
        rows, columns = slice(frame.top, frame.top + len(frame.rgb)), slice(frame.left, frame.left + frame.rgb.shape[1])
        assert np.array_equal(frame.rgb, expected[rows, columns])
        assert np.array_equal(frame.changed > 0, touched[rows, columns])
        assert touched.sum() == touched[rows, columns].sum() > 1000  # all changes are inside the part


@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("memory", [True, False])
def test_the_paste_in_planes_agrees_with_the_paste_in_rgb(avatar: PreparedAvatar, side: int, memory: bool) -> None:
    canvas, paster, whole = Canvas(avatar), Paster(avatar), Paster(avatar)
    memories = [PasteMemory(), PasteMemory()] if memory else [None, None]
    for index, weight in zip(FRAMES, (1.0, 1.0, 0.5, 1.0, 0.1, 1.0), strict=True):
        own = picture_at(avatar.frames, index)
        face = cv2.resize(speaking(avatar, index), (side, side), interpolation=cv2.INTER_CUBIC)
        frame = canvas.frame(paster, face, index, weight, memories[0])
        assert isinstance(frame, ReplacedPicture)
        rgb = rgb_part(own, (0, 0, avatar.width, avatar.height))
        whole.paste_into(rgb, face, index, weight, memories[1])
        for made, slow, before in zip(drawn(frame).planes, picture_of(rgb).planes, own.planes, strict=True):
            apart = np.abs(made.astype(int) - slow)[before != made]
            assert apart.mean() < 0.7 and (apart <= 2).mean() > (0.99 if made.shape[0] == 512 else 0.97)
            assert apart.max() <= 12
        if memory:
            assert memories[0].jaw.px == memories[1].jaw.px
            assert memories[0].tone.gain == pytest.approx(memories[1].tone.gain, abs=0.015)
            assert memories[0].tone.sharp == pytest.approx(memories[1].tone.sharp, abs=0.05)


def test_samples_outside_the_face_are_those_of_the_file(avatar: PreparedAvatar) -> None:
    canvas, paster, memory = Canvas(avatar), Paster(avatar), PasteMemory()
    for index in FRAMES:
        own = picture_at(avatar.frames, index)
        made = drawn(canvas.frame(paster, speaking(avatar, index), index, 1.0, memory))
        rgb = rgb_part(own, (0, 0, 512, 512))
        Paster(avatar).paste_into(rgb, speaking(avatar, index), index, 1.0, PasteMemory())
        touched = cv2.dilate((rgb != rgb_part(own, (0, 0, 512, 512))).any(-1).astype(np.uint8), np.ones((5, 5))) > 0
        assert np.array_equal(made.luma[~touched], own.luma[~touched]) and touched.mean() < 0.2
        quarter = ~touched.reshape(256, 2, 256, 2).any((1, 3))
        assert np.array_equal(made.red[quarter], own.red[quarter])


def test_samples_inside_the_mask_are_the_pasted_face(avatar: PreparedAvatar) -> None:
    canvas, paster = Canvas(avatar), Paster(avatar)
    face = np.full((256, 256, 3), (30, 200, 60), np.uint8)
    made = drawn(canvas.frame(paster, face, 0))
    core = paster._alpha(0)
    rows, columns = core.region
    full = core.weights == 255
    rgb = rgb_part(made, (0, 0, 512, 512))[rows, columns][cv2.erode(full.astype(np.uint8), np.ones((5, 5))) > 0]
    assert len(rgb) > 5000 and np.abs(rgb.astype(int) - (30, 200, 60)).max() <= 2


def test_a_frame_without_a_visible_face_is_unchanged(avatar: PreparedAvatar) -> None:
    no_face = dataclasses.replace(avatar, has_face=np.zeros(len(avatar), bool))
    face = speaking(avatar, 5)
    for given, crop, weight in ((avatar, face, 0.0), (avatar, None, 1.0), (no_face, face, 1.0)):
        frame = Canvas(given).frame(Paster(given), crop, 5, weight, PasteMemory())
        assert isinstance(frame, Picture)
        assert np.array_equal(frame.luma, picture_at(avatar.frames, 5).luma)


@pytest.mark.parametrize("geometry", ["similarity", "musetalk"])
def test_a_paste_neither_reads_nor_writes_outside_its_box(avatar: PreparedAvatar, geometry: str) -> None:
    given = boxed(avatar) if geometry == "musetalk" else avatar
    rng = np.random.default_rng(0)
    clean, dirty, memories = Paster(given), Paster(given), (PasteMemory(), PasteMemory())
    for index in FRAMES:
        x1, y1, x2, y2 = clean.affected_box(index)
        assert 0 <= x1 < x2 <= 512 and 0 <= y1 < y2 <= 512 and (x2 - x1) * (y2 - y1) < 0.3 * 512 * 512
        frame = np.array(given.frames[index])
        noise = rng.integers(0, 255, frame.shape, np.uint8)
        around = noise.copy()
        around[y1:y2, x1:x2] = frame[y1:y2, x1:x2]
        clean.paste_into(frame, speaking(given, index), index, 1.0, memories[0])
        dirty.paste_into(around, speaking(given, index), index, 1.0, memories[1])
        assert np.array_equal(around[y1:y2, x1:x2], frame[y1:y2, x1:x2])
        outside = np.ones(frame.shape[:2], bool)
        outside[y1:y2, x1:x2] = False
        assert np.array_equal(around[outside], noise[outside])


def test_a_face_at_the_frame_edge_is_pasted_partly(avatar: PreparedAvatar) -> None:
    low = avatar.transforms.copy()
    low[:, :, 2] -= low[:, :, :2] @ np.float32([0, 170])  # the crop 170 px further down: the chin is cut off
    given = dataclasses.replace(avatar, transforms=low, landmarks=avatar.landmarks + np.float32([0, 170]))
    away = low.copy()
    away[:, :, 2] -= away[:, :, :2] @ np.float32([0, 600])
    frame = Canvas(given).frame(Paster(given), speaking(avatar, 0), 0, 1.0, PasteMemory())
    assert isinstance(frame, ReplacedPicture) and frame.top + frame.part.shape[0] == 512
    gone = dataclasses.replace(given, transforms=away, landmarks=avatar.landmarks + np.float32([0, 770]))
    assert isinstance(Canvas(gone).frame(Paster(gone), speaking(avatar, 0), 0, 1.0, PasteMemory()), Picture)
