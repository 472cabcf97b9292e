"""`make bench-quality` and the comparison with the manual's method."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.known_motion import known_motion
from benchmarks.manual_method import cut_face, followed_boxes, hard_mask, paste_hard, prepared_box
from benchmarks.quality import BARS, noisy, put_back, table
from benchmarks.side_by_side import ROWS, Rendering, measure, text_table
from benchmarks.speaker import paused
from models.geometry import warp
from models.quality.regions import regions_of
from models.types import Speech

CLIP = known_motion(120.0, 12, cut=None)
FRAMES = np.stack([CLIP.frame(k) for k in range(len(CLIP))])
POINTS = CLIP.true_landmarks().astype(np.float32)
SIZE = FRAMES.shape[1:3]


def test_the_tracked_box_follows_the_head_in_whole_pixels_with_a_fixed_size() -> None:
    boxes = np.array(list(followed_boxes(FRAMES, POINTS[0])))
    true = POINTS[:, 27:31].mean(1) - POINTS[0, 27:31].mean(0)
    moved = (boxes[:, :2] + boxes[:, 2:]) / 2 - (boxes[0, :2] + boxes[0, 2:]) / 2
    assert boxes.dtype.kind == "i" and np.abs(moved - true).max() < 2.0
    assert np.ptp(boxes[:, 2:] - boxes[:, :2], axis=0).max() <= 2
    assert np.abs(true).max() > 3  # the head moves


def test_the_prepared_box_is_that_of_musetalk_clipped_to_the_frame() -> None:
    x1, y1, x2, y2 = prepared_box(POINTS[0], SIZE)
    assert 0 <= x1 < x2 <= SIZE[1] and 0 <= y1 < y2 <= SIZE[0]
    assert y2 == int(POINTS[0, :, 1].max()) + 10


def test_the_hard_mask_covers_the_lower_face_without_a_ramp() -> None:
    mask = hard_mask(POINTS[0], prepared_box(POINTS[0], SIZE), SIZE)
    assert set(np.unique(mask)) == {0, 255}
    rows = np.nonzero(mask)[0]
    assert rows.min() >= POINTS[0, [2, 14, 29], 1].min() - 1 and rows.max() <= POINTS[0, 8, 1] + 1


def test_the_paste_changes_only_pixels_under_the_mask() -> None:
    box = prepared_box(POINTS[0], SIZE)
    mask = hard_mask(POINTS[0], box, SIZE)
    pasted = paste_hard(FRAMES[0], np.full((256, 256, 3), 250, np.uint8), box, mask)
    assert (pasted[mask == 0] == FRAMES[0][mask == 0]).all() and (pasted[mask > 0] == 250).all()
    own = paste_hard(FRAMES[0], cut_face(FRAMES[0], box), box, mask).astype(int)
    assert np.abs(own - FRAMES[0])[mask > 0].mean() < 3


def test_the_jitter_of_a_paste_is_measured() -> None:
    """True crops of a still head; one rendering moves its paste by a pixel in every frame."""
    still = np.repeat(FRAMES[:1], 8, axis=0)
    scale = 256 / SIZE[0]
    transforms = np.tile(np.array([[scale, 0, 0], [0, scale, 0.0]]), (8, 1, 1))
    landmarks = POINTS[0].astype(np.float64) * scale
    box = prepared_box(POINTS[0], SIZE)
    weights = np.repeat(cv2.GaussianBlur(hard_mask(POINTS[0], box, SIZE), (0, 0), 2)[None], 8, axis=0)
    moving = still.copy()
    for k in range(1, 8, 2):
        moving[k] = paste_hard(still[k], cut_face(np.roll(still[k], 1, axis=1), box), box, weights[k])
    crop = warp(weights[0][..., None].repeat(3, 2), transforms[0])[..., 0]
    steady = regions_of(landmarks, crop).steady
    firm, loose = (
        measure(Rendering(frames, weights), still, transforms, landmarks, steady) for frames in (still, moving)
    )
    assert firm.numbers()["jitter_rms_px"] < 0.01 and firm.flicker == pytest.approx(1)
    assert loose.numbers()["jitter_rms_px"] == pytest.approx(2 / np.sqrt(6), rel=0.25)  # ±1 px: second difference 2
    assert loose.flicker > 2
    text = text_table(dict.fromkeys((name for name, _ in ROWS), loose))
    assert len(text.splitlines()) == 5 and text.count(f"{loose.numbers()['jitter_rms_px']:.3f} (") == 3


def test_an_unchanged_crop_is_pasted_at_its_place() -> None:
    numbers = put_back(160.0)
    assert numbers["paste_error_px_160"] <= 0.10 and numbers["paste_levels_160"] <= 0.5


def test_the_noise_is_one_pixel_per_coordinate() -> None:
    assert (noisy(CLIP) - POINTS).std() == pytest.approx(1.0, abs=0.03)


def test_a_missed_bar_is_named() -> None:
    numbers = {name: bar for name, bar, _ in BARS} | {"zero_phase_lag_frames": 0.0, "told": 3.0}
    text, good = table(numbers)
    assert good and "MISSED" not in text and text.splitlines()[-1].split() == ["told", "3.000"]
    text, good = table({**numbers, "lips_r": 0.5})
    assert not good and [line.split()[0] for line in text.splitlines() if line.endswith("MISSED")] == ["lips_r"]


def test_a_pause_is_silence_after_a_sentence() -> None:
    speech = paused(Speech(np.ones(100, np.float32), 1000, "Hm.", True), 0.5)
    assert len(speech.samples) == 600 and not speech.samples[100:].any() and speech.last
