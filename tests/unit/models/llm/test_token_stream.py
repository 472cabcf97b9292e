"""A stream of tokens becomes pieces to speak: at once, whole, and the same however it is cut into tokens."""

import random
import time

import pytest

from models.llm.token_stream import FIRST_CLAUSE_CHARS, speakable_pieces, without_thoughts, without_unprintable


async def stream(tokens):
    for token in tokens:
        yield token


async def cut(*tokens: str) -> list[str]:
    return [piece async for piece in speakable_pieces(stream(tokens))]


async def shown(*tokens: str) -> str:
    return "".join([token async for token in without_thoughts(stream(tokens))])


async def test_sentences_come_one_by_one():
    assert await cut("Hello there. How ", "are you? I am", " fine.") == ["Hello there.", "How are you?", "I am fine."]


async def test_a_sentence_is_given_out_as_soon_as_the_next_one_begins():
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
async def test_what_only_looks_like_an_end_does_not_cut(text):
    whole = await cut(text)
    assert len(whole) == 2
    assert await cut(*text) == whole  # a character at a time


async def test_lines_are_pieces_since_lists_have_no_full_stops():
    assert await cut("Buy:\n- bread\n- milk\n\nThat is all.") == ["Buy:", "- bread", "- milk", "That is all."]


async def test_of_a_long_first_sentence_the_first_clause_comes_early_and_later_ones_stay_whole():
    first = "When the sun had set behind the far blue hills, the travellers at last found the inn, and slept."
    second = "In the morning they rose before the birds did, ate their bread, and went on."
    said = await cut(*(word + " " for word in f"{first} {second}".split()))
    assert said[0] == "When the sun had set behind the far blue hills," or len(said[0]) >= FIRST_CLAUSE_CHARS - 1
    assert said[-1] == second and " ".join(said) == f"{first} {second}"


async def test_nothing_is_lost_at_any_cut_into_tokens():
    text = "One, two. Three… four? Well: five! " * 5
    rng = random.Random(1)
    for _ in range(50):
        places = sorted(rng.sample(range(len(text)), 12))
        tokens = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert "".join("".join(await cut(*tokens)).split()) == "".join(text.split())


async def test_a_text_without_any_end_is_cut_at_the_cap():
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
async def test_a_reasoning_models_thoughts_are_not_spoken(tokens):
    assert await shown(*tokens) == "Hello."


async def test_a_sign_that_is_no_tag_stays():
    assert await shown("2 <", " 3 and <t", "able>") == "2 < 3 and <table>"


async def test_of_a_thought_that_is_open_from_the_first_only_its_end_is_needed():
    for tokens in (("Hm.</think>Hello.",), tuple("Hm.</think>\nHello."), ("Hm.", "</thi", "nk>", "Hello.")):
        assert "".join([t async for t in without_thoughts(stream(tokens), inside=True)]) == "Hello."


async def test_a_tag_without_a_partner_is_left_out():
    assert await shown("It is", " so.</thi", "nk> Yes. <think>a<think>b</think>Really.</") == "It is so. Yes. Really.</"


async def test_halves_of_a_character_are_joined_and_what_no_screen_shows_goes():
    text = "a😀b\x1b[2Jc\x00\nd\u202ee"
    halves = [text[0], "\ud83d", "\ude00", text[2:]]
    for tokens in ([text], halves, [*"a\ud83d\ude00b\x1b[2Jc\x00\nd\u202ee"]):
        assert "".join([t async for t in without_unprintable(stream(tokens))]) == "a😀b[2Jc\nde"
    assert "".join([t async for t in without_unprintable(stream(["a\ude00", "\ud83db\ud83d"]))]) == "ab"


async def test_blanks_without_end_are_not_looked_at_again_and_again():
    begin_s = time.thread_time()
    assert [
        piece async for piece in speakable_pieces(stream(["Hello", *["    "] * 4000, "there. ", *["\t "] * 4000]))
    ] == ["Hello there."]
    assert time.thread_time() - begin_s < 1.0  # with the square of their number: 10 s
