"""Voice activity detection at different levels and against different backgrounds."""

import numpy as np
import pytest
import soxr

from models.speech.activity import ActivityDetector, from_phonemes, levels_db, pause_frames
from models.types import Phoneme, Speech
from tests.support.voice import hibari

RATE = 16_000
TOLERANCE_S = 0.05  # half a frame (15 ms), the hop (10 ms), and as much again for the threshold


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def hiss(seconds: float, level_db: float, seed: int = 0) -> np.ndarray:
    """White noise with this RMS level."""
    noise = np.random.default_rng(seed).normal(size=round(seconds * RATE))
    return (noise * 10 ** (level_db / 20)).astype(np.float32)


def breath(seconds: float, level_db: float = -42.0) -> np.ndarray:
    """Noise above 1 kHz with a rising and falling level."""
    noise = hiss(seconds, 0.0, seed=1)
    spectrum = np.fft.rfft(noise)
    hz = np.fft.rfftfreq(len(noise), 1 / RATE)
    shaped = np.fft.irfft(spectrum * (hz > 1000), len(noise)) * np.sin(np.linspace(0, np.pi, len(noise)))
    return (shaped / np.sqrt(np.mean(shaped**2)) * 10 ** (level_db / 20)).astype(np.float32)


def voice(seconds: float, level_db: float = -20.0) -> np.ndarray:
    """A vowel at 120 Hz: harmonics that fall by 6 dB per octave."""
    times = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * 120 * k * times + k) / k for k in range(1, 30))
    return (wave / np.sqrt(np.mean(wave**2)) * 10 ** (level_db / 20)).astype(np.float32)


def spans(*pieces: np.ndarray) -> np.ndarray:
    return ActivityDetector().from_sound(np.concatenate(pieces), RATE)


@pytest.mark.parametrize("level_db", [-30.0, -20.0, -10.0])
@pytest.mark.parametrize("background_db", [-120.0, -60.0, -45.0])
def test_two_words_with_a_pause_are_two_spans(level_db, background_db):
    sound = np.concatenate([silence(0.3), voice(0.5, level_db), silence(0.4), voice(0.6, level_db), silence(0.5)])
    found = ActivityDetector().from_sound(sound + hiss(len(sound) / RATE, background_db), RATE)
    assert found == pytest.approx(np.array([[0.3, 0.8], [1.2, 1.8]]), abs=TOLERANCE_S)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level_db", [-120.0, -70.0, -60.0])
def test_quiet_noise_is_not_speech(level_db, seed):
    assert len(spans(hiss(4.0, level_db, seed))) == 0


def test_digital_silence_of_any_length_is_not_speech():
    assert len(spans(silence(2.0))) == len(spans(silence(0.004))) == len(spans(silence(0))) == 0


def test_a_breath_between_words_is_not_speech():
    found = spans(voice(0.5), silence(0.2), breath(0.3), silence(0.2), voice(0.5))
    assert found == pytest.approx(np.array([[0.0, 0.5], [1.2, 1.7]]), abs=TOLERANCE_S)


def test_a_click_is_not_speech():
    click = np.float32([0.5, -0.5] * 8)
    assert spans(voice(0.5), silence(0.3), click, silence(0.3)) == pytest.approx(
        np.array([[0.0, 0.5]]), abs=TOLERANCE_S
    )


def test_a_fricative_next_to_a_vowel_is_speech():
    found = spans(silence(0.3), hiss(0.15, -38.0), voice(0.4), hiss(0.2, -38.0), silence(0.4))  # "shoes"
    assert found == pytest.approx(np.array([[0.3, 1.05]]), abs=TOLERANCE_S)


def test_the_burst_of_a_stop_consonant_is_speech():
    found = spans(voice(0.4), silence(0.1), hiss(0.03, -35.0), silence(0.5))  # "up"
    assert found[-1, 1] == pytest.approx(0.53, abs=TOLERANCE_S)


def test_a_segment_without_a_pause_is_one_span():
    assert spans(voice(3.0)) == pytest.approx(np.array([[0.0, 3.0]]), abs=TOLERANCE_S)


def test_whispering_is_speech():
    assert spans(silence(0.4), hiss(0.8, -35.0), silence(0.4)) == pytest.approx(np.array([[0.4, 1.2]]), abs=TOLERANCE_S)


def test_a_segment_of_background_after_loud_speech_is_silent():
    detector = ActivityDetector()
    assert len(detector.from_sound(np.concatenate([voice(1.0), hiss(0.5, -48.0)]), RATE)) == 1
    assert len(detector.from_sound(hiss(2.0, -48.0), RATE)) == 0
    assert len(ActivityDetector().from_sound(hiss(0.8, -30.0), RATE)) == 1  # without context, a short hiss may be "shh"


def test_phonemes_decide_and_the_audio_only_extends_them():
    samples = np.concatenate([silence(0.1), voice(0.43), silence(0.2), voice(0.2), silence(0.3)])
    phonemes = (Phoneme("_", 0.0, 0.12), Phoneme("a", 0.12, 0.3), Phoneme("m", 0.3, 0.5), Phoneme("_", 0.5, 1.23))
    found = ActivityDetector()(Speech(samples, RATE, phonemes=phonemes))
    assert found == pytest.approx(np.array([[0.1, 0.53]]), abs=TOLERANCE_S)  # the sound at 0.73 s has no phoneme
    assert from_phonemes(phonemes) == pytest.approx(np.array([[0.12, 0.5]]))


def test_spans_from_phonemes_agree_with_spans_from_audio():
    for speech in hibari().speak("My mother baked a beautiful apple pie. Stop!"):
        known, heard = (
            from_phonemes(speech.phonemes),
            ActivityDetector().from_sound(speech.samples, speech.sample_rate_hz),
        )
        assert heard[0, 0] == pytest.approx(known[0, 0], abs=0.06)
        assert heard[-1, 1] == pytest.approx(known[-1, 1], abs=0.06)


def test_levels_are_decibels_below_full_scale():
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    inside, outside = levels_db(tone, RATE, (90, 1000)), levels_db(tone, RATE, (2000, 8000))
    assert np.median(inside) == pytest.approx(-3.0, abs=0.1)
    assert outside[5:-5].max() < -50
    assert len(inside) == 100


def test_pause_frames_are_the_middles_of_pauses():
    rate = 24_000
    word = 0.2 * np.sin(2 * np.pi * 180 * np.arange(rate // 2) / rate).astype(np.float32)  # 0.5 s

    def silence(seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * rate), np.float32)

    parts = [silence(0.2), word, silence(0.24), word, silence(0.05), word, silence(0.12), word, silence(0.4)]
    speech = Speech(np.concatenate(parts), rate)
    assert pause_frames(speech, 25) == [
        round(0.82 * 25),
        round(2.05 * 25),
    ]  # not the ends, not a closure of 50 ms
    assert pause_frames(Speech(word, rate), 25) == [] == pause_frames(Speech(np.zeros(0, np.float32), rate), 25)


def words_in(noise: np.ndarray) -> np.ndarray:
    """Two words at 0.4 s and 1.6 s in the given noise; 2.5 s long."""
    spoken = np.concatenate([silence(0.4), voice(0.8), silence(0.4), voice(0.6), silence(0.3)])
    return spoken + noise[: len(spoken)]


def test_a_segment_of_background_only_is_not_speech():
    noise = hiss(5.0, -40.0)
    alone = noise[round(2.5 * RATE) :]
    detector = ActivityDetector()
    assert len(detector.from_sound(words_in(noise), RATE)) == 2
    assert len(detector.from_sound(alone, RATE)) == 0


def test_a_loud_background_is_learned_from_a_pause():
    """The background is 14 dB below the voice: too close to be recognised within a single segment."""
    noise, detector = hiss(5.0, -34.0), ActivityDetector()
    words = np.array([[0.4, 1.2], [1.6, 2.2]])
    assert len(detector.from_sound(words_in(noise), RATE)) > 2
    assert detector.from_sound(words_in(noise), RATE) == pytest.approx(words, abs=TOLERANCE_S)


def test_speech_without_a_pause_is_detected_with_a_known_background():
    detector = ActivityDetector()
    detector.from_sound(np.concatenate([voice(0.5), silence(0.5)]) + hiss(1.0, -50.0), RATE)
    assert detector.from_sound(voice(1.0, -28.0) + hiss(1.0, -50.0), RATE) == pytest.approx(
        np.array([[0.0, 1.0]]), abs=0.05
    )


def coloured(seconds: float, level_db: float, power: float, seed: int = 0) -> np.ndarray:
    """Noise whose power spectrum falls as 1 / f ** power: 0 is white, 1 pink, 2 brown."""
    noise = hiss(seconds, 0.0, seed)
    hz = np.maximum(np.fft.rfftfreq(len(noise), 1 / RATE), 1)
    shaped = np.fft.irfft(np.fft.rfft(noise) * hz ** (-power / 2), len(noise))
    return (shaped / np.sqrt(np.mean(shaped**2)) * 10 ** (level_db / 20)).astype(np.float32)


@pytest.mark.parametrize("seconds", [1.0, 4.0])
@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize("level_db", [-45.0, -30.0, -20.0])
def test_a_first_segment_of_noise_is_not_speech_and_later_speech_is_detected(level_db, power, seconds):
    noise = coloured(seconds + 2.5, level_db, power)
    first, rest = np.split(noise, [round(seconds * RATE)])
    detector = ActivityDetector()
    assert len(detector.from_sound(silence(0.5), RATE)) == len(detector.from_sound(first, RATE)) == 0
    assert len(detector.from_sound(rest, RATE)) == 0
    heard = detector.from_sound(rest + voice(2.5), RATE)
    assert np.diff(heard, axis=1).sum() > 2.4  # speech is detected even if its level is close to the noise


def test_steady_noise_as_loud_as_the_speech_before_counts_as_speech():
    """Only a first segment is background because it is steady; later ones are compared with the speech."""
    assert len(spans(hiss(1.5, -15.0))) == 0
    detector = ActivityDetector()
    detector.from_sound(voice(1.0), RATE)
    assert detector.from_sound(hiss(1.5, -15.0), RATE) == pytest.approx(np.array([[0.0, 1.5]]), abs=TOLERANCE_S)


def test_a_humming_fan_is_not_speech():
    times = np.arange(3 * RATE) / RATE
    hum = np.sin(2 * np.pi * 100 * times) + 0.5 * np.sin(2 * np.pi * 200 * times)
    assert len(spans(coloured(3.0, -42.0, 1) + (0.004 * hum).astype(np.float32))) == 0


@pytest.fixture(scope="module")
def sentence() -> np.ndarray:
    said = np.concatenate([s.samples for s in hibari().speak("My mother baked a beautiful apple pie.")])
    return soxr.resample(said, 24_000, RATE).astype(np.float32)


@pytest.fixture(scope="module")
def whispered_sentence(sentence: np.ndarray) -> np.ndarray:
    return whispered(sentence)


def whispered(sound: np.ndarray) -> np.ndarray:
    """The sentence as a whisper: noise with the envelope of each third-octave band."""
    noise, out = np.fft.rfft(hiss(len(sound) / RATE + 1, 0.0)[: len(sound)]), np.zeros(len(sound))
    spectrum, hz = np.fft.rfft(sound), np.fft.rfftfreq(len(sound), 1 / RATE)
    for low in 200 * 2 ** (np.arange(16) / 3):
        band = (hz >= low) & (hz < low * 2 ** (1 / 3))
        own, made = np.fft.irfft(spectrum * band, len(sound)), np.fft.irfft(noise * band, len(sound))
        out += made * np.sqrt(np.convolve(own**2, np.full(320, 1 / 320), "same"))
    return (out / np.sqrt(np.mean(out**2)) * 10 ** (-35 / 20)).astype(np.float32)


@pytest.mark.parametrize("whisper", [False, True])
@pytest.mark.parametrize("power", [0, 1])
@pytest.mark.parametrize("snr_db", [20.0, 5.0, 0.0, -5.0])
def test_speech_and_whispering_in_a_first_segment_are_not_background(
    sentence, whispered_sentence, snr_db, power, whisper
):
    """Silence at the ends is removed, because it would make detection easy."""
    spoken = whispered_sentence if whisper else sentence
    loud = np.flatnonzero(np.abs(spoken) > 0.02 * np.abs(spoken).max())
    spoken = spoken[loud[0] : loud[-1]]
    level_db = 20 * np.log10(np.sqrt(np.mean(spoken**2))) - snr_db
    found = spans(spoken + coloured(len(spoken) / RATE + 0.1, level_db, power)[: len(spoken)])
    assert np.diff(found, axis=1).sum() > 0.5 * len(spoken) / RATE


def test_a_sustained_vowel_is_speech():
    assert len(spans(voice(2.0, -35.0) + hiss(2.0, -60.0))) == 1
