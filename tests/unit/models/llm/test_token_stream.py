"""models.llm.token_stream: sentences, reasoning and characters do not depend on how the text is split into tokens."""

import asyncio
import random
import time

import pytest

from models.errors import IdleError
from models.llm.token_stream import (
    FIRST_CLAUSE_CHARS,
    SENTENCE_PAUSE_S,
    UNCERTAIN_PAUSES,
    end_when_silent,
    speakable_pieces,
    without_thoughts,
    without_unprintable,
)
from tests.support.linear_time import check_linear_time
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


async def stream(tokens):
    for token in tokens:
        yield token


async def cut(*tokens: str) -> list[str]:
    return [piece async for piece in speakable_pieces(stream(tokens))]


async def shown(*tokens: str) -> str:
    return "".join([token async for token in without_thoughts(stream(tokens))])


async def test_sentences_come_one_by_one():
    assert await cut("Hello there. How ", "are you? I am", " fine.") == ["Hello there.", "How are you?", "I am fine."]


async def test_a_sentence_is_yielded_as_soon_as_the_next_one_begins():
    given = []

    async def tokens():
        yield "It is done."
        given.append(list(heard))
        yield " Next"
        given.append(list(heard))

    heard: list[str] = []
    async for piece in speakable_pieces(tokens()):
        heard.append(piece)
    assert given == [[], ["It is done."]] and heard == ["It is done.", "Next"]


@pytest.mark.parametrize("text", ["Dr. Smith came at 3 p.m. on Friday. He left.", "It costs 3.14 dollars. Cheap!"])
async def test_abbreviations_and_decimals_do_not_end_a_sentence(text):
    whole = await cut(text)
    assert len(whole) == 2
    assert await cut(*text) == whole  # a character at a time


async def timed(*parts: str | float) -> list[tuple[float, str]]:
    """When each piece comes, in virtual time. A number is a pause before the next token."""

    async def tokens():
        for part in parts:
            if isinstance(part, str):
                yield part
            else:
                await asyncio.sleep(part)

    began_s = time.monotonic()
    return [(round(time.monotonic() - began_s, 3), piece) async for piece in speakable_pieces(tokens())]


async def test_a_sentence_is_complete_when_nothing_follows_its_full_stop_for_a_while():
    assert await timed("It is ", "done.", 10.0, "Next one", "!", 10.0) == [
        (SENTENCE_PAUSE_S, "It is done."),
        (10.0 + SENTENCE_PAUSE_S, "Next one!"),
    ]
    assert await timed('He said "Go."', 10.0, " Now") == [(SENTENCE_PAUSE_S, 'He said "Go."'), (10.0, "Now")]


async def test_white_space_after_a_full_stop_does_not_delay_it():
    assert await timed("It is done.", *(0.2, " ") * 20) == [(SENTENCE_PAUSE_S, "It is done.")]


@pytest.mark.parametrize(
    ("text", "rest"), [("I met Dr.", " Smith."), ("It costs 3.", "14 dollars."), ("The U.S.", " Army.")]
)
async def test_a_mark_that_may_not_end_a_sentence_needs_a_longer_pause(text, rest):
    long_s = UNCERTAIN_PAUSES * SENTENCE_PAUSE_S
    assert await timed(text, long_s - 0.1, rest) == [(long_s - 0.1, f"{text}{rest}")]
    assert await timed(text, 10.0) == [(long_s, text)]


async def test_text_without_a_full_stop_waits_however_long_the_pause():
    assert await timed("It is", 100.0, " done.") == [(100.0, "It is done.")]


async def test_an_error_of_the_tokens_comes_after_the_rest_of_the_text():
    async def failing():
        yield "It is done. And then"
        raise RuntimeError("lost")

    pieces = []
    with pytest.raises(RuntimeError, match="lost"):
        async for piece in speakable_pieces(failing()):
            pieces.append(piece)
    assert pieces == ["It is done.", "And then"]


async def test_a_silent_writer_ends_with_the_error():
    async def silent():
        await asyncio.sleep(15.0)
        for token in ("One", " "):
            yield token
            await asyncio.sleep(9.0)
        await asyncio.sleep(100.0)

    for from_start, tokens, lasted_s in ((True, [], 10.0), (False, ["One", " "], 15.0 + 9.0 + 10.0)):
        began_s, seen = time.monotonic(), []
        with pytest.raises(IdleError):
            async for token in end_when_silent(silent(), 10.0, IdleError("Silent."), from_start):
                seen.append(token)
        assert seen == tokens and time.monotonic() - began_s == pytest.approx(lasted_s)


async def test_a_block_of_code_is_one_piece():
    text = "Look:\n```python\na = 1.\n\nb = 2! Or 3?\n```\nThat is it. Bye."
    pieces = ["Look:", "```python\na = 1.\n\nb = 2! Or 3?\n```", "That is it.", "Bye."]
    assert await cut(text) == pieces and await cut(*text) == pieces
    assert await cut("```\na.") == ["```\na."]  # not closed
    assert await timed("```\na = 1.", 10.0, "\n```\n") == [(10.0, "```\na = 1.\n```")]


async def test_an_emoji_after_a_sentence_is_no_piece_and_a_line_of_emoji_is_one():
    for text in ("It is done. 😀 🎉\n😀 🎉\nBye!😀",):
        assert await cut(text) == await cut(*text) == ["It is done.", "😀 🎉", "Bye!😀"]
    assert await timed("It is done.", 10.0, " 😀", 10.0) == [(SENTENCE_PAUSE_S, "It is done.")]


async def test_a_line_break_ends_a_piece():
    assert await cut("Buy:\n- bread\n- milk\n\nThat is all.") == ["Buy:", "- bread", "- milk", "That is all."]


async def test_only_a_long_first_sentence_is_split_at_a_clause():
    first = "When the sun had set behind the far blue hills, the travellers at last found the inn, and slept."
    second = "In the morning they rose before the birds did, ate their bread, and went on."
    said = await cut(*(word + " " for word in f"{first} {second}".split()))
    assert said[0] == "When the sun had set behind the far blue hills," or len(said[0]) >= FIRST_CLAUSE_CHARS - 1
    assert said[-1] == second and " ".join(said) == f"{first} {second}"


async def test_no_text_is_lost_for_any_tokenisation():
    text = "One, two. Three… four? Well: five! " * 5
    rng = random.Random(1)
    for _ in range(50):
        places = sorted(rng.sample(range(len(text)), 12))
        tokens = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert "".join("".join(await cut(*tokens)).split()) == "".join(text.split())


async def test_text_without_punctuation_is_cut_at_the_limit():
    said = await cut("word " * 200)
    assert max(map(len, said)) <= 200 and sum(piece.count("word") for piece in said) == 200


@pytest.mark.parametrize(
    "tokens",
    [
        ("<think>Hmm. What now?</think>\n\nHello.",),
        ("<th", "ink>Hm", "m.</thi", "nk>", "\nHello."),
        tuple("<think>a < b</think>Hello."),
        ("Hello.", "<think>never closed"),
    ],
)
async def test_reasoning_between_think_tags_is_dropped(tokens):
    assert await shown(*tokens) == "Hello."


async def test_text_that_resembles_a_tag_stays():
    assert await shown("2 <", " 3 and <t", "able>") == "2 < 3 and <table>"


async def test_a_stream_may_begin_inside_reasoning():
    for tokens in (("Hm.</think>Hello.",), tuple("Hm.</think>\nHello."), ("Hm.", "</thi", "nk>", "Hello.")):
        assert "".join([t async for t in without_thoughts(stream(tokens), inside=True)]) == "Hello."


async def test_unmatched_tags_are_dropped():
    assert await shown("It is", " so.</thi", "nk> Yes. <think>a<think>b</think>Really.</") == "It is so. Yes. Really.</"


async def test_surrogate_pairs_are_joined_and_control_characters_dropped():
    text = "a😀b\x1b[2Jc\x00\nd\u202ee"
    halves = [text[0], "\ud83d", "\ude00", text[2:]]
    for tokens in ([text], halves, [*"a\ud83d\ude00b\x1b[2Jc\x00\nd\u202ee"]):
        assert "".join([t async for t in without_unprintable(stream(tokens))]) == "a😀b[2Jc\nde"
    assert "".join([t async for t in without_unprintable(stream(["a\ude00", "\ud83db\ud83d"]))]) == "ab"


def test_many_spaces_take_linear_time(monkeypatch):
    monkeypatch.undo()  # real time

    def work(size: int) -> None:
        tokens = ["Hello", *["    "] * (size // 5), "there. ", *["\t "] * (size // 5)]
        assert asyncio.run(cut(*tokens)) == ["Hello there."]

    check_linear_time(work)
