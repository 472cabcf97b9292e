"""models.speech.feature_windows: rest in long silences, lead for plosives, unchanged windows near speech."""

import numpy as np
import pytest

from models.speech.feature_windows import blend_rest, plosive_shifts, rest_window
from models.types import Phoneme

FPS = 25
REST = np.full((50, 384), 8.0, np.float16)


def numbered(frames: int) -> np.ndarray:
    """All values of window k are k / 64."""
    return np.broadcast_to((np.arange(frames) / 64).astype(np.float16)[:, None, None], (frames, 50, 384))


def test_the_rest_window_is_from_the_silence_after_a_vowel():
    heard = []

    def windows(samples):
        heard.append(samples)
        return numbered(len(samples) * FPS // 16_000)

    rest = rest_window(windows)
    assert rest.shape == (50, 384) and rest[0, 0] == np.float16(30 / 64)  # 1.2 s: 0.7 s after the vowel's end
    assert np.sqrt(np.mean(heard[0][:8000] ** 2)) == pytest.approx(0.1, rel=0.01)
    assert len(heard[0]) == 24_000 and not heard[0][8000:].any()


def test_only_long_silences_are_blended_to_rest():
    windows = numbered(150)  # 6 s
    bent = blend_rest(windows, REST, np.array([[1.0, 2.0], [4.0, 6.0]]), FPS, last=False)
    changed = (bent != windows).any((1, 2))
    times = (np.arange(150) + 0.5) / FPS
    silent = ((times > 0.3) & (times < 0.7)) | ((times > 2.3) & (times < 3.7))
    assert np.array_equal(changed, silent)  # 0.3 s from speech and from the start, where speech may precede
    assert np.all(bent[(times > 2.5) & (times < 3.5)] == 8.0)


def test_the_end_of_the_last_segment_rests():
    windows, active = numbered(50), np.array([[0.0, 1.0]])
    assert np.array_equal(blend_rest(windows, REST, active, FPS, last=False)[43:], windows[43:])
    assert np.all(blend_rest(windows, REST, active, FPS, last=True)[38:] == 8.0)


def test_a_silent_segment_rests_and_short_pauses_do_not():
    nothing = np.zeros((0, 2))
    assert np.all(blend_rest(numbered(50), REST, nothing, FPS, last=True)[13:] == 8.0)
    pause = numbered(50)
    assert blend_rest(pause, REST, np.array([[0.0, 0.9], [1.3, 2.0]]), FPS, last=True) is pause


def spoken(*parts: tuple[str, float, float]) -> list[Phoneme]:
    return [Phoneme(*part) for part in parts]


def test_windows_are_shifted_only_around_a_closure():
    shifts = plosive_shifts(spoken(("a", 0.0, 0.5), ("p", 0.5, 0.6), ("a", 0.6, 1.2)), 30, FPS, 0.04)
    times = (np.arange(30) + 0.5) / FPS
    assert np.all(shifts[(times >= 0.46) & (times <= 0.56)] == pytest.approx(0.04))
    assert not shifts[(times < 0.38) | (times > 0.64)].any()


@pytest.mark.parametrize("lead_s", [0.02, 0.04, 0.08])
def test_time_never_runs_backwards(lead_s):
    phonemes = spoken(("m", 0.1, 0.2), ("a", 0.2, 0.28), ("p", 0.28, 0.34), ("a", 0.34, 0.9), ("b", 0.9, 0.95))
    heard_at = np.arange(250) / 250 + plosive_shifts(phonemes, 250, 250, lead_s)
    assert np.diff(heard_at).min() >= -1e-9


def test_other_phonemes_and_silence_are_not_shifted():
    assert not plosive_shifts(spoken(("_", 0.0, 0.2), ("a", 0.2, 0.6), ("t", 0.6, 0.7)), 20, FPS, 0.08).any()
