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
