"""Phonemes to mouth tracks, and the training data made from them: sentences, voices, augmentation, clips."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from models.speech.visemes import CLOSE, COLUMNS, JAW, REST, ROUNDING, TUCK, VISEMES, mouth_track, viseme_of
from models.types import WHISPER_HZ, Phoneme
from training import augment
from training.presenter import MOUTH, REST_MOUTH
from training.sentences import HELD_OUT, sentences
from training.speech import TRAIN, joined, load, merged_silences, repaced, save, to_clip
from training.voices import ARPABET, Spoken, espeak_phonemes, flite_phonemes, split_letters


def said(*parts: tuple[str, float]) -> list[Phoneme]:
    """Consecutive phonemes with the given symbols and durations in seconds."""
    phonemes, time_s = [], 0.0
    for symbol, duration_s in parts:
        phonemes.append(Phoneme(symbol, time_s, time_s + duration_s))
        time_s += duration_s
    return phonemes


def tone(seconds: float, hz: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * WHISPER_HZ)) / WHISPER_HZ)).astype(np.float32)


def test_columns_and_rest_match_the_presenter() -> None:
    assert len(MOUTH) == COLUMNS
    assert (MOUTH.index("jaw"), MOUTH.index("close"), MOUTH.index("tuck")) == (JAW, CLOSE, TUCK)
    assert pytest.approx(REST_MOUTH) == REST


def test_frame_k_is_sampled_at_its_middle() -> None:
    # a vowel from 0.40 to 0.80 s: frames 10 to 19 at 25 fps lie inside, 14 and 15 on either side of its middle
    jaw = mouth_track(said(("_", 0.4), ("ɑ", 0.4), ("_", 0.4)), 30).mouth[:, JAW]
    assert jaw[14] == pytest.approx(VISEMES["ɑ"][0], abs=0.01)
    assert jaw[14 - 3] == pytest.approx(jaw[15 + 3], abs=0.02)  # symmetric about 0.60 s
    assert np.abs(jaw[[0, 1, 29]]).max() < 0.01


@pytest.mark.parametrize("stop", ["p", "b", "m"])
def test_lips_close_even_for_very_short_stops(stop: str) -> None:
    track = mouth_track(said(("ɑ", 0.3), (stop, 0.03), ("ɑ", 0.3)), 15)
    (frame,) = track.closures
    assert frame == int(0.315 * 25)
    assert track.mouth[frame, CLOSE] == 1
    assert track.mouth[[2, 12], CLOSE].max() == 0


def test_only_lip_sounds_close_or_tuck() -> None:
    for symbol in VISEMES:
        mouth = mouth_track(said(("ɑ", 0.3), (symbol, 0.1), ("ɑ", 0.3)), 17).mouth
        assert (mouth[:, CLOSE].max() == 1) == (symbol in "pbm"), symbol
        assert (mouth[:, TUCK].max() > 0.5) == (symbol in "fv"), symbol


def test_pauses_are_silent_and_speech_is_not() -> None:
    track = mouth_track(said(("_", 0.6), ("i", 0.4), ("_", 0.6)), 40)
    assert track.silent[[5, 8, 33, 36]].all()
    assert not track.silent[15:25].any()


def test_lips_round_before_the_vowel() -> None:
    rounding = mouth_track(said(("i", 0.4), ("u", 0.4), ("i", 0.4)), 30).mouth[:, ROUNDING]
    middle = (np.arange(30) * rounding).sum() / rounding.sum()
    assert (middle + 0.5) / 25 == pytest.approx(0.6 - 0.03, abs=0.005)


def test_sentences_are_deterministic_and_exclude_held_out_ones() -> None:
    made = sentences(300, 1)
    assert made == sentences(300, 1) and made != sentences(300, 2)
    assert len(set(made)) == len(made) >= 295
    assert not set(made) & set(HELD_OUT)


def test_espeak_stops_begin_at_their_closure() -> None:
    events = [(0.1, "ˈʌ"), (0.3, "p"), (0.35, "oʊ"), (0.6, "")]
    phonemes = espeak_phonemes(events, 0.8)
    assert [p.symbol for p in phonemes] == ["_", "ʌ", "p", "o", "ʊ", "_"]
    assert phonemes[2].start_s == pytest.approx(0.255) and phonemes[-1].end_s == 0.8
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(phonemes))


def test_flite_phones_are_converted_to_ipa() -> None:
    phonemes = flite_phonemes("pau:0.2 b:0.3 ay:0.5", 0.6)
    assert [p.symbol for p in phonemes] == ["_", "b", "a", "ɪ", "_"]
    assert phonemes[2].end_s == pytest.approx(0.3 + 0.55 * 0.2)
    assert all(viseme_of(letter) for ipa in ARPABET.values() for letter in ipa)


def test_a_letter_without_a_shape_is_silence() -> None:
    assert [p.symbol for p in split_letters("ʲ", 0, 1)] == ["_"]
    assert [p.symbol for p in split_letters("ˈɔː", 0, 1)] == ["ɔ"]


def test_formants_move_and_the_pitch_stays() -> None:
    pitch_hz, time_s = 125.0, np.arange(400) / WHISPER_HZ
    pulses = np.zeros(WHISPER_HZ, np.float32)
    pulses[:: int(WHISPER_HZ / pitch_hz)] = 1
    formant = np.exp(-time_s * 1200) * np.sin(2 * np.pi * 1500 * time_s)
    voice = np.convolve(pulses, formant)[: len(pulses)].astype(np.float32)
    hz = np.fft.rfftfreq(len(voice), 1 / WHISPER_HZ)
    centres, on_harmonics = [], []
    for sound in (voice, augment.shift_formants(voice, 1.2)):
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        centres.append((hz * power).sum() / power.sum())
        on_harmonics.append(power[np.abs((hz + pitch_hz / 2) % pitch_hz - pitch_hz / 2) < 8].sum() / power.sum())
    assert centres[1] / centres[0] == pytest.approx(1.2, abs=0.08)
    assert min(on_harmonics) > 0.95


def test_augmentation_keeps_the_timing() -> None:
    sound = np.concatenate([np.zeros(8000, np.float32), tone(0.3), np.zeros(8000, np.float32)])
    for seed in range(6):
        changed = augment.disguise(sound, np.random.default_rng(seed), plain=0.0)
        assert len(changed) == len(sound) and np.abs(changed).max() <= 1
        loud = np.abs(changed) > 0.3 * np.abs(changed).max()
        assert np.flatnonzero(loud)[0] == pytest.approx(8000, abs=320)


def test_added_noise_has_the_requested_level() -> None:
    sound = tone(1.0)
    noise = augment.add_noise(sound, 20.0, np.random.default_rng(0)) - sound
    assert 10 * np.log10((sound**2).mean() / (noise**2).mean()) == pytest.approx(20, abs=0.1)


def test_parts_are_joined_with_one_silence_between() -> None:
    part = Spoken(tone(0.5), tuple(said(("_", 0.1), ("ɑ", 0.3), ("_", 0.1))))
    both = joined([part, part], [0.2, 0.3, 0.1])
    assert len(both.samples) / WHISPER_HZ == pytest.approx(1.6)
    assert [p.symbol for p in both.phonemes] == ["_", "ɑ", "_", "ɑ", "_"]
    assert both.phonemes[3].start_s == pytest.approx(0.2 + 0.5 + 0.3 + 0.1)
    assert merged_silences(both.phonemes) == both.phonemes


def test_repaced_speech_carries_its_phonemes_along() -> None:
    slow = repaced(Spoken(tone(1.0), tuple(said(("ɑ", 1.0)))), 1.25)
    assert len(slow.samples) == pytest.approx(1.25 * WHISPER_HZ, abs=2)
    assert slow.phonemes[0].end_s == pytest.approx(1.25)


def test_clips_are_equal_after_saving_and_loading(tmp_path: Path) -> None:
    clips = [
        to_clip(Spoken(tone(seconds), tuple(said(("ɑ", 0.3), ("m", 0.1), ("i", 0.3)))), TRAIN) for seconds in (0.75, 1)
    ]
    assert [len(clip.mouth) for clip in clips] == [18, 25]  # whole frames only
    save(clips, tmp_path / "speech.npz")
    for before, after in zip(clips, load(tmp_path / "speech.npz"), strict=True):
        assert np.array_equal(before.samples, after.samples) and np.array_equal(before.mouth, after.mouth)
        assert before.closures == after.closures == (8,) and after.use == TRAIN
