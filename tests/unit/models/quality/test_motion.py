"""Jitter, flicker, silence and freezes of synthetic clips with known answers."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from models.quality.flicker import flicker, greys, ratio
from models.quality.frozen import find_freezes
from models.quality.jitter import jitter, percentile_95, rms, shift_between, shifts
from models.quality.silence import levels_db, motion_at_rest, quiet_frames, rest_frames, rest_ratio

SIDE, RATE, FPS = 256, 16_000, 25


@cache
def texture(seed: int = 0, side: int = SIDE + 64) -> np.ndarray:
    """Soft blobs, RGB; periodic."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    soft = sum(cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), s)[side:-side, side:-side] * s for s in (2, 4, 8))
    grey = np.clip(120 + 60 * soft / soft.std() / 2, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def moved(picture: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The middle of `picture` with its content moved by `at` (n, 2) px, exactly, by the Fourier shift theorem."""
    spectrum = np.fft.rfft2(picture[..., 0].astype(np.float64))
    down, across = np.fft.fftfreq(picture.shape[0])[:, None], np.fft.rfftfreq(picture.shape[1])[None]
    out = []
    for x, y in at:
        shifted = np.fft.irfft2(spectrum * np.exp(-2j * np.pi * (across * x + down * y)), picture.shape[:2])
        grey = np.clip(np.rint(shifted[32:-32, 32:-32]), 0, 255).astype(np.uint8)
        out.append(np.repeat(grey[..., None], 3, axis=2))
    return np.stack(out)


LOWER, UPPER = np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
LOWER[150:180, 60:200] = UPPER[40:110, 50:210] = True


def jittering(size_px: float, n: int = 60) -> tuple[np.ndarray, float]:
    """A swaying face whose lower half jitters by white noise; and the rms of that noise."""
    time = np.arange(n)
    sway = np.stack([2 * np.sin(time / 9), 1.5 * np.cos(time / 11)], 1)
    noise = np.random.default_rng(2).normal(size=(n, 2)) * size_px / np.sqrt(2)
    above, below = moved(texture(), sway), moved(texture(), sway + noise)
    crops = above.copy()
    crops[:, 128:] = below[:, 128:]
    return crops, rms(np.linalg.norm(noise, axis=1))


@pytest.mark.parametrize("shift", [(0.5, 0), (-0.13, 0.4), (2.3, -1.7)])
def test_a_shift_is_measured_to_a_hundredth_of_a_pixel(shift: tuple[float, float]) -> None:
    before, after = (crop[..., 0].astype(np.float32) for crop in moved(texture(), np.array([(0, 0), shift])))
    assert shift_between(before, after, LOWER) == pytest.approx(shift, abs=0.01)


@pytest.mark.parametrize("size_px", [0.1, 0.5, 1.0])
def test_added_jitter_is_measured(size_px: float) -> None:
    crops, added = jittering(size_px)
    read = jitter(shifts(crops, LOWER) - shifts(crops, UPPER))
    assert rms(read) == pytest.approx(added, rel=0.15)
    assert percentile_95(read) > rms(read)


def test_a_face_that_moves_as_a_whole_does_not_jitter() -> None:
    crops, _ = jittering(0)
    assert rms(jitter(shifts(crops, LOWER) - shifts(crops, UPPER))) < 0.02


def test_a_blink_is_not_jitter() -> None:
    crops, _ = jittering(0)
    for k in (20, 21, 22):
        crops[k, 60:72, 80:110] = crops[k, 60:72, 130:160] = 40
    assert rms(jitter(shifts(crops, LOWER) - shifts(crops, UPPER))) < 0.06


def test_a_jump_of_one_frame_is_located() -> None:
    at = np.zeros((30, 2))
    at[12] = (1.5, 0)
    read = jitter(shifts(moved(texture(), at), LOWER))
    assert int(read.argmax()) + 1 == 12


def test_a_tiny_region_gives_zeros() -> None:
    region = np.zeros((SIDE, SIDE), bool)
    region[5, 5] = True
    assert not shifts(moved(texture(), np.zeros((3, 2))), region).any()


def test_flicker_measures_noise_and_ignores_steady_change() -> None:
    ramp = np.full((40, SIDE, SIDE, 3), 100, np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    steady = flicker(greys(ramp), LOWER)
    assert steady.first == pytest.approx(np.ones(39)) and steady.second == pytest.approx(np.zeros(38))
    noisy = ramp + np.random.default_rng(0).choice([0, 4], (40, SIDE, SIDE, 1)).astype(np.uint8)
    shaken = flicker(greys(noisy), LOWER)
    assert 3 < shaken.second.mean() < 5 and ratio(shaken.second, steady.second) > 50
    assert ratio(steady.second, steady.second) == 1


def test_silence_is_found_in_the_sound() -> None:
    speech = np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32) * 0.1
    speech[RATE : 2 * RATE] *= 0.001  # breath
    quiet = quiet_frames(levels_db(speech, RATE, FPS, 100))
    assert quiet.nonzero()[0].tolist() == list(range(26, 49))
    rest = rest_frames(quiet, FPS)
    assert rest.nonzero()[0].tolist() == list(range(32, 44))  # 240 ms after speech, 200 ms before
    assert quiet_frames(levels_db(np.zeros(RATE, np.float32), RATE, FPS, 25)).all()


def test_a_mouth_that_moves_in_silence_is_measured() -> None:
    rest = np.zeros(50, bool)
    rest[10:40] = True
    still, flapping = np.full(49, 0.5), np.full(49, 0.5)
    flapping[20:25] = 6
    assert rest_ratio(motion_at_rest(still, rest), motion_at_rest(still, rest)) == 1
    assert rest_ratio(motion_at_rest(flapping, rest), motion_at_rest(still, rest)) > 2
    assert rest_ratio(motion_at_rest(flapping, rest[:] & False), motion_at_rest(still, rest & False)) is None


def test_frozen_frames_are_located() -> None:
    change = np.random.default_rng(0).uniform(0.6, 1.4, 99)
    change[40:46] = 0.0  # frames 41 to 46 repeat frame 40
    change[70] = 0.01  # frame 71 comes twice
    found = find_freezes(change, np.zeros(100, bool), FPS)
    assert (found.longest, found.at) == (6, 40) and found.repeats.sum() == 7 and found.repeats[71]
    assert find_freezes(change[:39], np.zeros(40, bool), FPS).longest == 0


def test_planned_repeats_are_not_counted() -> None:
    change = np.ones(99)
    change[49:52] = 0.0  # an eased turn of the ping-pong playback
    planned = np.zeros(100, bool)
    planned[50:53] = True
    assert not find_freezes(change, planned, FPS).repeats.any()


def test_a_still_picture_that_h264_refines_is_found_by_the_sources_change() -> None:
    change = np.full(99, 0.3)
    change[30:40] = np.geomspace(0.15, 0.05, 10)  # as x264 does to a picture that stands still
    nobody = np.zeros(100, bool)
    found = find_freezes(change, nobody, FPS, own=np.full(99, 0.3))
    assert (found.longest, found.at) == (10, 30)
    assert not find_freezes(change, nobody, FPS, own=0.9 * change).repeats.any()  # the source is as still


def test_a_frame_shown_too_long_is_a_freeze() -> None:
    lasting = np.ones(100, np.int64)
    lasting[30] = 6  # a gap in the times of the file
    found = find_freezes(np.ones(99), np.zeros(100, bool), FPS, lasting)
    assert (found.longest, found.at) == (5, 30)
