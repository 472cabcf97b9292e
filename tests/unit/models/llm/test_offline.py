"""models.llm.offline: the rules, and that it says what it is."""

import pytest

from models.llm.base import Message
from models.llm.offline import DISCLAIMER, PIPELINE, OfflineResponder, reply


def ask(*messages: str) -> str:
    return reply([Message("user", text) for text in messages])


@pytest.mark.parametrize("text", ["Hello!", "Who are you?", "Are you a real person?", "Explain black holes.", "👋"])
def test_it_says_that_it_is_not_a_language_model(text):
    assert DISCLAIMER in ask(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Say: good morning, everyone", "good morning, everyone"),
        ("please repeat after me: one two", "one two"),
        ("what is 3 * 4?", "That makes 12. Sums are one of my few rules."),
        ("12 plus 30", "That makes 42. Sums are one of my few rules."),
        ("10 / 4 =", "That makes 2.5. Sums are one of my few rules."),
        ("how do you work?", PIPELINE),
        ("My name is Ana.", "Nice to meet you, Ana. What shall we talk about?"),
        ("Thanks!", "You are welcome."),
    ],
)
def test_rules(text, answer):
    assert ask(text) == answer


@pytest.mark.parametrize("text", ["7 / 0", "1 / 0 + 2"])
def test_division_by_zero_has_no_result(text):
    assert "no result" in ask(text)


@pytest.mark.parametrize("text", ["2024-01-02", "call 555-1234", "my flat is 3/4 of the way up"])
def test_dates_and_phone_numbers_are_not_sums(text):
    assert "makes" not in ask(text)


def test_it_repeats_the_previous_message_and_varies_its_jokes():
    assert ask("I like tea.", "What did I say?") == "You said: I like tea."
    assert ask("a joke") != ask("a joke", "another joke")


def test_a_long_message_is_shortened_in_the_answer():
    assert len(ask("word " * 1000)) < 160 + len(DISCLAIMER) + 60


async def test_it_comes_in_tokens_that_make_the_whole():
    messages = [Message("system", "Be nice."), Message("user", "Hello!")]
    tokens = [token async for token in OfflineResponder.load(tokens_per_s=1e6).stream(messages)]
    assert len(tokens) > 10 and "".join(tokens) == reply(messages)
