"""models.recognition.whisper: windows, doubtful results, silence, hallucinations, and unusable folders."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from models.errors import AudioError, ConfigError, InputError, WeightsError
from models.recognition import whisper as module
from models.recognition.decoding import Decoded, decode
from models.recognition.whisper import WhisperRecognizer
from tests.support.whisper import buzz, make_tokenizer, silence, write_whisper

HELLO, WORLD = make_tokenizer().encode("hello").ids, make_tokenizer().encode(" world").ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return WhisperRecognizer.load(write_whisper(tmp_path_factory.mktemp("english"), multilingual=False))


@pytest.fixture(scope="module")
def loaded(folder):
    return WhisperRecognizer.load(folder)


@pytest.fixture
def recognizer(loaded):
    """A shallow copy, whose attributes a test may change."""
    return copy.copy(loaded)


class FakeDecode:
    """Replaces `decode`: returns `answers` in turn, then the last one again; records the calls."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.calls, self.windows = list(answers), [], []
        monkeypatch.setattr(module, "decode", self)

    def record_windows(self, recognizer):
        """Also record where each window begins, without encoding it."""
        recognizer._encode = lambda samples, start_s: self.windows.append(round(start_s, 2))
        return recognizer

    def __call__(self, decoder, states, prompt, rules, limit, no_speech, temperature):
        self.calls.append((prompt, limit, temperature))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def decoded(recognizer, *parts, logprob=-0.2, no_speech=0.01, looped=False):
    """A result of `decode`: numbers are times in seconds, lists are tokens of words."""
    first = recognizer.vocabulary.first_timestamp
    tokens = [t for part in parts for t in (part if isinstance(part, list) else [first + round(part / 0.02)])]
    return Decoded(tuple(tokens), logprob, no_speech, looped)


# --- with the network


def test_transcript_equals_a_decode_with_transformers_model(recognizer, folder, monkeypatch):
    samples = buzz(2.0)
    recognizer.temperatures, recognizer.min_context_s = (0.0,), None
    monkeypatch.setattr(module, "MIN_LOGPROB", -99.0)  # random weights give low probabilities
    monkeypatch.setattr(module, "NO_SPEECH_SURE", 2.0)
    transcript = recognizer.transcribe(samples, "de")
    words = recognizer.vocabulary
    hub = WhisperForConditionalGeneration.from_pretrained(folder)  # loads the same files with transformers
    window = torch.zeros(1, 480_000)
    window[0, : len(samples)] = torch.from_numpy(samples)
    with torch.no_grad():
        states = hub.model.encoder(module.log_mel(window)).last_hidden_state
        prompt = [words.start, words.languages["de"], words.tasks["transcribe"]]
        limit = module.EXTRA_TOKENS + int(module.TOKENS_PER_S * 2.0)
        whole = decode(hub.model.decoder, states, prompt, recognizer.rules, limit, words.no_speech)
    wanted = words.text(whole.tokens).strip()
    assert len(wanted) > 3 and transcript.text == wanted and transcript.language == "de"
    assert transcript.segments[0].logprob == pytest.approx(whole.logprob, abs=1e-3)


def test_a_short_recording_uses_a_short_context_with_shared_weights(recognizer):
    full = recognizer._encode(torch.from_numpy(buzz(29.0)), 0.0)
    assert full.shape == (1, 1500, 32)
    samples = torch.from_numpy(buzz(9.5))
    assert [recognizer._encode(samples[:n], 0.0).shape[1] for n in (16_000, 8 * 16_000, 152_000)] == [600, 600, 700]
    assert recognizer._encode(samples, 5.5).shape[1] == 600  # the remaining length counts
    with torch.no_grad():
        recognizer.min_context_s = 30.0
        long = recognizer._encode(samples, 0.0)[0, :10]
        recognizer.min_context_s = 12.0
        short = recognizer._encode(samples, 0.0)[0, :10]
    assert long.shape == short.shape and not torch.equal(long, short)  # with less silence after the audio
    encoder = recognizer._encoder
    assert encoder.conv1.weight.data_ptr() == recognizer.model.encoder.conv1.weight.data_ptr()


def test_the_most_probable_language_is_used_if_none_is_given(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 1.0))
    found = recognizer.transcribe(buzz(1.0)).language
    states = recognizer._encode(torch.from_numpy(buzz(1.0)), 0.0)
    start = torch.tensor([[recognizer.vocabulary.start]])
    with torch.no_grad():
        hidden = recognizer.model.decoder(input_ids=start, encoder_hidden_states=states).last_hidden_state[0, 0]
    scores = recognizer.model.decoder.embed_tokens.weight @ hidden
    wanted = max(recognizer.vocabulary.languages.items(), key=lambda entry: scores[entry[1]])
    assert found == wanted[0] and fake.calls[0][0][1] == wanted[1]


# --- windows


def test_silence_is_not_decoded(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch)
    rng = np.random.default_rng(0)
    for quiet in (silence(3.0), 1e-4 * rng.normal(size=48_000).astype(np.float32)):
        transcript = recognizer.transcribe(quiet, "en")
        assert (transcript.text, transcript.segments, transcript.duration_s) == ("", (), 3.0)
    assert fake.calls == []


def test_silence_is_skipped_and_times_refer_to_the_recording(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(recognizer, 0.2, HELLO, 1.2), decoded(recognizer, 0.2, WORLD, 1.2))
    samples = np.concatenate([silence(5), buzz(1), silence(40), buzz(1), silence(4)])
    transcript = fake.record_windows(recognizer).transcribe(samples, "en")
    assert fake.windows == pytest.approx([4.8, 45.8], abs=0.05)
    assert transcript.text == "hello world" and transcript.duration_s == 51.0
    assert [(s.text, s.start_s, s.end_s) for s in transcript.segments] == [
        ("hello", pytest.approx(5.0, abs=0.05), pytest.approx(6.0, abs=0.05)),
        ("world", pytest.approx(46.0, abs=0.05), pytest.approx(47.0, abs=0.05)),
    ]


def test_a_sentence_cut_by_a_window_is_decoded_in_the_next_one(recognizer, monkeypatch):
    fake = FakeDecode(
        monkeypatch,
        decoded(recognizer, 0.0, HELLO, 26.0, 26.0, [9]),  # the last span has no end time
        decoded(recognizer, 0.0, WORLD, 14.0),
    )
    transcript = fake.record_windows(recognizer).transcribe(buzz(40.0), "en")
    assert fake.windows == pytest.approx([0.0, 26.0], abs=0.05)
    assert transcript.text == "hello world" and transcript.segments[1].end_s == pytest.approx(40.0, abs=0.05)


def test_speech_after_the_last_words_is_decoded_again(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 2.0), decoded(recognizer, 0.0, WORLD, 3.0))
    transcript = fake.record_windows(recognizer).transcribe(buzz(5.0), "en")
    assert fake.windows == pytest.approx([0.0, 2.0], abs=0.05) and transcript.text == "hello world"


def test_transcription_terminates_for_any_timestamps(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 0.02, 0.02, [9]))  # would not advance
    fake.record_windows(recognizer).transcribe(buzz(65.0), "en")
    assert fake.windows == pytest.approx([0.0, 30.0, 60.0], abs=0.05)
    fake.windows.clear()
    fake.answers = [decoded(recognizer, 0.0, HELLO, 1.0)]
    fake.record_windows(recognizer).transcribe(buzz(8.0), "en")
    assert len(fake.windows) <= 8


def test_the_token_limit_grows_with_the_speech(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 1.0))
    fake.record_windows(recognizer)
    recognizer.transcribe(np.concatenate([buzz(1.0), silence(20)]), "en")
    recognizer.transcribe(buzz(30.0), "en")
    limits = [limit for _, limit, _ in fake.calls]
    assert limits[0] == pytest.approx(module.EXTRA_TOKENS + module.TOKENS_PER_S, abs=2) and limits[1] == 224


# --- doubtful results


def test_a_high_no_speech_probability_gives_no_text(recognizer, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 1.0, logprob=-0.9, no_speech=0.92))
    assert recognizer.transcribe(buzz(1.0), "en").text == "" and len(fake.calls) == 1
    fake.answers = [decoded(recognizer, 0.0, HELLO, 1.0, logprob=-1.1, no_speech=0.65)]
    assert recognizer.transcribe(buzz(1.0), "en").text == ""
    fake.answers = [decoded(recognizer, 0.0, HELLO, 1.0, logprob=-0.9, no_speech=0.65)]
    assert recognizer.transcribe(buzz(1.0), "en").text == "hello"


def test_a_doubtful_window_is_decoded_at_higher_temperatures_and_the_best_is_kept(recognizer, monkeypatch):
    tries = [decoded(recognizer, 0.0, HELLO, 1.0, logprob=p) for p in (-1.4, -1.2, -1.3)]
    fake = FakeDecode(monkeypatch, *tries)
    assert recognizer.transcribe(buzz(1.0), "en").segments[0].logprob == -1.2
    assert [temperature for _, _, temperature in fake.calls] == [0.0, 0.4, 0.8]
    fake.answers, fake.calls = [tries[0], decoded(recognizer, 0.0, WORLD, 1.0, logprob=-0.5)], []
    assert recognizer.transcribe(buzz(1.0), "en").text == "world" and len(fake.calls) == 2


def test_a_very_low_probability_gives_no_text(recognizer, monkeypatch):
    FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 1.0, logprob=-2.5))
    assert recognizer.transcribe(buzz(1.0), "en").text == ""


def test_repetition_is_decoded_again_and_cut_to_one_occurrence(recognizer, monkeypatch):
    fake = FakeDecode(
        monkeypatch, decoded(recognizer, 0.0, HELLO, logprob=-0.1, looped=True), decoded(recognizer, 0.0, WORLD, 1.0)
    )
    assert recognizer.transcribe(buzz(1.0), "en").text == "world"
    fake.answers, fake.calls = [decoded(recognizer, 0.0, HELLO, logprob=-0.1, looped=True)], []
    assert recognizer.transcribe(buzz(1.0), "en").text == "hello" and len(fake.calls) == 3
    fake.answers, fake.calls = (
        [decoded(recognizer, 0.0, [*HELLO, *WORLD] * 12, 1.0), decoded(recognizer, 0.0, HELLO, 1.0)],
        [],
    )
    assert recognizer.transcribe(buzz(1.0), "en").text == "hello" and len(fake.calls) == 2  # high compression ratio


def test_words_at_times_without_speech_are_dropped(recognizer, monkeypatch):
    FakeDecode(monkeypatch, decoded(recognizer, 0.0, HELLO, 1.2, 8.0, WORLD, 10.0))
    transcript = recognizer.transcribe(np.concatenate([buzz(1.2), silence(12)]), "en")
    assert transcript.text == "hello" and len(transcript.segments) == 1


# --- unusable input


def test_an_english_whisper_gets_no_language_token_and_refuses_others(english, monkeypatch):
    fake = FakeDecode(monkeypatch, decoded(english, 0.0, HELLO, 1.0))
    assert english.transcribe(buzz(1.0)).language == "en" and fake.calls[0][0] == [english.vocabulary.start]
    for wrong in ({"language": "de"}, {"task": "translate"}):
        with pytest.raises(InputError, match="only English"):
            english.transcribe(buzz(1.0), **wrong)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((2, 100), np.float32), "one channel"),
        (np.zeros(100, np.int16), "not floats"),
        (np.full(100, np.nan, np.float32), "NaN"),
    ],
)
def test_unusable_samples_are_refused(recognizer, samples, words):
    with pytest.raises(AudioError, match=words):
        recognizer.transcribe(samples)


def test_unknown_languages_and_tasks_are_refused(recognizer):
    with pytest.raises(InputError, match="no language 'xx'.*de, en, yue"):
        recognizer.transcribe(buzz(1.0), "xx")
    with pytest.raises(InputError, match="no task 'sing'"):
        recognizer.transcribe(buzz(1.0), "en", "sing")


def test_the_embedded_encoder_without_decoder_is_refused():
    with pytest.raises(WeightsError, match=r"encoder without its decoder.*--only whisper-tiny\.en"):
        WhisperRecognizer.load("models/embedded/whisper")


@pytest.fixture
def copied_folder(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("key", ["decoder.layers.1.encoder_attn.k_proj.weight", "encoder.conv2.bias"])
def test_a_missing_tensor_is_named(copied_folder, key):
    state = load_file(copied_folder / "model.safetensors")
    del state[f"model.{key}"]
    save_file(state, copied_folder / "model.safetensors")
    with pytest.raises(WeightsError, match=f"1 missing.*{key}"):
        WhisperRecognizer.load(copied_folder)


def test_errors_name_damaged_and_missing_files(copied_folder):
    data = (copied_folder / "model.safetensors").read_bytes()
    (copied_folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="not a complete safetensors"):
        WhisperRecognizer.load(copied_folder)
    (copied_folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"none of model\.safetensors"):
        WhisperRecognizer.load(copied_folder)
    (copied_folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        WhisperRecognizer.load(copied_folder)


def test_a_missing_or_different_tokenizer_is_refused(copied_folder):
    words = json.loads((copied_folder / "tokenizer.json").read_text())
    words["added_tokens"][-1]["id"] += 7
    (copied_folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(WeightsError, match="the tokenizer has .* tokens, the network"):
        WhisperRecognizer.load(copied_folder)
    (copied_folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="neither tokenizer.json nor vocab.json"):
        WhisperRecognizer.load(copied_folder)


def test_a_folder_without_generation_config_and_prefix_loads(tmp_path, folder):
    bare = write_whisper(tmp_path / "bare", prefix="")
    (bare / "generation_config.json").unlink()
    state = load_file(bare / "model.safetensors")
    state["proj_out.weight"] = state["decoder.embed_tokens.weight"].clone()  # as in pytorch_model.bin files
    save_file(state, bare / "model.safetensors")
    found = WhisperRecognizer.load(bare)
    other = WhisperRecognizer.load(folder)
    assert not found.multilingual and torch.equal(
        found.model.decoder.embed_tokens.weight, other.model.decoder.embed_tokens.weight
    )
    assert set(other.rules.never) - set(found.rules.never) == {1, 2} and other.rules.not_first == (3,)


def test_empty_temperatures_are_refused(folder):
    with pytest.raises(ConfigError, match="temperatures"):
        WhisperRecognizer.load(folder, temperatures=[])
