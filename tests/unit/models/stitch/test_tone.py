"""Colour and sharpness of a pasted face match the frame: bounded, smooth over time, independent of moving lips."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage import data

from models.stitch.tone import MOST_GAIN, SHARPEN, Tone, color_gain, detail_amount, gain_field

OWN = np.ascontiguousarray(data.astronaut()[100:224, 140:308])  # (124, 168, 3)
FPS = 25.0


def weights() -> np.ndarray:
    out = np.zeros((124, 168), np.uint8)
    cv2.ellipse(out, (84, 55), (62, 50), 0, 0, 360, 255, -1)
    return cv2.GaussianBlur(out, (31, 31), 0)


def tinted(gain: tuple[float, float, float]) -> np.ndarray:
    return np.clip(np.rint(OWN * np.array(gain)), 0, 255).astype(np.uint8)


def test_a_tint_is_measured_and_corrected() -> None:
    over = tinted((0.95, 1.0, 1.05))
    tone = Tone()
    tone.measure_color(OWN, over, weights(), FPS)
    ring = (weights() > 8) & (weights() < 247)
    before = np.abs(over[ring].astype(float) - OWN[ring]).mean(0)
    after = np.abs(tone.match_color(over)[ring].astype(float) - OWN[ring]).mean(0)
    assert before[0] > 3 and before[2] > 2
    assert after.max() < 1.2


def test_a_tint_that_varies_across_the_face_is_measured() -> None:
    slope = (1 + 0.05 * np.linspace(-1, 1, 168))[None, :, None]
    gain = color_gain(OWN, np.clip(np.rint(OWN / slope), 0, 255).astype(np.uint8), weights())
    assert gain is not None
    assert gain[:, 1] == pytest.approx([0.05] * 3, abs=0.02)


def test_a_lip_or_jaw_in_the_ring_does_not_change_the_gain() -> None:
    over = OWN.copy()
    over[90:105, 60:110] = 30  # dark, across the ring's lower part
    gain = color_gain(OWN, over, weights())
    assert gain is not None
    assert np.abs(gain).max() < 0.02


def test_black_stays_black_and_the_gain_is_bounded() -> None:
    gain = color_gain(OWN, tinted((0.4, 0.4, 0.4)), weights())
    assert gain is not None
    field = gain_field(gain, (124, 168))
    assert field.min() >= 1 - MOST_GAIN - 1e-6 and field.max() <= 1 + MOST_GAIN + 1e-6
    assert not Tone(gain=gain).match_color(np.zeros_like(OWN)).any()


@pytest.mark.parametrize("black", [(0, 1, 1), (1, 1, 0), (0, 0, 0)])
def test_a_black_channel_gets_no_gain_and_the_others_do(
    black: tuple[int, int, int],
) -> None:
    """With red light only, or a face that was generated black, the ring is dark and must not raise an error."""
    gain = color_gain(OWN, tinted((0.95, 0.95, 0.95)) * np.uint8(black), weights())
    assert gain is not None
    assert not gain[np.equal(black, 0)].any()
    assert gain[np.equal(black, 1), 0] == pytest.approx([0.05] * sum(black), abs=0.02)


def test_the_gain_of_a_pixel_is_linear_in_its_place() -> None:
    gain = np.array([[0.05, 0.02, -0.01], [0, 0.03, 0.01], [-0.1, 0, 0.04]])
    field = gain_field(gain, (3, 5))
    assert field.shape == (3, 5, 3)
    for row, y in enumerate((-2 / 3, 0, 2 / 3)):
        for column, x in enumerate((-0.8, -0.4, 0, 0.4, 0.8)):
            assert field[row, column] == pytest.approx(1 + gain @ (1, x, y), abs=1e-6)


def test_colour_starts_at_once_and_then_moves_slowly() -> None:
    tone = Tone()
    tone.measure_color(OWN, tinted((0.95, 0.95, 0.95)), weights(), FPS)
    first = tone.gain.copy()
    assert first[0, 0] > 0.03  # the first measurement is used as it is
    tone.measure_color(OWN, OWN, weights(), FPS)
    assert 0.65 * first[0, 0] < tone.gain[0, 0] < first[0, 0]  # four frames of 40 ms against half a second
    for _ in range(13):
        tone.measure_color(OWN, OWN, weights(), FPS)
    assert abs(tone.gain[0, 0]) < 0.003


def test_a_soft_face_is_sharpened_towards_the_frame_and_a_sharp_one_softened() -> None:
    soft, sharp = (
        cv2.GaussianBlur(OWN, (0, 0), 0.6),
        cv2.addWeighted(OWN, 1.4, cv2.GaussianBlur(OWN, (0, 0), 1.5), -0.4, 0),
    )
    for over in (soft, sharp):
        tone = Tone()
        tone.measure_detail(OWN, over, weights(), 1.5, FPS)
        before, after = (detail_amount(OWN, image, weights(), 1.5) for image in (over, tone.match_sharpness(over, 1.5)))
        assert abs(before) > 0.12 and abs(after) < 0.7 * abs(before)


def test_sharpening_is_bounded_and_an_equal_face_is_left_alone() -> None:
    tone = Tone()
    tone.measure_detail(OWN, cv2.GaussianBlur(OWN, (0, 0), 6), weights(), 1.5, FPS)
    assert tone.sharp == SHARPEN[1]
    same = Tone()
    same.measure_detail(OWN, OWN, weights(), 1.5, FPS)
    assert same.match_sharpness(OWN, 1.5) is OWN
    assert Tone().match_sharpness(OWN, 1.5) is OWN and Tone().match_color(OWN) is OWN


def test_rows_outside_the_frame_keep_the_lips_out_of_the_measurement() -> None:
    """If the upper part of a face is above the frame, the lips are at the top of the region and still do not count."""
    talking = OWN.copy()
    talking[56:80, 60:110] = cv2.GaussianBlur(OWN[56:80, 60:110], (0, 0), 4)  # as smooth as the skin of a closing mouth
    cut = slice(50, None)
    seen = detail_amount(OWN[cut], talking[cut], weights()[cut], 1.5, (50, 0))
    assert seen == pytest.approx(0, abs=0.03)
    assert detail_amount(OWN[cut], talking[cut], weights()[cut], 1.5) > 0.1
    assert detail_amount(OWN[100:], OWN[100:], weights()[100:], 1.5, (100, 0)) is None  # nothing remains


def test_too_small_a_ring_changes_nothing() -> None:
    tone, nothing = Tone(), np.full((124, 168), 255, np.uint8)
    tone.measure_color(OWN, tinted((0.9, 1, 1)), nothing, FPS)
    assert tone.gain is None


def test_every_fourth_frame_is_measured() -> None:
    tone = Tone()
    assert [tone.due() for _ in range(9)] == [True, False, False, False] * 2 + [True]


def test_noise_in_the_source_alone_does_not_make_the_gain_flicker() -> None:
    random, tone, gains = np.random.default_rng(1), Tone(), []
    for _ in range(12):
        own = np.clip(OWN + random.normal(0, 4, OWN.shape), 0, 255).astype(np.uint8)
        tone.measure_color(own, OWN, weights(), FPS)
        gains.append(tone.gain[0, 0])
    assert np.abs(np.diff(gains)).max() * 200 < 0.1  # grey levels per frame
