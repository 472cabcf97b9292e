"""What a language model is to the chat: messages in, text out as it is made. Knows no sound and no session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

URL_ENV, MODEL_ENV, KEY_ENV = (
    "WARMTALK_LLM_URL",
    "WARMTALK_LLM_MODEL",
    "WARMTALK_LLM_KEY",
)  # of an OpenAI-compatible server

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, in the form of the OpenAI API."""

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


class Responder(Protocol):
    """Answers a conversation. An engine also has a classmethod `load(**options)`, which raises ConfigError."""

    def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer to the last message, a few characters at a time. Raises WarmTalkError at an item."""
        ...


def in_turn(messages: Sequence[Message]) -> list[Message]:
    """The system prompt, where it says something, then user and assistant in turn, the user first.

    Templates of many models (Mistral's, Gemma's) refuse any other order, which a bounded history, or an answer that was
    cut before its first word, gives: what follows one of its own role is joined with it.
    """
    turns: list[Message] = []
    for message in messages:
        begun = bool(turns) and turns[-1].role != "system"
        if not message.content.strip() or (message.role == "assistant" and not begun):
            continue
        if begun and turns[-1].role == message.role:
            turns[-1] = Message(message.role, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(message)
    return turns
