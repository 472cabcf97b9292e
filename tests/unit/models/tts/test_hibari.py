"""models.tts.hibari: streaming, determinism, pauses, clean edges, and the times of phonemes and words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hibari.voices import VOICES

from models.errors import ConfigError, InputError, TextError, WeightsError
from models.runtime.registry import find_engine
from models.speech.text import split_sentences
from models.tts import hibari
from models.tts.hibari import SAMPLE_RATE_HZ, HibariTTS, phoneme_times, trim, word_times
from models.tts.streaming import LAST_PAUSE_S, LEAD_S, PAUSES_S, SILENCE_LEVEL, sound_bounds
from models.types import Float32, Phoneme, Speech
from tests.support.voice import hibari as shared_voice

TWO = "Hello there, this is a map. Where does the path go?"


@pytest.fixture
def voice() -> HibariTTS:
    return shared_voice()


def level_db(samples: Float32) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(samples.astype(np.float64) ** 2)) + 1e-12))


def test_each_sentence_is_a_segment_and_the_final_one_is_last(voice: HibariTTS) -> None:
    speech = list(voice.speak(TWO))
    assert [s.text for s in speech] == ["Hello there, this is a map.", "Where does the path go?"]
    assert [s.last for s in speech] == [False, True]
    assert [s.sample_rate_hz for s in speech] == [24_000, 24_000] and voice.sample_rate_hz == 24_000
    assert all(1.0 < s.duration_s < 2.5 for s in speech)
    assert all(-32 < level_db(s.samples) < -18 and np.abs(s.samples).max() <= 1.0 for s in speech)


@pytest.mark.parametrize("number", ["7" * 40, "$1" + ",000" * 13, "-" + "9" * 40 + "%", "1" * 39 + "th"])
def test_a_very_long_number_is_read_digit_by_digit(voice: HibariTTS, number: str) -> None:
    model = voice._voice("heart")
    assert model.phonemise(f"It is {number}.").count(" ") >= 38
    assert model.phonemise("It is 1,234,567.") != model.phonemise("It is 1 2 3 4 5 6 7.")


def test_a_front_end_failure_gives_a_text_error(voice: HibariTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(text: str) -> str:
        raise KeyError(text)

    monkeypatch.setattr(voice._voice("heart"), "_hibari", SimpleNamespace(g2p=breaks))
    with pytest.raises(TextError, match="cannot read 'Odd words'"):
        next(voice.speak("Odd words"))


def test_a_sentence_that_the_front_end_cannot_read_is_skipped(
    voice: HibariTTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = voice._voice("heart")
    read = model.phonemise

    def breaks(text: str) -> str:
        if "Odd" in text:
            raise TextError(f"The voice cannot read {text!r}.")
        return read(text)

    monkeypatch.setattr(model, "phonemise", breaks)
    speech = list(voice.speak("Odd one. Fine. Odd two. Good. Odd three."))
    assert [(s.text, s.last) for s in speech] == [("Fine.", False), ("Good.", True)]
    skipped = [(entry.text, entry.count) for s in speech for entry in s.skipped]
    assert skipped == [("Odd one.", 2), ("Odd three.", 1)]


def test_the_first_sentence_is_yielded_before_the_second_is_synthesised(
    voice: HibariTTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    synthesise = hibari._Voice.synthesise

    def counted(self: hibari._Voice, phonemes: str, speed: float, seed: int = 0) -> tuple[Float32, tuple[Phoneme, ...]]:
        calls.append(phonemes)
        return synthesise(self, phonemes, speed, seed)

    monkeypatch.setattr(hibari._Voice, "synthesise", counted)
    stream: Iterator[Speech] = voice.speak(TWO)
    assert len(calls) == 0
    next(stream)
    assert len(calls) == 1
    next(stream)
    assert len(calls) == 2


def test_synthesis_is_faster_than_real_time(voice: HibariTTS) -> None:
    # CPU time, which does not depend on other processes; the limits are about 30 times what one core needs
    began = time.process_time()
    stream = voice.speak("The quick brown fox jumps over the lazy dog. " * 8)
    spoken_s = next(stream).duration_s
    first_s = time.process_time() - began
    spoken_s += sum(s.duration_s for s in stream)
    assert first_s < 0.5  # 0.015 s on one core
    assert (time.process_time() - began) / spoken_s < 0.2  # 0.007 on one core


def test_samples_do_not_depend_on_earlier_texts(voice: HibariTTS) -> None:
    alone = next(voice.speak("Where does the path go?"))
    list(voice.speak("Something else."))
    second_of_two = list(voice.speak(TWO))[1]
    np.testing.assert_array_equal(alone.samples, second_of_two.samples)


def test_speed_changes_the_length_and_stays_in_its_range(voice: HibariTTS) -> None:
    normal, slow, fast = (sum(s.duration_s for s in voice.speak(TWO, speed=v)) for v in (1.0, 0.7, 1.4))
    assert 1.2 < slow / normal < 1.6
    assert 0.62 < fast / normal < 0.85
    for speed in (0.1, 3.0, float("nan")):
        with pytest.raises(InputError, match="out of range"):
            voice.speak(TWO, speed=speed)


def test_the_pause_between_sentences_fits_the_punctuation(voice: HibariTTS) -> None:
    first, second = voice.speak(TWO)
    joined = np.concatenate([first.samples, second.samples])
    block = SAMPLE_RATE_HZ // 100
    rms = np.sqrt(np.mean(joined[: len(joined) // block * block].reshape(-1, block) ** 2, axis=1))
    loud = np.flatnonzero(rms > SILENCE_LEVEL) * block / SAMPLE_RATE_HZ
    pause_s = loud[loud >= first.duration_s][0] - loud[loud < first.duration_s][-1]
    assert pause_s == pytest.approx(PAUSES_S["."], abs=0.03)
    assert second.duration_s - (loud[-1] - first.duration_s) == pytest.approx(LAST_PAUSE_S, abs=0.03)
    assert loud[0] == pytest.approx(LEAD_S, abs=0.02)


def test_edges_are_silent_and_there_is_no_dc_offset(voice: HibariTTS) -> None:
    for speech in voice.speak(TWO):
        assert speech.samples[0] == pytest.approx(0, abs=1e-6) and speech.samples[-1] == pytest.approx(0, abs=1e-6)
        assert np.abs(speech.samples[:240]).max() < 1e-3 and np.abs(speech.samples[-240:]).max() < 1e-3
        assert abs(speech.samples.mean()) < 1e-4


def test_phonemes_fill_the_segment_in_order(voice: HibariTTS) -> None:
    speech = next(voice.speak("My brother made a map."))
    assert [p.symbol for p in speech.phonemes] == [*"_maɪbɹʌðəɹmeɪdɐmæp_"]
    assert speech.phonemes[0].start_s == 0 and speech.phonemes[-1].end_s == pytest.approx(speech.duration_s)
    for before, after in zip(speech.phonemes, speech.phonemes[1:], strict=False):
        assert before.start_s < before.end_s == after.start_s


def test_phoneme_times_fit_the_audio(voice: HibariTTS) -> None:
    """Sibilants have most of their energy above 3.5 kHz: the correlation with their labels must be highest at lag 0."""
    text = "She sells seashells by the seashore. Six thick sticks. His zebra chose a fresh juicy peach. Is this so?"
    fits = {lag: 0.0 for lag in range(-10, 11)}  # in hundredths of a second
    for speech in voice.speak(text):
        hop = SAMPLE_RATE_HZ // 100
        n = len(speech.samples) // hop
        power = np.abs(np.fft.rfft(speech.samples[: n * hop].reshape(n, hop) * np.hanning(hop), axis=1)) ** 2
        share = power[:, 35:].sum(1) / (power.sum(1) + 1e-3)  # bins of 100 Hz
        label = np.zeros(n)
        for p in speech.phonemes:
            if p.symbol in "szʃʒʧʤ":
                label[round(p.start_s * 100) : round(p.end_s * 100)] = 1
        for lag in fits:
            fits[lag] += float(np.corrcoef(np.roll(label, lag), share)[0, 1])
    assert abs(max(fits, key=lambda lag: fits[lag])) <= 2
    assert fits[0] / 4 > 0.6


def test_without_durations_the_samples_are_the_same_without_phonemes(
    voice: HibariTTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_phonemes = next(voice.speak("Good morning."))
    monkeypatch.setattr(hibari, "DURATION_NODE", "/NoSuchNode_output_0")
    without = next(HibariTTS.load().speak("Good morning."))
    assert without.phonemes == () and len(with_phonemes.phonemes) > 8
    np.testing.assert_allclose(without.samples, with_phonemes.samples, atol=1e-6)


def test_phoneme_times_from_letters_stress_length_and_gaps() -> None:
    spans = phoneme_times(list("^hˈIː, T$"), [0.2, 0.1, 0.05, 0.1, 0.05, 0.1, 0.05, 0.1, 0.1])
    assert [p.symbol for p in spans] == ["_", "h", "a", "ɪ", "_", "ɾ", "_"]
    lag = hibari.DURATION_LAG_S
    assert spans[1] == Phoneme("h", pytest.approx(0.2 - lag), pytest.approx(0.3 - lag))
    assert spans[2].start_s == pytest.approx(0.3 - lag), "the duration of the stress mark is added to the vowel"
    assert spans[2].end_s == pytest.approx(0.3 + 0.55 * 0.15 - lag)
    assert spans[3].end_s == pytest.approx(0.5 - lag), "the duration of the length mark is added as well"
    assert (spans[4].start_s, spans[4].end_s) == (pytest.approx(0.5 - lag), pytest.approx(0.65 - lag))
    assert spans[-1].end_s == pytest.approx(0.85)


def test_trim_shifts_samples_and_phonemes() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(12_000) / SAMPLE_RATE_HZ).astype(np.float32)
    silence = np.zeros(7_200, np.float32)  # 0.3 s
    phonemes = (Phoneme("_", 0.0, 0.3), Phoneme("a", 0.3, 1.1))
    samples, moved = trim(np.concatenate([silence, tone, silence]), phonemes, 0.2)
    assert len(samples) == round((LEAD_S + 0.5 + 0.2) * SAMPLE_RATE_HZ)
    np.testing.assert_array_equal(samples[2_400:14_400], tone)
    assert [(p.symbol, round(p.start_s, 3), round(p.end_s, 3)) for p in moved] == [
        ("_", 0.0, 0.1),
        ("a", 0.1, 0.6),
        ("_", 0.6, 0.8),
    ]
    padded, _ = trim(tone, (), 0.4)
    assert len(padded) == 12_000 + round((LEAD_S + 0.4) * SAMPLE_RATE_HZ) and not padded[:2_400].any()


def test_a_long_text_is_split_and_spoken_completely(voice: HibariTTS) -> None:
    text = "we walked past 1,234,567 houses and 7,654,321 gardens and " * 6
    speech = list(voice.speak(text))
    assert " ".join(s.text for s in speech).split() == text.split()
    assert len(speech) > len(split_sentences(text)), "numbers have more phonemes than letters"
    assert all(len(voice._voice("heart").phonemise(s.text)) <= hibari.MAX_PHONEMES for s in speech)
    assert [s.last for s in speech[:-1]] == [False] * (len(speech) - 1)
    assert all(len(s.text) <= 200 for s in speech)


@pytest.mark.parametrize("text", ["", "   ", "😀", "?!", "你好", "x" * 100_001])
def test_unspeakable_text_is_refused_at_the_call(voice: HibariTTS, text: str) -> None:
    with pytest.raises(TextError):
        voice.speak(text)


def test_sentences_without_sound_are_skipped_and_the_final_one_is_last(voice: HibariTTS) -> None:
    pieces = voice._pieces(voice._voice("heart"), ["—", "Fine.", "!", "…"], [])
    assert [text for text, _ in pieces] == ["Fine."]
    speech = list(voice.speak("Fine. () ! 😀"))
    assert speech[0].text == "Fine." and [s.last for s in speech] == [True]


def test_voices_are_listed_and_unknown_ones_refused(voice: HibariTTS) -> None:
    assert voice.voices()[0] == "heart" and len(voice.voices()) == len(set(voice.voices())) == 5
    with pytest.raises(InputError, match="no voice 'nobody'"):
        voice.speak("Hello.", voice="nobody")
    with pytest.raises(ConfigError, match="no voice 'nobody'") as caught:
        HibariTTS.load(voice="nobody")
    assert "heart" in caught.value.remedy


def test_missing_voices_are_listed_with_their_size(
    voice: HibariTTS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    missing_voices = voice.missing_voices()
    assert set(missing_voices) == set(voice.voices()) - {"heart"}  # which is in the wheel
    assert all(6e6 < size < 10e6 for size in missing_voices.values())
    (tmp_path / VOICES["emma"]["file"]).write_bytes(b"as if fetched")
    assert set(voice.missing_voices()) == set(missing_voices) - {"emma"}
    assert len(list(tmp_path.iterdir())) == 1  # nothing was fetched
    monkeypatch.setattr("hibari.voices.BASE_URL", "http://127.0.0.1:9/")
    for asked in (voice.fetch_voice, lambda name: voice.speak("Hello.", name)):
        with pytest.raises(WeightsError, match=r"'kore' could not be loaded.*use the voice 'heart'"):
            asked("kore")
    voice.fetch_voice("emma")  # not missing: nothing to download


def test_it_is_found_by_module_and_class() -> None:
    assert find_engine("models.tts.hibari:HibariTTS", {}) is HibariTTS


def test_each_word_has_its_time(voice: HibariTTS) -> None:
    text = 'Dr. Smith — well-known, in 1984 — paid $5.50 for "no".'
    (speech,) = voice.speak(text)
    words = [word.text for word in speech.words]
    assert words == ["Dr.", "Smith —", "well-known,", "in", "1984 —", "paid", "$5.50", "for", '"no".']
    lengths = {word.text: word.end_s - word.start_s for word in speech.words}
    assert lengths["1984 —"] > 2 * lengths["in"] and lengths["$5.50"] > 3 * lengths["for"], "numbers are read out"
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in zip(speech.words, speech.words[1:], strict=False))
    begin, end = sound_bounds(speech.samples, SAMPLE_RATE_HZ)
    assert speech.words[0].start_s == pytest.approx(begin / SAMPLE_RATE_HZ, abs=0.06)
    assert speech.words[-1].end_s == pytest.approx(end / SAMPLE_RATE_HZ, abs=0.06)
    for word in speech.words:  # each is louder than the silence around the sentence
        heard = speech.samples[round(word.start_s * SAMPLE_RATE_HZ) : round(word.end_s * SAMPLE_RATE_HZ)]
        assert np.abs(heard).max() > 0.03, word


@pytest.mark.parametrize("speed", [0.5, 0.7, 1.0, 2.0])
def test_words_begin_and_end_with_the_sound_at_any_speed(voice: HibariTTS, speed: float) -> None:
    """Within a video frame. At half speed, the audio begins 0.13 s before the first duration."""
    for text in ("Stop.", "Go back, please.", "Cats purr.", "Birds can sing."):
        (speech,) = voice.speak(text, speed=speed)
        begin, end = (at / speech.sample_rate_hz for at in sound_bounds(speech.samples, speech.sample_rate_hz))
        assert -0.045 <= speech.words[0].start_s - begin <= 0.001, text  # the closure of a stop is before its sound
        assert speech.words[-1].end_s == pytest.approx(end, abs=0.001), text


def test_no_word_times_if_phonemes_cannot_be_assigned() -> None:
    times = (Phoneme("h", 0.1, 0.2), Phoneme("a", 0.2, 0.3), Phoneme("ɪ", 0.3, 0.4))
    assert [w.text for w in word_times("hi", "hˈI", times, str)] == ["hi"]
    assert word_times("hi you", "hˈI", times, lambda token: "h I") == ()
    assert word_times("hi", "hˈI", (*times, Phoneme("z", 0.4, 0.5)), str) == ()
    assert word_times("hi", "hˈI", (), str) == ()
