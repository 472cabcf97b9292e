"""`make bench-embedded` apart from lip measurements: seams, the table of bars, encoded video."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.embedded import BARS, Uttered, coded, look_up, psnr, seam, table
from models.types import CROP_PX, Phoneme, PreparedAvatar
from training.voices import Spoken


def avatar() -> PreparedAvatar:
    """A 256 px frame that is its own crop, with a square mask."""
    transform = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    mask = np.zeros((1, CROP_PX, CROP_PX), np.uint8)
    mask[:, 60:200, 60:200] = 255
    landmarks, has_face = np.zeros((1, 68, 2), np.float32), np.ones(1, bool)
    return PreparedAvatar("square", "0", 25, CROP_PX, CROP_PX, transform, landmarks, mask, has_face)


def test_only_a_face_of_another_brightness_has_a_seam() -> None:
    source = np.random.default_rng(0).integers(90, 110, (CROP_PX, CROP_PX, 3), dtype=np.uint8)
    assert seam(avatar(), source, source.copy(), 0) == 0
    lighter = source.copy()
    lighter[60:200, 60:200] += 40
    assert 10 < seam(avatar(), source, lighter, 0) < 20  # 40 levels of grey are 15 to 16 units of lightness


def test_the_table_names_missed_and_unmeasured_bars() -> None:
    text, good = table({"vae_default_db": 31.0, "default": {"r": 0.95}})
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert not good and len(text.splitlines()) == len(BARS)
    assert lines["vae_default_db"].endswith("MISSED") and lines["default.r"].endswith("ok")
    assert lines["seam_delta_e"].endswith("not measured")
    assert lines["espeak.r"].endswith("not measured: needs `.venv/bin/pip install espeakng-loader`")
    assert look_up({"a": {"b": 2}}, "a.b") == 2 and look_up({"a": 1}, "a.b") is None


def test_psnr_of_a_known_error() -> None:
    assert psnr(np.full((2, 4, 4), 2.55**2)) == pytest.approx(40)


def test_coded_frames_are_nearly_the_frames() -> None:
    ramp = np.linspace(40, 200, 64).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, :, None, None], (7, 64, 64, 3)).copy()
    out = coded(frames)
    assert out.shape == frames.shape
    assert np.abs(out.astype(int) - frames).mean() < 3


def test_long_vowels_are_found_at_their_middle() -> None:
    phonemes = (Phoneme("_", 0, 0.2), Phoneme("u", 0.2, 0.4), Phoneme("i", 0.4, 0.44), Phoneme("_", 0.44, 0.8))
    uttered = Uttered.of(Spoken(np.zeros(12_800, np.float32), phonemes))
    assert len(uttered.track.mouth) == 20
    assert uttered.vowels == {"u": [7], "i": [], "ɑ": []}  # 40 ms are too short for a long vowel
