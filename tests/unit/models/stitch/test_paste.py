"""Pasting a face crop: exact geometry, changes only under the mask, and an unchanged crop is nearly invisible."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from skimage import data

from models.errors import ConfigError
from models.geometry import warp
from models.stitch.paste import PasteMemory, Paster, paste, rows_outside, warp_alpha
from models.types import CROP_PX, PreparedAvatar

FRAME = data.astronaut()  # (512, 512, 3), a photograph of a face


def similarity(scale: float, angle_deg: float, centre: tuple[float, float]) -> np.ndarray:
    """Frame px → crop px: `scale` crop px per frame px, rotated, with the frame's `centre` in the crop's middle."""
    angle = np.deg2rad(angle_deg)
    linear = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = np.array([(CROP_PX - 1) / 2] * 2) - linear @ centre
    return np.hstack([linear, shift[:, None]]).astype(np.float32)


def feathered_mask() -> np.ndarray:
    mask = np.zeros((CROP_PX, CROP_PX), np.uint8)
    cv2.ellipse(mask, (128, 140), (88, 96), 0, 0, 360, 255, -1)
    return cv2.GaussianBlur(mask, (31, 31), 0)


def cut(transform: np.ndarray, side: int = CROP_PX) -> np.ndarray:
    """The crop, cut as in preparation."""
    factor = side / CROP_PX
    matrix = transform.astype(np.float64) * factor
    matrix[:, 2] += (factor - 1) / 2
    return warp(FRAME, matrix, side)


def slow_paste(frame: np.ndarray, face: np.ndarray, transform: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The slow implementation: each frame pixel in float64, cubic (a = −0.75) for the face, linear for the mask."""

    def cubic(d: np.ndarray, a: float = -0.75) -> np.ndarray:
        d = np.abs(d)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray, kernel: object, reach: int, edge: bool) -> np.ndarray:
        side, out, total = len(image), np.zeros((*x.shape, image.shape[2])), np.zeros((*x.shape, 1))
        for j in range(1 - reach, reach + 1):
            for i in range(1 - reach, reach + 1):
                px, py = np.floor(x).astype(int) + i, np.floor(y).astype(int) + j
                inside = (px >= 0) & (px < side) & (py >= 0) & (py < side) | edge
                weight = kernel(x - px) * kernel(y - py) * inside  # type: ignore[operator]
                out += weight[..., None] * image[np.clip(py, 0, side - 1), np.clip(px, 0, side - 1)]
                total += weight[..., None]
        return np.clip(np.rint(out / total if edge else out), 0, 255)

    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float64)
    (a, b, c), (d, e, f) = transform.astype(np.float64)
    cx, cy = a * x + b * y + c, d * x + e * y + f
    factor = len(face) / CROP_PX
    at = [np.rint(((c + 0.5) * factor - 0.5) * 32) / 32 for c in (cx, cy)]  # OpenCV's grid of positions
    over = sample(face, *at, cubic, 2, edge=True)
    alpha = sample(mask[..., None], cx, cy, lambda t: np.maximum(0, 1 - np.abs(t)), 1, edge=False) / 255
    return np.rint(over * alpha + frame * (1 - alpha)).astype(np.uint8)


def avatar_of(transforms: np.ndarray, masks: np.ndarray, has_face: np.ndarray | None = None) -> PreparedAvatar:
    count = len(transforms)
    faces = np.ones(count, bool) if has_face is None else has_face
    landmarks = np.zeros((count, 68, 2), np.float32)
    return PreparedAvatar("a", "1", 25, 512, 512, transforms, landmarks, masks, faces)


@pytest.mark.parametrize(
    ("scale", "angle", "centre", "side"),
    [
        (1.02, 0, (220.3, 120.7), 256),
        (1.2, 7, (225, 118), 256),
        (0.7, -11, (230.5, 140.25), 256),
        (0.55, 3, (230, 200), 512),  # more frame px than crop px, even at 512
        (1.0, 5, (60, 40), 256),  # half outside the frame
    ],
)
def test_the_fast_paste_agrees_with_the_slow_one(scale: float, angle: float, centre: tuple, side: int) -> None:
    transform, mask = similarity(scale, angle, centre), feathered_mask()
    face = np.ascontiguousarray(cut(transform, side)[..., ::-1])  # colours that differ from the frame's
    fast, slow = paste(FRAME, face, transform, mask), slow_paste(FRAME, face, transform, mask)
    difference = np.abs(fast.astype(int) - slow)
    assert difference.max() <= 1
    assert np.abs(fast.astype(int) - FRAME).max() > 50  # something was pasted


@pytest.mark.parametrize(
    ("scale", "side", "limit"),  # face px = 256 / scale
    [(1.0, 256, 2.2), (1.2, 256, 1.4), (1.6, 256, 0.5), (2.0, 256, 0.5), (3.0, 256, 0.5), (1.0, 512, 0.5)],
)
def test_pasting_an_unchanged_crop_reproduces_the_frame(scale: float, side: int, limit: float) -> None:
    transform = similarity(scale, 4, (221.37, 117.81))
    out = paste(FRAME, cut(transform, side), transform, np.full((256, 256), 255, np.uint8))
    region = paste(np.zeros_like(FRAME), np.full((256, 256, 3), 255, np.uint8), transform, feathered_mask()) > 128
    difference = (out.astype(float) - FRAME)[region]
    assert np.sqrt(np.mean(difference**2)) < limit  # grey levels rms
    assert abs(difference.mean()) < 0.1  # the brightness does not change


def test_a_crop_pasted_by_a_whole_pixel_transform_is_exact() -> None:
    transform = np.array([[1, 0, -100], [0, 1, -30]], np.float32)
    face = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    out = paste(FRAME, face, transform, np.full((256, 256), 255, np.uint8))
    assert np.array_equal(out[30:286, 100:356], face)
    out[30:286, 100:356] = FRAME[30:286, 100:356]
    assert np.array_equal(out, FRAME)


def test_a_512_crop_is_pasted_at_the_same_place_as_a_256_crop() -> None:
    """The centre of mass of a dot, pasted from either crop, is the same: pixel-centre coordinates."""
    transform, full = similarity(1.1, 10, (250, 250)), np.full((256, 256), 255, np.uint8)
    small = np.full((256, 256, 3), 60, np.uint8)
    small[100:104, 150:154] = 200
    large = np.kron(small, np.ones((2, 2, 1), np.uint8))
    centres = []
    for face in (small, large):
        grey = paste(np.full_like(FRAME, 60), face, transform, full)[..., 0].astype(float) - 60  # allows overshoot
        y, x = np.mgrid[:512, :512]
        centres.append(((grey * x).sum() / grey.sum(), (grey * y).sum() / grey.sum()))
    expected = cv2.invertAffineTransform(transform.astype(np.float64)) @ (151.5, 101.5, 1)
    assert np.allclose(centres[0], centres[1], atol=0.03)
    assert np.allclose(centres[0], expected, atol=0.03)


def test_a_minified_face_is_averaged_and_does_not_alias() -> None:
    """One-pixel stripes at 512 px, shown at a quarter of the size, are even grey without moiré."""
    transform = similarity(2.0, 0, (256, 256))
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    out = paste(FRAME, stripes, transform, np.full((256, 256), 255, np.uint8))[210:300, 210:300]
    assert abs(out.mean() - 127.5) < 1 and out.std() < 2


def test_only_the_masked_region_changes_and_the_input_does_not() -> None:
    transform, mask, frame = similarity(1.0, 6, (220, 130)), feathered_mask(), FRAME.copy()
    out = paste(frame, np.zeros((256, 256, 3), np.uint8), transform, mask)
    untouched = slow_paste(np.zeros_like(FRAME), np.full((256, 256, 3), 255, np.uint8), transform, mask) == 0
    assert np.array_equal(frame, FRAME)
    assert np.array_equal(out[untouched], FRAME[untouched]) and not np.array_equal(out, FRAME)


def test_a_crop_outside_the_frame_or_an_empty_mask_changes_nothing() -> None:
    face = np.zeros((256, 256, 3), np.uint8)
    assert np.array_equal(paste(FRAME, face, similarity(1, 0, (-400, 100)), feathered_mask()), FRAME)
    assert np.array_equal(paste(FRAME, face, similarity(1, 0, (200, 100)), np.zeros((256, 256), np.uint8)), FRAME)


def test_a_paster_equals_paste_and_limits_its_mask_cache() -> None:
    transforms = np.stack([similarity(1.0, k, (220 + k, 130)) for k in range(6)])
    masks = np.stack([feathered_mask()] * 6)
    has_face = np.array([True] * 5 + [False])
    paster = Paster(avatar_of(transforms, masks, has_face), cache_bytes=150_000)
    face = np.full((256, 256, 3), 77, np.uint8)
    for k in [0, 1, 2, 3, 4, 3, 2, 1, 0, 0]:
        frame = FRAME.copy()
        paster.paste_into(frame, face, k)
        assert np.array_equal(frame, paste(FRAME, face, transforms[k], masks[k]))
        assert 0 < paster._alphas.currsize <= 150_000
    frame = FRAME.copy()
    paster.paste_into(frame, face, 5)
    assert np.array_equal(frame, FRAME)  # no face in this frame


def faded(weight: float, avatar: PreparedAvatar) -> np.ndarray:
    frame = FRAME.copy()
    Paster(avatar).paste_into(frame, np.full((256, 256, 3), 250, np.uint8), 0, weight)
    return frame


@pytest.mark.parametrize("boxed", [False, True])
def test_a_weight_fades_between_the_frames_own_mouth_and_the_face(boxed: bool) -> None:
    avatar = avatar_of(similarity(1.0, 0 if boxed else 4, (220, 130))[None], feathered_mask()[None])
    if boxed:
        avatar = dataclasses.replace(avatar, boxes=np.array([[92, 2, 348, 258]], np.int32))
    whole = faded(1.0, avatar)
    assert np.array_equal(faded(0.0, avatar), FRAME)
    assert np.abs(whole.astype(int) - FRAME).max() > 100
    for weight in (0.25, 0.5, 0.9):
        between = FRAME + weight * (whole.astype(float) - FRAME)
        assert np.abs(faded(weight, avatar) - between).max() <= 0.51


def utterance(paster: Paster, faces: list[np.ndarray], memory: PasteMemory | None) -> np.ndarray:
    frames = np.stack([FRAME] * len(faces))
    for frame, face in zip(frames, faces, strict=True):
        paster.paste_into(frame, face, 0, memory=memory)
    return frames


def test_the_memory_of_an_utterance_is_independent_of_others() -> None:
    """Two utterances on one paster, interleaved or alone, before or after another one: the results are equal."""
    transform = similarity(1.0, 3, (222, 128))
    paster = Paster(avatar_of(transform[None], feathered_mask()[None]))
    crop = cut(transform).astype(float)
    red = [np.clip(crop * (1.07, 1, 1), 0, 255).astype(np.uint8)] * 6
    blue = [np.clip(crop * (1, 1, 1.07), 0, 255).astype(np.uint8)] * 6
    alone = utterance(paster, red, PasteMemory())
    frames, memories = np.stack([FRAME] * 12), (PasteMemory(), PasteMemory())
    for k, face in enumerate(face for pair in zip(red, blue, strict=True) for face in pair):
        paster.paste_into(frames[k], face, 0, memory=memories[k % 2])
    assert np.array_equal(frames[::2], alone)
    assert np.array_equal(utterance(paster.clone(), red, PasteMemory()), alone)
    plain = utterance(paster, red, None)
    middle = (slice(110, 160), slice(200, 250), 0)
    excess = [float((images[0][middle].astype(int) - FRAME[middle]).mean()) for images in (plain, alone)]
    assert excess[0] > 7 and abs(excess[1]) < 0.25 * excess[0]  # the tint is gone from the first frame on


def test_a_new_scene_resets_the_memory() -> None:
    """A new scene has other light. With the old measurements its first frames would be tinted for half a second."""
    transforms = np.stack([similarity(1.0, 3, (222, 128))] * 2)
    avatar = dataclasses.replace(avatar_of(transforms, np.stack([feathered_mask()] * 2)), cuts=(1,))
    crop, paster, memory = cut(transforms[0]).astype(float), Paster(avatar), PasteMemory()
    red, blue = (np.clip(crop * tint, 0, 255).astype(np.uint8) for tint in ((1.07, 1, 1), (1, 1, 1.07)))
    images = np.stack([FRAME] * 4)
    for image, face, index in zip(images, (red, blue, blue, red), (0, 1, 1, 0), strict=True):  # forward and backward
        paster.paste_into(image, face, index, memory=memory)
    fresh = np.stack([FRAME] * 2)
    paster.paste_into(fresh[0], blue, 1, memory=PasteMemory())
    paster.paste_into(fresh[1], red, 0, memory=PasteMemory())
    assert np.array_equal(images[1], fresh[0]) and np.array_equal(images[3], fresh[1])


@pytest.mark.parametrize(("top", "expected"), [(40, (0, 0)), (-60, (60, 0)), (300, (0, 44))])
def test_rows_of_a_mask_beyond_the_frame_are_counted(top: int, expected: tuple[int, int]) -> None:
    """A mask of rows 0 to 255 whose first row is at `top` of 512."""
    transform = np.array([[1, 0, -100], [0, 1, -top]], np.float32)
    mask = np.full((256, 256), 255, np.uint8)
    alpha = warp_alpha(transform, mask, (512, 512))
    assert rows_outside(transform, mask, alpha, 512) == pytest.approx(expected, abs=1)


def test_an_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="feather"):
        paste(FRAME, np.zeros((256, 256, 3), np.uint8), similarity(1, 0, (200, 100)), feathered_mask(), mode="glue")
