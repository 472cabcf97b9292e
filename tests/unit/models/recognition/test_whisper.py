"""The Whisper recogniser: which windows it hears, what it does with doubt and silence, and which folders it refuses."""

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


@pytest.fixture
def recognizer(folder):
    return WhisperRecognizer.load(folder)


class Ear:
    """Stands in for the decoding loop: `answers` in turn, the last for ever; remembers what it was asked."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.asked, self.windows = list(answers), [], []
        monkeypatch.setattr(module, "decode", self)

    def listen(self, recognizer):
        """Remember where each window begins, too; nothing is encoded."""
        recognizer._encode = lambda samples, start_s: self.windows.append(round(start_s, 2))
        return recognizer

    def __call__(self, decoder, states, prompt, rules, limit, no_speech, temperature):
        self.asked.append((prompt, limit, temperature))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def heard(recognizer, *parts, logprob=-0.2, no_speech=0.01, looped=False):
    """An answer: numbers are times in seconds, lists are words."""
    first = recognizer.vocabulary.first_timestamp
    tokens = [t for part in parts for t in (part if isinstance(part, list) else [first + round(part / 0.02)])]
    return Decoded(tuple(tokens), logprob, no_speech, looped)


# --- against the network itself


def test_a_short_recording_is_what_the_loop_says_of_its_window(recognizer, folder, monkeypatch):
    samples = buzz(2.0)
    recognizer.temperatures, recognizer.min_context_s = (0.0,), None
    monkeypatch.setattr(module, "MIN_LOGPROB", -99.0)  # random weights doubt everything
    monkeypatch.setattr(module, "NO_SPEECH_SURE", 2.0)
    transcript = recognizer.transcribe(samples, "de")
    words = recognizer.vocabulary
    hub = WhisperForConditionalGeneration.from_pretrained(folder)  # the same files by transformers' own way
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


def test_a_short_recording_gets_a_short_context_with_the_same_weights(recognizer):
    full = recognizer._encode(torch.from_numpy(buzz(29.0)), 0.0)
    assert full.shape == (1, 1500, 32)
    samples = torch.from_numpy(buzz(9.5))
    assert [recognizer._encode(samples[:n], 0.0).shape[1] for n in (16_000, 8 * 16_000, 152_000)] == [600, 600, 700]
    assert recognizer._encode(samples, 5.5).shape[1] == 600  # what is left counts
    with torch.no_grad():
        recognizer.min_context_s = 30.0
        long = recognizer._encode(samples, 0.0)[0, :10]
        recognizer.min_context_s = 12.0
        short = recognizer._encode(samples, 0.0)[0, :10]
    assert long.shape == short.shape and not torch.equal(long, short)  # it hears less silence behind
    encoder = recognizer._encoders.encoder_for(700)
    assert encoder.conv1.weight.data_ptr() == recognizer.model.encoder.conv1.weight.data_ptr()


def test_the_language_is_the_likeliest_where_none_is_given(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 1.0))
    found = recognizer.transcribe(buzz(1.0)).language
    states = recognizer._encode(torch.from_numpy(buzz(1.0)), 0.0)
    start = torch.tensor([[recognizer.vocabulary.start]])
    with torch.no_grad():
        hidden = recognizer.model.decoder(input_ids=start, encoder_hidden_states=states).last_hidden_state[0, 0]
    scores = recognizer.model.decoder.embed_tokens.weight @ hidden
    wanted = max(recognizer.vocabulary.languages.items(), key=lambda entry: scores[entry[1]])
    assert found == wanted[0] and ear.asked[0][0][1] == wanted[1]


# --- windows


def test_nothing_is_decoded_where_nothing_sounds(recognizer, monkeypatch):
    ear = Ear(monkeypatch)
    rng = np.random.default_rng(0)
    for quiet in (silence(3.0), 1e-4 * rng.normal(size=48_000).astype(np.float32)):
        transcript = recognizer.transcribe(quiet, "en")
        assert (transcript.text, transcript.segments, transcript.duration_s) == ("", (), 3.0)
    assert ear.asked == []


def test_silence_is_leapt_over_and_times_are_those_of_the_recording(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.2, HELLO, 1.2), heard(recognizer, 0.2, WORLD, 1.2))
    samples = np.concatenate([silence(5), buzz(1), silence(40), buzz(1), silence(4)])
    transcript = ear.listen(recognizer).transcribe(samples, "en")
    assert ear.windows == pytest.approx([4.8, 45.8], abs=0.05)
    assert transcript.text == "hello world" and transcript.duration_s == 51.0
    assert [(s.text, s.start_s, s.end_s) for s in transcript.segments] == [
        ("hello", pytest.approx(5.0, abs=0.05), pytest.approx(6.0, abs=0.05)),
        ("world", pytest.approx(46.0, abs=0.05), pytest.approx(47.0, abs=0.05)),
    ]


def test_a_sentence_that_a_window_cuts_off_is_heard_whole_in_the_next(recognizer, monkeypatch):
    ear = Ear(
        monkeypatch,
        heard(recognizer, 0.0, HELLO, 26.0, 26.0, [9]),  # the last of it open
        heard(recognizer, 0.0, WORLD, 14.0),
    )
    transcript = ear.listen(recognizer).transcribe(buzz(40.0), "en")
    assert ear.windows == pytest.approx([0.0, 26.0], abs=0.05)
    assert transcript.text == "hello world" and transcript.segments[1].end_s == pytest.approx(40.0, abs=0.05)


def test_sound_behind_the_last_words_is_heard_again(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 2.0), heard(recognizer, 0.0, WORLD, 3.0))
    transcript = ear.listen(recognizer).transcribe(buzz(5.0), "en")
    assert ear.windows == pytest.approx([0.0, 2.0], abs=0.05) and transcript.text == "hello world"


def test_it_always_comes_to_an_end(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 0.02, 0.02, [9]))  # it would never get on
    ear.listen(recognizer).transcribe(buzz(65.0), "en")
    assert ear.windows == pytest.approx([0.0, 30.0, 60.0], abs=0.05)
    ear.windows.clear()
    ear.answers = [heard(recognizer, 0.0, HELLO, 1.0)]
    ear.listen(recognizer).transcribe(buzz(8.0), "en")
    assert len(ear.windows) <= 8


def test_nobody_says_more_than_so_much_in_so_short_a_time(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 1.0))
    ear.listen(recognizer)
    recognizer.transcribe(np.concatenate([buzz(1.0), silence(20)]), "en")
    recognizer.transcribe(buzz(30.0), "en")
    limits = [limit for _, limit, _ in ear.asked]
    assert limits[0] == pytest.approx(module.EXTRA_TOKENS + module.TOKENS_PER_S, abs=2) and limits[1] == 224


# --- doubt


def test_a_window_that_is_surely_silent_says_nothing(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 1.0, logprob=-0.9, no_speech=0.92))
    assert recognizer.transcribe(buzz(1.0), "en").text == "" and len(ear.asked) == 1
    ear.answers = [heard(recognizer, 0.0, HELLO, 1.0, logprob=-1.1, no_speech=0.65)]
    assert recognizer.transcribe(buzz(1.0), "en").text == ""
    ear.answers = [heard(recognizer, 0.0, HELLO, 1.0, logprob=-0.9, no_speech=0.65)]
    assert recognizer.transcribe(buzz(1.0), "en").text == "hello"


def test_a_doubtful_window_is_tried_again_warmer_and_the_best_is_taken(recognizer, monkeypatch):
    tries = [heard(recognizer, 0.0, HELLO, 1.0, logprob=p) for p in (-1.4, -1.2, -1.3)]
    ear = Ear(monkeypatch, *tries)
    assert recognizer.transcribe(buzz(1.0), "en").segments[0].logprob == -1.2
    assert [temperature for _, _, temperature in ear.asked] == [0.0, 0.4, 0.8]
    ear.answers, ear.asked = [tries[0], heard(recognizer, 0.0, WORLD, 1.0, logprob=-0.5)], []
    assert recognizer.transcribe(buzz(1.0), "en").text == "world" and len(ear.asked) == 2


def test_what_nobody_could_make_out_is_nothing(recognizer, monkeypatch):
    Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 1.0, logprob=-2.5))
    assert recognizer.transcribe(buzz(1.0), "en").text == ""


def test_circles_are_tried_again_and_what_is_left_of_them_is_one_turn(recognizer, monkeypatch):
    ear = Ear(monkeypatch, heard(recognizer, 0.0, HELLO, logprob=-0.1, looped=True), heard(recognizer, 0.0, WORLD, 1.0))
    assert recognizer.transcribe(buzz(1.0), "en").text == "world"
    ear.answers, ear.asked = [heard(recognizer, 0.0, HELLO, logprob=-0.1, looped=True)], []
    assert recognizer.transcribe(buzz(1.0), "en").text == "hello" and len(ear.asked) == 3
    ear.answers, ear.asked = (
        [heard(recognizer, 0.0, [*HELLO, *WORLD] * 12, 1.0), heard(recognizer, 0.0, HELLO, 1.0)],
        [],
    )
    assert recognizer.transcribe(buzz(1.0), "en").text == "hello" and len(ear.asked) == 2  # it compresses too well


def test_words_that_stand_where_nothing_sounds_are_made_up(recognizer, monkeypatch):
    Ear(monkeypatch, heard(recognizer, 0.0, HELLO, 1.2, 8.0, WORLD, 10.0))
    transcript = recognizer.transcribe(np.concatenate([buzz(1.2), silence(12)]), "en")
    assert transcript.text == "hello" and len(transcript.segments) == 1


# --- what is refused


def test_an_english_whisper_is_asked_without_a_language_and_knows_no_other(english, monkeypatch):
    ear = Ear(monkeypatch, heard(english, 0.0, HELLO, 1.0))
    assert english.transcribe(buzz(1.0)).language == "en" and ear.asked[0][0] == [english.vocabulary.start]
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
def test_samples_that_are_none_are_refused(recognizer, samples, words):
    with pytest.raises(AudioError, match=words):
        recognizer.transcribe(samples)


def test_unknown_languages_and_tasks_are_refused(recognizer):
    with pytest.raises(InputError, match="no language 'xx'.*de, en, yue"):
        recognizer.transcribe(buzz(1.0), "xx")
    with pytest.raises(InputError, match="no task 'sing'"):
        recognizer.transcribe(buzz(1.0), "en", "sing")


def test_an_encoder_alone_is_refused_and_the_embedded_one_is_such():
    with pytest.raises(WeightsError, match=r"encoder without its decoder.*--only whisper-tiny\.en"):
        WhisperRecognizer.load("models/embedded/whisper")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("key", ["decoder.layers.1.encoder_attn.k_proj.weight", "encoder.conv2.bias"])
def test_a_missing_tensor_is_named(copy, key):
    state = load_file(copy / "model.safetensors")
    del state[f"model.{key}"]
    save_file(state, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=f"1 missing.*{key}"):
        WhisperRecognizer.load(copy)


def test_broken_and_missing_files_are_named(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="not a complete safetensors"):
        WhisperRecognizer.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"none of model\.safetensors"):
        WhisperRecognizer.load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        WhisperRecognizer.load(copy)


def test_a_tokenizer_that_is_missing_or_of_another_whisper_is_told(copy):
    words = json.loads((copy / "tokenizer.json").read_text())
    words["added_tokens"][-1]["id"] += 7
    (copy / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(WeightsError, match="the tokenizer has .* tokens, the network"):
        WhisperRecognizer.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="neither tokenizer.json nor vocab.json"):
        WhisperRecognizer.load(copy)


def test_a_folder_without_hints_or_prefix_is_read_too(tmp_path, folder):
    bare = write_whisper(tmp_path / "bare", prefix="")
    (bare / "generation_config.json").unlink()
    state = load_file(bare / "model.safetensors")
    state["proj_out.weight"] = state["decoder.embed_tokens.weight"].clone()  # as pytorch_model.bin files have it
    save_file(state, bare / "model.safetensors")
    found = WhisperRecognizer.load(bare)
    other = WhisperRecognizer.load(folder)
    assert not found.multilingual and torch.equal(
        found.model.decoder.embed_tokens.weight, other.model.decoder.embed_tokens.weight
    )
    assert set(other.rules.never) - set(found.rules.never) == {1, 2} and other.rules.not_first == (3,)


def test_no_temperature_at_all_is_refused(folder):
    with pytest.raises(ConfigError, match="temperatures"):
        WhisperRecognizer.load(folder, temperatures=[])
