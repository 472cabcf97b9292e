"""models.stitch.musetalk_paste equals Pillow's own steps for all boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from models.avatar.parse import paste_region
from models.errors import ConfigError
from models.geometry import crop_box_of, crop_padded
from models.stitch import paste
from models.stitch.musetalk_paste import musetalk_blend, musetalk_material
from models.types import UInt8
from tests.support.avatar import hopper
from tests.unit.models.stitch.test_paste_region import face_labels

BOXES = [
    (150, 90, 330, 300),
    (151, 83, 340, 299),  # odd sides
    (0, 0, 200, 260),  # at the corner: the square reaches outside
    (300, 260, 512, 480),  # at the other corner
    (10, 400, 150, 480),
    (200, 100, 215, 118),  # tiny
    (40, 5, 500, 470),  # the square is larger than the frame
]


def pillow_material(frame: UInt8, box: tuple[int, int, int, int], region: UInt8) -> tuple[UInt8, list[int]]:
    """The mask, step by step with Pillow images."""
    x1, y1, x2, y2 = box
    x, y, s = (x1 + x2) // 2, (y1 + y2) // 2, int(max(x2 - x1, y2 - y1) // 2 * 1.5)
    crop_box = [x - s, y - s, x + s, y + s]
    place = (x1 - crop_box[0], y1 - crop_box[1], x2 - crop_box[0], y2 - crop_box[1])
    square = Image.fromarray(frame).crop(crop_box)
    parsed = Image.fromarray(region).resize(square.size)
    in_box = Image.new("L", square.size, 0)
    in_box.paste(parsed.crop(place), place)
    width, height = square.size
    lower = Image.new("L", square.size, 0)
    lower.paste(in_box.crop((0, int(height * 0.5), width, height)), (0, int(height * 0.5)))
    kernel = int(0.1 * width // 2 * 2) + 1
    return cv2.GaussianBlur(np.array(lower), (kernel, kernel), 0), crop_box


def pillow_blend(frame: UInt8, face: UInt8, box: tuple[int, int, int, int], mask: UInt8, crop_box: list[int]) -> UInt8:
    body = Image.fromarray(frame)
    square = body.crop(crop_box)
    x, y = box[0] - crop_box[0], box[1] - crop_box[1]
    square.paste(Image.fromarray(face), (x, y, x + face.shape[1], y + face.shape[0]))
    body.paste(square, tuple(crop_box[:2]), Image.fromarray(mask).convert("L"))
    return np.array(body)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("mode", ["raw", "neck", "jaw"])
def test_masks_and_squares_equal_those_of_pillow(box: tuple[int, int, int, int], mode: str) -> None:
    labels = face_labels(box[0])
    mask, crop_box = musetalk_material(hopper(), box, labels, mode, cheek_width=90)
    wanted, wanted_box = pillow_material(hopper(), box, paste_region(labels, mode, 90))
    assert crop_box == tuple(wanted_box) and all(isinstance(edge, int) for edge in crop_box)
    assert mask.dtype == np.uint8 and np.array_equal(mask, wanted)
    assert mask.max() > 100


@pytest.mark.parametrize("box", BOXES)
def test_blends_equal_those_of_pillow(box: tuple[int, int, int, int]) -> None:
    frame = hopper()
    mask, crop_box = musetalk_material(frame, box, face_labels(), "jaw")
    face = np.random.default_rng(0).integers(0, 256, (box[3] - box[1], box[2] - box[0], 3), dtype=np.uint8)
    out = musetalk_blend(frame, face, box, mask, crop_box)
    assert np.array_equal(out, pillow_blend(frame, face, box, mask, list(crop_box)))
    assert np.array_equal(frame, hopper()) and not np.array_equal(out, frame)


def test_a_face_of_another_size_is_resized_linearly() -> None:
    box = BOXES[1]
    mask, crop_box = musetalk_material(hopper(), box, face_labels(), "jaw")
    crop = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    resized = cv2.resize(crop, (box[2] - box[0], box[3] - box[1]))
    wanted = musetalk_blend(hopper(), resized, box, mask, crop_box)
    assert np.array_equal(musetalk_blend(hopper(), crop, box, mask, crop_box), wanted)


def test_every_weight_and_level_rounds_as_pillow_does() -> None:
    """All 256 weights over 256 levels, for a bright and a dark face."""
    mask = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 256))
    frame = np.repeat(np.tile(np.arange(256, dtype=np.uint8)[None], (256, 1))[..., None], 3, 2)
    for level in (0, 1, 77, 128, 200, 255):
        face = np.full((256, 256, 3), level, np.uint8)
        box = (0, 0, 256, 256)
        assert np.array_equal(
            musetalk_blend(frame, face, box, mask, box), pillow_blend(frame, face, box, mask, list(box))
        )


def test_the_upper_half_changes_only_by_the_blur() -> None:
    box = (150, 90, 330, 300)
    mask, crop_box = musetalk_material(hopper(), box, np.ones((512, 512), np.int64), "raw")
    side = len(mask)
    assert side == crop_box[2] - crop_box[0] == 2 * int(105 * 1.5)
    reach = int(0.1 * side // 2 * 2) // 2
    assert not mask[: side // 2 - reach].any() and mask[side // 2 + reach + 1, side // 2] == 255
    bottom = box[3] - crop_box[1]
    assert not mask[bottom + reach :].any() and mask[bottom - reach - 1, side // 2] == 255


def test_the_blur_of_whole_files_is_half_as_wide() -> None:
    box, labels = (150, 90, 330, 300), np.ones((512, 512), np.int64)
    wide, narrow = (musetalk_material(hopper(), box, labels, "raw", blur=blur)[0] for blur in (0.1, 0.05))
    soft = [int(((mask[:, len(mask) // 2] > 0) & (mask[:, len(mask) // 2] < 255)).sum()) for mask in (wide, narrow)]
    assert 1.8 < soft[0] / soft[1] < 2.3


def test_a_crop_beyond_the_frame_is_black_as_with_pillow() -> None:
    for box in BOXES:
        square = crop_box_of(box)
        assert np.array_equal(crop_padded(hopper(), square), np.asarray(Image.fromarray(hopper()).crop(square)))


def test_a_square_outside_the_frame_changes_nothing() -> None:
    frame, box = hopper(), (600, 500, 700, 620)
    face, mask = np.zeros((120, 100, 3), np.uint8), np.full((180, 180), 255, np.uint8)
    assert np.array_equal(musetalk_blend(frame, face, box, mask, crop_box_of(box)), frame)


def test_both_functions_can_be_imported_from_paste() -> None:
    assert paste.musetalk_material is musetalk_material and paste.musetalk_blend is musetalk_blend


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="raw, neck, jaw"):
        musetalk_material(hopper(), BOXES[0], face_labels(), "beard")
