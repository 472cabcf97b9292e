"""models.speech.text: normalising, checking and splitting text."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.speech.text import MAX_SENTENCE_CHARS, normalise, printable, sentence_may_continue, split_sentences
from tests.support.linear_time import check_linear_time

WORDS = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCEé0123456789'-", min_size=1, max_size=30), min_size=1, max_size=60
)
MARKED_TEXT = st.lists(
    st.tuples(
        st.text("abcDEFé019", min_size=1, max_size=12), st.sampled_from(["", ".", ",", "?", "!", "…", ";", '."', " —"])
    ),
    max_size=80,
).map(lambda pairs: " ".join(word + mark for word, mark in pairs))


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("  two \t\n spaces ", "two spaces"),
        ("cafe\u0301", "café"),
        ("null\x00 and z\u200bero width", "null and zero width"),
        ("“quoted” ‘ok’ it’s", "\"quoted\" 'ok' it's"),
        ("wait....... what?!?!! no!!!", "wait… what? no!"),
        ("one -- two", "one — two"),
        ("ＦＵＬＬ　ｗｉｄｔｈ１２。", "FULL width12."),
        ("well 😀 done 👍🏽!", "well done!"),
        ("1️⃣ step", "1 step"),
        ("family 👨‍👩‍👧 time", "family time"),
        ("5 °C or 41℉ © 2024", "5 °C or 41°F © 2024"),
        ("<b>bold</b> but 3 < 4 > 2", "bold but 3 < 4 > 2"),
        ("**bold** and _soft_, 5 * 3 * 2, snake_case_name", "bold and soft, 5 * 3 * 2, snake_case_name"),
        ("# Title\nBody [link](https://a.b/c)", "Title. Body link"),
        ("First part\n\nSecond part", "First part. Second part"),
        ("Buy:\n- milk\n- eggs", "Buy: milk. eggs"),
        ("a wrapped\nline", "a wrapped line"),
        ("see https://www.example.com/a", "see example dot com/a"),
        ("mail me@site.org now.", "mail me@site dot org now."),
        ("open 10am–5pm", "open 10am to 5pm"),
        ("$5.50, 50%, 9:30am, Dr. No, x² + ½", "$5.50, 50%, 9:30am, Dr. No, x² + ½"),
        ("№ 5, ~20 kg, ≈ 3, 24/7, 20ºC", "number 5, about 20 kg, about 3, 24 7, 20°C"),
        ("5−2 is 3, −5 is cold", "5 minus 2 is 3, -5 is cold"),
        ("well - yes, well-known, 3 - 4", "well — yes, well-known, 3 - 4"),
        ("π and Δ, α-helix, 5 μm", "pi and delta, alpha-helix, 5 micrometers"),
        ("say [hibari](/hibˈɑɹi/)", "say [hibari](/hibˈɑɹi/)"),
    ],
)
def test_normalise(written: str, plain: str) -> None:
    assert normalise(written) == plain


MARKUP = st.text("*_#[]()/-.!?:;,<>~' \n\tab1…htps:w.com•", max_size=40)


@given(st.text(max_size=200) | MARKUP)
def test_normalised_text_is_one_clean_line_and_normalise_is_idempotent(text: str) -> None:
    plain = normalise(text)
    assert plain == " ".join(plain.split())
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Co") for c in plain)
    assert normalise(plain) == plain


@given(WORDS)
def test_normalise_keeps_every_plain_word(words: list[str]) -> None:
    plain = [word.strip("-'") for word in words if word.strip("-'") and "--" not in word]
    plain = [word for word in plain if not re.search(r"[0-9AaPp][Mm]-\d", word)]  # a range: "9am-5" is spoken with "to"
    spoken = normalise(" ".join(plain))
    assert spoken.split() == plain


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Jones met Dr. Smith. They spoke.", ["Mr. Jones met Dr. Smith.", "They spoke."]),
        ("Fruit, e.g. Apples, is good. So is i.e. Tea.", ["Fruit, e.g. Apples, is good.", "So is i.e. Tea."]),
        ("It costs 3.50 today. Version 1.2.3 works.", ["It costs 3.50 today.", "Version 1.2.3 works."]),
        ("J. K. Rowling wrote it. The U.S. Army read it.", ["J. K. Rowling wrote it.", "The U.S. Army read it."]),
        ("At 3 p.m. Then at 4 p.m. we left.", ["At 3 p.m.", "Then at 4 p.m. we left."]),
        ("Wait… what? Well… Maybe.", ["Wait… what?", "Well…", "Maybe."]),
        ('"Stop!" he said. "Go." She went.', ['"Stop!" he said.', '"Go."', "She went."]),
        ("He left (at last). She stayed.", ["He left (at last).", "She stayed."]),
        ("hello there. how are you? fine", ["hello there.", "how are you?", "fine"]),
        ("See fig. 3 and no. 5. I said no. Why?", ["See fig. 3 and no. 5.", "I said no.", "Why?"]),
        ("Acme Inc. Is that all, etc. Yes.", ["Acme Inc.", "Is that all, etc.", "Yes."]),
        ("今日は。元気？はい！", ["今日は。", "元気？", "はい！"]),
        ("", []),
        ("   ", []),
    ],
)
def test_split_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_long_sentence_is_cut_at_a_clause_then_a_space_then_in_a_word() -> None:
    assert split_sentences("when the rain stopped, we went out to play", 30) == [
        "when the rain stopped,",
        "we went out to play",
    ]
    assert split_sentences("we went out to play in the rain", 20) == ["we went out to play", "in the rain"]
    assert split_sentences("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert split_sentences("so, " + "word " * 6, 20)[0] == "so, word word word", "a piece of three letters is too short"


@given(MARKED_TEXT, st.integers(1, 80))
def test_no_character_is_lost_and_no_sentence_exceeds_the_limit(text: str, max_chars: int) -> None:
    pieces = split_sentences(text, max_chars)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= max_chars for piece in pieces)
    assert all(piece == piece.strip() for piece in pieces)


@given(st.text(max_size=300))
def test_any_text_at_all_is_split_without_loss(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert max(map(len, pieces), default=0) <= MAX_SENTENCE_CHARS


@given(MARKED_TEXT.filter(lambda text: "." in text))
def test_words_are_not_cut_if_the_limit_allows(text: str) -> None:
    assert [word for piece in split_sentences(text, 80) for word in piece.split()] == text.split()


NASTY = [
    "a.",
    "1.",
    "😀",
    "\n",
    " ",
    "[",
    "[a](",
    " *a",
    "_",
    "~~a ",
    "# ",
    "!",
    "http://",
    "\u0301\u0323",
    ". ",
    "a. ",
    "Dr. ",
]


@pytest.mark.parametrize("atom", NASTY)
def test_normalising_and_splitting_take_linear_time(atom: str) -> None:
    """A quadratic expression took 5 s for 16 000 characters and 20 minutes for a request, and blocked others."""

    def work(size: int) -> None:
        normalise((atom * size)[:size])
        split_sentences((atom * size)[:size] + "a")

    check_linear_time(work)


@pytest.mark.parametrize("shape", ["# {spaces}.", "{dots}a", "a{spaces}b", "x.{brackets}"])
def test_long_runs_of_one_character_take_linear_time(shape: str) -> None:
    def work(size: int) -> None:
        text = shape.format(spaces=" " * size, dots="." * size, brackets="(" * size)
        normalise(text)
        split_sentences(text)

    check_linear_time(work)


def test_at_most_thirty_combining_marks_are_kept() -> None:
    assert normalise("e\u0301" + "\u0323" * 100 + "!") == normalise("e\u0301" + "\u0323" * 29 + "!")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("a *b* and **c**, ***d*** and __e__", "a b and c, d and e"),
        ("*a **b** c*", "a b c"),
        ("2 * 3 * 4 and *open", "2 * 3 * 4 and *open"),
        ("*one\ntwo*", "one two"),
        ("snake_case_name and _this_", "snake_case_name and this"),
        ("~~gone~~ but ~5", "gone but about 5"),
        ("**a*", "*a"),
    ],
)
def test_closed_emphasis_marks_are_removed(written: str, spoken: str) -> None:
    assert normalise(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("see docs.ray.io now", "see docs dot ray dot io now"),
        ("www.a-b.co.uk/x", "a-b dot co dot uk/x"),
        ("main.py, v1.2, e.g. x.y", "main.py, v1.2, e.g. x.y"),
        ("a..com", "a… com"),
        ("x.comé", "x.comé"),
    ],
)
def test_only_dots_in_host_names_become_words(written: str, spoken: str) -> None:
    assert normalise(written) == spoken


@pytest.mark.parametrize("text", ["Dr.", "We met Mr.", "It costs 3.", "J.", "the U.S.", "e.g.", "in Jan.", "at 3 p.m."])
def test_some_full_stops_may_not_end_a_sentence(text: str) -> None:
    assert sentence_may_continue(text)


@pytest.mark.parametrize(
    "text", ["Let us go.", "It is I.", "Really?", "Stop!", "Wait...", 'He said "Go."', "(Yes.)", "好。"]
)
def test_other_marks_end_it(text: str) -> None:
    assert not sentence_may_continue(text)


def test_printable_drops_control_characters_and_keeps_unknown_ones():
    assert printable("a\x00\x1b[2J\ud800\u202e\uffff\ufdd0\U0010fffe\tb\nc\r") == "a[2J\tb\nc"
    assert printable("🫨 goose 🪿, 👩‍👩‍👧, שלום, é") == "🫨 goose 🪿, 👩‍👩‍👧, שלום, é"
