"""models.recognition.vocabulary: both file formats, decoding to text, and missing tokens."""

import json

import pytest

from models.errors import WeightsError
from models.recognition.vocabulary import Vocabulary, read_vocabulary
from tests.support.whisper import LANGUAGES, SPECIAL, make_tokenizer

TEXTS = ["hello world", " Hello, wörld – 你好 👋!", "tab\tand\nline", "ação İstanbul ½", "''\"\""]


@pytest.fixture
def folder(tmp_path):
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def older(tmp_path):
    """The files of transformers' slow tokenizer."""
    words = make_tokenizer().get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps({k: v for k, v in words.items() if k not in SPECIAL[1:]}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({k: words[k] for k in SPECIAL[1:]}))
    return tmp_path


@pytest.mark.parametrize("form", ["folder", "older"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_equals_the_tokenizers_decode(form, text, request):
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode(text).ids
    found = read_vocabulary(request.getfixturevalue(form)).text(tokens)
    assert found == text == tokenizer.decode(tokens)


def test_invalid_utf8_becomes_a_replacement_character_and_special_tokens_are_skipped(folder):
    vocabulary = read_vocabulary(folder)
    tokens = make_tokenizer().encode("ü").ids
    assert len(tokens) == 2 and vocabulary.text(tokens[:1]) == "�"
    assert vocabulary.text([vocabulary.start, *tokens, vocabulary.end, vocabulary.first_timestamp + 7]) == "ü"


@pytest.mark.parametrize("form", ["folder", "older"])
def test_special_tokens_are_found_by_name(form, request):
    vocabulary = read_vocabulary(request.getfixturevalue(form))
    words = make_tokenizer().get_vocab()
    assert vocabulary.end == words["<|endoftext|>"] and vocabulary.no_speech == words["<|nospeech|>"]
    assert vocabulary.languages == {code: words[f"<|{code}|>"] for code in LANGUAGES}
    assert vocabulary.tasks == {"transcribe": words["<|transcribe|>"], "translate": words["<|translate|>"]}
    assert vocabulary.first_timestamp == words["<|notimestamps|>"] + 1 == len(words)
    assert set(vocabulary.prompt_only) == {words[name] for name in SPECIAL[1:]}
    assert vocabulary.size == len(words) + 1501


def test_the_older_name_of_the_no_speech_token_is_accepted():
    words = {name.replace("nospeech", "nocaptions"): k for k, name in enumerate(SPECIAL)}
    assert Vocabulary(words).no_speech == SPECIAL.index("<|nospeech|>")


def test_errors_name_what_is_missing(tmp_path, folder):
    with pytest.raises(WeightsError, match="neither tokenizer.json nor vocab.json"):
        read_vocabulary(tmp_path / "nowhere")
    found = json.loads((folder / "tokenizer.json").read_text())
    found["added_tokens"] = [entry for entry in found["added_tokens"] if entry["content"] != "<|notimestamps|>"]
    (folder / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(WeightsError, match=r"no token <\|notimestamps\|>"):
        read_vocabulary(folder)
    (folder / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(WeightsError, match="not a Whisper tokenizer"):
        read_vocabulary(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        read_vocabulary(folder)
