"""The built-in chat engine: a few rules, no model and no network. It says that it is not a language model.

It makes a first conversation possible before a language model is configured.
"""

from __future__ import annotations

import ast
import asyncio
import operator
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from models.llm.base import Message

TOKENS_PER_S = 40.0  # the speed of a small language model, so that the pipeline works as with a real one

DISCLAIMER = (
    "I am a small built-in responder with a few rules, not a language model. "
    "Connect one, and I will speak its answers with this face and voice."
)
HELP = (
    "To connect a language model, set an OpenAI-compatible server under Chat in the config file and restart me. "
    "Ollama, vLLM and Ray Serve's own language model app all work."
)
JOKES = (
    "Why did the video go to therapy? It had too many unresolved frames.",
    "I would tell you a joke about latency, but you might get it late.",
    "My lips are sealed. Well, at every p, b and m they are.",
)
PIPELINE = (
    "Your words become speech, the speech becomes features, and a small network draws my mouth from them. "
    "Then the mouth is pasted into my picture, twenty-five times a second."
)
_NUMBER = r"(?:\d+(?:\.\d+)?)"
_SUM = rf"{_NUMBER}(?:\s*(?:\+|(?<=\s)-(?=\s)|\*|/|x|×|÷|plus|minus|times|divided by)\s*{_NUMBER}){{1,20}}"
_WORDS = {"x": "*", "×": "*", "÷": "/", "plus": "+", "minus": "-", "times": "*", "divided by": "/"}
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class OfflineResponder:
    """A `Responder` with rules: the first rule that matches gives the answer."""

    def __init__(self, tokens_per_s: float) -> None:
        self._pause_s = 1 / tokens_per_s

    @classmethod
    def load(cls, tokens_per_s: float = TOKENS_PER_S) -> OfflineResponder:
        return cls(tokens_per_s)

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer word by word."""
        for word in re.findall(r"\S+\s*", reply(messages)):
            yield word
            await asyncio.sleep(self._pause_s)


def reply(messages: Sequence[Message]) -> str:
    """The answer to the user's last message, from the first rule whose pattern occurs in it."""
    said = [message.content for message in messages if message.role == "user"]
    text = " ".join(said[-1].split()) if said else ""
    for pattern, answer in RULES:
        if match := re.search(pattern, text, re.IGNORECASE):
            return answer(match, said)
    return _echo(text)


Rule = tuple[str, Callable[[re.Match[str], list[str]], str]]


def _repeat(match: re.Match[str], said: list[str]) -> str:
    return match.group(1).strip().strip("\"'“”") or "Say what?"


def _greet(match: re.Match[str], said: list[str]) -> str:
    again = "Hello again!" if len(said) > 1 else "Hello, nice to meet you!"
    return f"{again} {DISCLAIMER} Ask me how I work, or have me say something."


def _name(match: re.Match[str], said: list[str]) -> str:
    return f"Nice to meet you, {match.group(1) or match.group(2)}. What shall we talk about?"


def _before(match: re.Match[str], said: list[str]) -> str:
    return f"You said: {_short(said[-2])}" if len(said) > 1 else "That was the first thing you said to me."


def _joke(match: re.Match[str], said: list[str]) -> str:
    return JOKES[(len(said) - 1) % len(JOKES)]


def _clock(match: re.Match[str], said: list[str]) -> str:
    return time.strftime("By my server's clock it is %H:%M on %A, %B %d.").replace(" 0", " ")


def _calculate(match: re.Match[str], said: list[str]) -> str:
    expression = match.group(1).lower()
    for word, sign in _WORDS.items():
        expression = expression.replace(word, sign)
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (ZeroDivisionError, OverflowError, SyntaxError):
        return "Sums are one of my few rules, but this one has no result."
    return f"That makes {value:,.4f}".rstrip("0").rstrip(".") + ". Sums are one of my few rules."


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    assert isinstance(node, ast.Constant), node
    return float(node.value)  # type: ignore[arg-type]


def _echo(text: str) -> str:
    if not any(c.isalnum() for c in text):
        return f"I found no words in your message. {DISCLAIMER}"
    return f"You said: {_short(text)} I have no rule for that. {DISCLAIMER}"


def _short(text: str, limit: int = 160) -> str:
    """The text as a sentence of at most about `limit` characters."""
    text = " ".join(text.split())
    if len(text) > limit:
        text = text[:limit].rsplit(" ", 1)[0] + " …"
    return text if text[-1:] in ".!?…" else text + "."


def _says(text: str) -> Callable[[re.Match[str], list[str]], str]:
    return lambda match, said: text


RULES: tuple[Rule, ...] = (
    (r"^(?:please )?(?:say|repeat(?: after me)?|read)\b[:,]?\s+(.+)$", _repeat),
    (rf"(?:^|\bis |\bcalculate |\bcompute )({_SUM})\s*[=?.!]*$", _calculate),
    (r"\b(?:connect|configure|set ?up|install|give you)\b.*\b(?:model|llm|mind|brain|gpt|ollama)\b", _says(HELP)),
    (
        r"\b(?:are you|is this) (?:an? )?(?:ai|real|human|robot|bot|chatgpt|llm|language model|person)\b",
        _says(DISCLAIMER),
    ),
    (r"\bwho are you\b|\bwhat are you\b|\byour name\b", _says(f"I am the WarmTalk presenter. {DISCLAIMER}")),
    (r"\bhow (?:do|does) (?:you|it|this) work\b|\bhow (?:are|were) you made\b", _says(PIPELINE)),
    (r"\bmy name is (\w+)|\bcall me (\w+)", _name),
    (r"\bwhat did i (?:just )?(?:say|ask)\b", _before),
    (r"\bjoke\b|\bmake me laugh\b", _joke),
    (r"\bwhat(?:'s| is)? the (?:time|date)\b|\bwhat (?:time|day) is it\b", _clock),
    (r"\bweather\b|\bnews\b", _says(f"I do not know: I work without the internet. {DISCLAIMER}")),
    (r"\bhelp\b|\bwhat can you do\b", _says(f"I can say what you type, do sums, tell the time and a joke. {HELP}")),
    (r"\bhow are you\b", _says("Fine, thank you: all my models are loaded and ready. How are you?")),
    (r"\bthank(?:s| you)\b", _says("You are welcome.")),
    (r"\b(?:bye|goodbye|see you|good night)\b", _says("Goodbye! It was nice talking with you.")),
    (r"^(?:hi|hello|hey|good (?:morning|afternoon|evening))\b", _greet),
)
