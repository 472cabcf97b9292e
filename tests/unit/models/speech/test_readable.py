"""models.speech.readable: what of a text can be spoken, what is left out, and the warnings about it."""

from __future__ import annotations

import contextlib

import pytest

from models.errors import TextError
from models.speech.readable import check_text, has_word, readable_text, skip_warnings, skipped_for
from models.speech.text import split_sentences
from models.types import MAX_QUOTED_CHARS, SkippedText
from tests.support.linear_time import check_linear_time

CHINESE = "is written in Chinese script, which the voice cannot read"
CODE = "is a block of code, which is not spoken"
NO_WORD = "has no letter or digit, so there is nothing to speak"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "is empty"),
        (" \n\t ", "is empty"),
        ("😀🎉", "no letter or digit"),
        ("... !? —", "no letter or digit"),
        ("\u200b\u200d", "no letter or digit"),
        ("Привет, мир", "Cyrillic"),
        ("你好。", "Chinese"),
        ("Ελλάδα", "Greek"),
        ("hi Здравствуйте", "Cyrillic"),
        ("a " * 1001, "at most 2000"),
    ],
)
def test_unspeakable_text_is_refused_with_cause_and_remedy(text: str, cause: str) -> None:
    with pytest.raises(TextError, match=cause) as caught:
        check_text(text)
    assert caught.value.remedy.startswith("Send") and caught.value.status == 422


def test_the_limit_counts_spoken_characters_and_is_inclusive() -> None:
    assert len(check_text("a" * 2000)) == 2000
    assert check_text("ab" + " " * 3000) == "ab"
    with pytest.raises(TextError, match="at most 2000"):
        check_text("<b>" * 100_000)
    with pytest.raises(TextError, match="has 4 characters; at most 3"):
        check_text("abcd", max_chars=3)


def test_a_few_words_in_another_script_are_dropped() -> None:
    assert check_text("Hello 你好, my dear friend") == "Hello, my dear friend"
    assert check_text("Привет, dear old world") == "dear old world"
    assert check_text("42") == "42"
    assert check_text("½") == "½"
    assert check_text("naïve façade in Łódź") == "naïve façade in Łódź"


@pytest.mark.parametrize(
    ("language", "text", "sentences"),
    [
        ("ru", "Привет, мир. Как дела?", ["Привет, мир.", "Как дела?"]),
        ("zh-cn", "你好。今天天气很好！", ["你好.", "今天天气很好!"]),
        ("ar", "كيف حالك؟ أنا بخير.", ["كيف حالك؟", "أنا بخير."]),
        ("hi", "नमस्ते। आप कैसे हैं?", ["नमस्ते।", "आप कैसे हैं?"]),
        ("el", "Η Ελλάδα και η θάλασσα.", ["Η Ελλάδα και η θάλασσα."]),
    ],
)
def test_other_languages_keep_their_script_and_punctuation(language: str, text: str, sentences: list[str]) -> None:
    assert split_sentences(check_text(text, language=language)) == sentences


def test_symbols_become_words_only_in_english() -> None:
    text = "5 − 3 ≈ 2, siehe www.example.com"
    assert check_text(text) == "5 minus 3 about 2, siehe example dot com"
    assert check_text(text, language="de") == "5 - 3 ≈ 2, siehe example.com"


# --- passages that are left out


@pytest.mark.parametrize(
    ("text", "spoken", "warnings"),
    [
        ("Hello.\n\n你好吗。\n\nBye.", "Hello. Bye.", [f'Skipped "你好吗.": it {CHINESE}.']),
        (
            "Hello. 你好吗。今天天气很好。我们走吧。 Bye.",
            "Hello. Bye.",
            [f'Skipped "你好吗." and 2 more passages: each {CHINESE}.'],
        ),
        ("Hello 你好, my friend.", "Hello, my friend.", [f'Skipped "你好,": it {CHINESE}.']),
        ("Hi.\n```python\nprint(1)\n```\nDone.", "Hi. Done.", [f'Skipped "```python print(1) ```": it {CODE}.']),
        ("Hi\n~~~\nx\n\ny\n~~~~\nDone", "Hi. Done", [f'Skipped "~~~ x y ~~~~": it {CODE}.']),
        ("Hi.\n```\nx\ny", "Hi.", [f'Skipped "``` x y": it {CODE}.']),
        ("Hi.\n\n★ ★ ★\n\n🎉\n\nBye.", "Hi. Bye.", [f'Skipped "★ ★ ★" and 1 more passage: each {NO_WORD}.']),
        ("Hi 😀! 🎉 Bye.", "Hi! Bye.", []),
        ("Use `foo()` and\n```bar()``` here.", None, []),
        (
            "Hi.\n***\n---\n_ _ _\nBye. (Это я) …",
            "Hi. Bye.",
            [f'Skipped "(Это я)…": it {CHINESE}.'.replace("Chinese", "Cyrillic")],
        ),
        ("Hi.\n| a |\n|---|\nBye.", None, []),
    ],
)
def test_what_cannot_be_spoken_is_left_out_with_a_warning(text: str, spoken: str | None, warnings: list[str]) -> None:
    plain, skipped = readable_text(text)
    assert plain == (spoken or plain) and skip_warnings(skipped) == warnings


def test_for_other_languages_only_code_and_symbols_are_left_out() -> None:
    plain, skipped = readable_text("Hello. 你好吗。\n```\nx\n```", language="")
    assert plain == "Hello. 你好吗." and [entry.reason for entry in skipped] == [CODE]


@pytest.mark.parametrize(
    ("text", "reason"), [("```\nx = 1\n```", CODE), ("★ ★ ★\n```\nx\n```", CODE), ("★\n\n你好。", CHINESE)]
)
def test_a_text_of_which_nothing_can_be_spoken_is_refused(text: str, reason: str) -> None:
    with pytest.raises(TextError) as caught:
        readable_text(text)
    assert caught.value.message == f"The text {reason}."


def test_only_text_outside_of_code_has_words() -> None:
    assert has_word("one") and has_word("```\nx\n```\n1")
    assert not has_word("```\nx = 1\n```") and not has_word("😀 !") and not has_word("")


def test_a_warning_quotes_the_beginning_of_a_passage_on_one_line() -> None:
    (entry,) = readable_text("One.\n```\n" + "x = 1\n" * 1000 + "```")[1]
    assert (
        len(entry.text) == MAX_QUOTED_CHARS + 1 and entry.text.startswith("``` x = 1 x = 1") and "\n" not in entry.text
    )


def test_reasons_are_bounded() -> None:
    assert len(skip_warnings(SkippedText("x", f"reason {k}") for k in range(1000))) == 10


def test_the_error_of_a_voice_becomes_a_reason() -> None:
    named = skipped_for("abc", TextError("The text contains nothing that the voice can speak.", ""))
    other = skipped_for("abc", TextError("The voice cannot read 'abc'.", ""))
    assert skip_warnings([named]) == ['Skipped "abc": it contains nothing that the voice can speak.']
    assert skip_warnings([other]) == ["Skipped \"abc\": it cannot be spoken (The voice cannot read 'abc')."]


@pytest.mark.parametrize("atom", ["```\n", "~", "`", "😀\n", "你好。", "a你 ", "```\nx\n```\n", " ", "\n"])
def test_reading_takes_linear_time(atom: str) -> None:
    def work(size: int) -> None:
        with contextlib.suppress(TextError):
            readable_text((atom * size)[:size], 10**7)

    check_linear_time(work)
