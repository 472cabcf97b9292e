"""The protocol of chat engines: messages in, a stream of text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

# Environment variables with the URL, model and API key of an OpenAI-compatible server.
URL_ENV, MODEL_ENV, KEY_ENV = "WARMTALK_LLM_URL", "WARMTALK_LLM_MODEL", "WARMTALK_LLM_KEY"

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, in the form of the OpenAI API."""

    role: Role
    content: str

    def to_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


class Responder(Protocol):
    """Answers a conversation. The class method `load(**options)` creates an engine; it raises ConfigError."""

    def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer to the last message, a few characters at a time. Raises WarmTalkError while iterating."""
        ...


def alternate_roles(messages: Sequence[Message]) -> list[Message]:
    """The system prompt if it is not empty, then user and assistant alternating, beginning with the user.

    The chat templates of many models (Mistral's, Gemma's) reject any other order. A limited history, or an answer that
    was interrupted before its first word, can give such an order. Consecutive messages of one role are joined.
    """
    turns: list[Message] = []
    for message in messages:
        started = bool(turns) and turns[-1].role != "system"
        if not message.content.strip() or (message.role == "assistant" and not started):
            continue
        if started and turns[-1].role == message.role:
            turns[-1] = Message(message.role, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(message)
    return turns
