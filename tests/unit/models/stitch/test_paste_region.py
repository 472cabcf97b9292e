"""models.avatar.parse.paste_region equals MuseTalk's regions, with the morphology written out pixel by pixel."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from models.avatar.parse import paste_region
from models.errors import ConfigError

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def face_labels(seed: int = 0) -> Labels:
    """A drawn label map: hair, skin, brows, eyes, nose, mouth, lips, neck, cloth; with ragged edges and noise."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((512, 512), np.uint8)
    cv2.ellipse(canvas, (256, 220), (190, 200), 0, 0, 360, 17, -1)  # hair
    cv2.rectangle(canvas, (190, 330), (322, 512), 14, -1)  # neck
    cv2.ellipse(canvas, (256, 540), (250, 90), 0, 0, 360, 16, -1)  # cloth
    cv2.ellipse(canvas, (256 + int(rng.integers(-9, 9)), 250), (130, 170), float(rng.uniform(-9, 9)), 0, 360, 1, -1)
    for x, brow, eye in ((200, 2, 4), (312, 3, 5)):
        cv2.ellipse(canvas, (x, 180), (34, 8), 0, 0, 360, brow, -1)
        cv2.ellipse(canvas, (x, 210), (26, 12), 0, 0, 360, eye, -1)
    cv2.ellipse(canvas, (256, 265), (24, 44), 0, 0, 360, 10, -1)
    cv2.ellipse(canvas, (256, 345), (56, 24), 0, 0, 360, 13, -1)
    cv2.ellipse(canvas, (256, 338), (56, 20), 0, 0, 360, 12, -1)
    cv2.ellipse(canvas, (256, 341), (40, 7), 0, 0, 360, 11, -1)
    noise = rng.random((512, 512)) < 0.002
    canvas[noise] = rng.integers(0, 19, int(noise.sum()))
    return canvas.astype(np.int64)


def shifted(mask: Mask, dx: int, dy: int, outside: bool) -> Mask:
    """The mask at (x + dx, y + dy) for every (x, y)."""
    out = np.full_like(mask, outside)
    height, width = mask.shape
    rows, columns = slice(max(0, -dy), min(height, height - dy)), slice(max(0, -dx), min(width, width - dx))
    out[rows, columns] = mask[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    return out


def slow_jaw(labels: Labels, cheek_width: int) -> Mask:
    """MuseTalk v1.5's jaw region from its description, one kernel point at a time."""
    # a cone of 21 rows, of which the lower 11 are 1, 3 … 21 px wide, over a tail of 12 rows; its anchor is (16, 16)
    grown = np.zeros((512, 512), bool)
    for row in range(10, 33):
        half = min(row, 20) - 10
        for column in range(16 - half, 16 + half + 1):
            grown |= shifted(labels == 1, column - 16, row - 16, outside=False)
    # thinned twice by a flat ellipse, 35 × 3, anchor (17, 1)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (35, 3))
    assert ellipse.sum() == 37 and ellipse[1].all() and ellipse[0].nonzero()[0].tolist() == [17]
    thin = grown
    for _ in range(2):
        kept = np.ones((512, 512), bool)
        for y, x in np.argwhere(ellipse):
            kept &= shifted(thin, x - 17, y - 1, outside=True)
        thin = kept
    x = np.arange(512)
    cheeks = np.broadcast_to((x <= 256 - cheek_width) | (x >= 256 + cheek_width), (512, 512))
    jaw = np.where(cheeks, thin, grown) & (labels != 10)
    return jaw | np.isin(labels, [11, 12, 13])


@pytest.mark.parametrize(("mode", "classes"), [("raw", {1, 11, 12, 13}), ("neck", {1, 11, 12, 13, 14})])
def test_the_modes_raw_and_neck_select_classes(mode: str, classes: set[int]) -> None:
    labels = np.arange(512 * 512, dtype=np.int64).reshape(512, 512) % 19
    region = paste_region(labels, mode)
    assert region.dtype == np.uint8 and region.shape == (512, 512) and set(np.unique(region)) == {0, 255}
    assert {int(label) for label in np.unique(labels[region == 255])} == classes
    assert {int(label) for label in np.unique(labels[region == 0])} == set(range(19)) - classes


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("cheek_width", [80, 90, 140])
def test_the_jaw_region_equals_the_slow_implementation(seed: int, cheek_width: int) -> None:
    labels = face_labels(seed)
    assert np.array_equal(paste_region(labels, "jaw", cheek_width) == 255, slow_jaw(labels, cheek_width))


def test_jaw_at_the_borders_of_the_picture() -> None:
    labels = np.zeros((512, 512), np.int64)
    labels[:40, :60] = labels[480:, 470:] = labels[500:, 200:300] = 1
    assert np.array_equal(paste_region(labels, "jaw") == 255, slow_jaw(labels, 90))


def test_the_jaw_region_includes_the_chin_and_excludes_nose_and_cheeks() -> None:
    labels = np.zeros((512, 512), np.int64)
    cv2_labels = labels.astype(np.uint8)
    cv2.ellipse(cv2_labels, (256, 250), (130, 170), 0, 0, 360, 1, -1)
    cv2.ellipse(cv2_labels, (256, 265), (24, 44), 0, 0, 360, 10, -1)
    labels = cv2_labels.astype(np.int64)
    jaw, raw = paste_region(labels, "jaw") == 255, paste_region(labels, "raw") == 255
    lowest = np.flatnonzero(raw[:, 256]).max()
    assert np.flatnonzero(jaw[:, 256]).max() == lowest + 6  # the cone's tip is 6 px above its anchor
    assert not jaw[labels == 10].any()
    left = np.flatnonzero(raw[250]).min()
    assert left < np.flatnonzero(jaw[250]).min()  # at the cheek, the region ends inside the skin


def test_labels_are_not_modified() -> None:
    labels = face_labels()
    before = labels.copy()
    for mode in ("raw", "neck", "jaw"):
        paste_region(labels, mode)
    assert np.array_equal(labels, before)


def test_an_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="raw, neck, jaw"):
        paste_region(face_labels(), "chin")
