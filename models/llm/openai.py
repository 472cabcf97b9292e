"""Any OpenAI-compatible `POST /chat/completions`: OpenAI's own, vLLM, Ollama, or Ray Serve's LLM app. No Ray here.

The request is `{model, messages, stream: true, …}`; the answer is a stream of server-sent events, whose `data:` lines
are chunks with `choices[0].delta.content`, and then `[DONE]` (OpenAI API reference, "Create chat completion").
What reasoning models think, in `<think>` tags or in fields of its own, is passed over.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from models.errors import ConfigError, StageError
from models.llm.base import KEY_ENV, MODEL_ENV, URL_ENV, Message, in_turn
from models.llm.token_stream import without_thoughts
from models.openai_http import (
    Retry,
    Server,
    client_options,
    head_async,
    lost,
    refusal,
    sentence,
)

SERVER = Server(
    "The language model",
    key=f"Set {KEY_ENV}, or api_key_env of Chat.",
    asked="the conversation",
    instead="Shorten it, start afresh, or mend Chat's options.",
    check="Check its address and model.",
)
LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"  # OpenAI's newer models refuse the first, others the second
MAX_LINE_BYTES = 2**20
UNSAID = {  # why an answer ended that says nothing, and what to do; asking again would not help
    "length": ("used up its tokens before it said a word.", "Raise max_tokens of Chat's options: thoughts count, too."),
    "content_filter": ("was kept from answering by its server's filter.", "Ask for something else."),
}


@dataclass(slots=True)
class _End:
    """Why an answer ended, as its server says; empty where it has not said so."""

    reason: str = ""


class OpenAIResponder:
    """A `Responder`. Tries again where the server is overloaded or fails, but never after text has been given out."""

    def __init__(
        self, client: httpx.AsyncClient, body: dict[str, Any], tries: int, max_chars: int, thinks_first: bool
    ) -> None:
        self._client = client
        self._body = body
        self._tries = tries
        self._max_chars = max_chars
        self._thinks_first = thinks_first

    @classmethod
    def load(
        cls,
        base_url: str | None = None,
        model: str | None = None,
        api_key_env: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = 400,
        extra: dict[str, Any] | None = None,
        timeout_s: float = 60.0,
        tries: int = 3,
        max_chars: int = 8000,
        thinks_first: bool = False,
    ) -> OpenAIResponder:
        """Prepare requests to `base_url` + `/chat/completions`; nothing is sent before the first message.

        base_url, model: by default $WARMTALK_LLM_URL and $WARMTALK_LLM_MODEL. api_key_env: the environment variable
        that holds the key, by default WARMTALK_LLM_KEY, which may be unset: local servers want none. extra: further
        fields of the request. timeout_s: without a byte. max_chars: of one answer; the rest is cut. thinks_first: an
        answer begins inside a thought, whose <think> is part of the model's template. Raises ConfigError.
        """
        base_url, model = base_url or os.environ.get(URL_ENV, ""), model or os.environ.get(MODEL_ENV, "")
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"The language model's address {base_url!r} is not one.",
                f"Set base_url of Chat's options, or {URL_ENV}: it looks like http://127.0.0.1:8001/v1.",
            )
        if not model:
            raise ConfigError("No language model is named.", f"Set model of Chat's options, or {MODEL_ENV}.")
        if tries < 1 or timeout_s <= 0 or max_chars < 1:
            raise ConfigError("tries, timeout_s and max_chars must be above 0.", "Mend Chat's options.")
        given = KEY_ENV if os.environ.get(KEY_ENV, "").strip() else None  # a local server wants no key
        client = httpx.AsyncClient(**client_options(base_url, api_key_env or given, "language model", timeout_s))
        chosen = {"temperature": temperature, LIMIT: max_tokens}
        body = {"model": model, "stream": True, **{k: v for k, v in chosen.items() if v is not None}, **(extra or {})}
        return cls(client, body, tries, max_chars, thinks_first)

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer's tokens as they come, at most max_chars characters of them; its thoughts are not counted.

        Raises InputError for what the server refuses, BusyError where it stays overloaded, StageError where it fails,
        breaks off, says nothing or answers in another form.
        """
        asked = [message.to_dict() for message in in_turn(messages)]
        for attempt in range(self._tries):
            given, end = 0, _End()
            try:
                answer = without_thoughts(self._request(asked, end), self._thinks_first)
                async with aclosing(answer) as tokens:
                    async for token in tokens:
                        yield token[: self._max_chars - given]
                        given += len(token)
                        if given >= self._max_chars:
                            return
                if not given:
                    raise _nothing_said(end)
                return
            except Retry as retry:
                if given or attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                await asyncio.sleep(retry.pause_s(attempt))

    async def _request(self, messages: list[dict[str, str]], end: _End) -> AsyncGenerator[str, None]:
        async with self._answer(messages) as answer:
            if answer.headers.get("content-type", "").startswith("application/json"):  # a server that cannot stream
                token, end.reason = _text(await answer.aread(), "message")
                yield token
                return
            async with aclosing(_events(answer)) as events:
                async for data in events:
                    if data == b"[DONE]":
                        return
                    token, ended = _text(data, "delta")
                    end.reason = ended or end.reason
                    if token:
                        yield token
            if not end.reason:
                raise Retry(StageError("The language model's answer broke off.", "Look at its log."))

    @asynccontextmanager
    async def _answer(self, messages: list[dict[str, str]]) -> AsyncGenerator[httpx.Response, None]:
        """An answer of status 200 whose body is still to come. Raises Retry and WarmTalkError."""
        try:
            while True:
                body = {**self._body, "messages": messages}
                async with self._client.stream("POST", "chat/completions", json=body) as answer:
                    if answer.status_code == 200:
                        kind = answer.headers.get("content-type", "")
                        if not kind.startswith(("text/event-stream", "application/json")):
                            raise StageError(
                                f"The language model's server answered with {kind or 'no type'}.", CHECK_URL
                            )
                        yield answer
                        return
                    said = await head_async(answer)
                    if answer.status_code != 400 or LIMIT not in body or NEW_LIMIT.encode() not in said:
                        raise refusal(SERVER, answer, said)
                if LIMIT in self._body:  # else another answer has learned it meanwhile
                    self._body = {NEW_LIMIT if key == LIMIT else key: value for key, value in self._body.items()}
        except httpx.TransportError as error:
            raise lost(SERVER, error) from error


CHECK_URL = "Check the address: it usually ends with /v1."


async def _events(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events; comments that keep the connection alive, and event names, are passed over.

    Lines end with CR LF or LF alone: JSON may hold what Python's splitlines takes for an end, such as U+2028. Raises
    StageError.
    """
    waiting = b""
    async for part in answer.aiter_bytes():
        *lines, waiting = (waiting + part).split(b"\n")
        if len(waiting) > MAX_LINE_BYTES:
            raise StageError("The language model's answer is not in OpenAI's form.", CHECK_URL)
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()
    if waiting.startswith(b"data:"):
        yield waiting.removeprefix(b"data:").strip()


def _text(data: bytes, holder: str) -> tuple[str, str]:
    """The text of one chunk or answer, and why it ends with it, if so. Raises StageError, also for an error in it."""
    try:
        chunk = json.loads(data.decode("utf-8", "replace"))
        if error := chunk.get("error"):
            said = error.get("message", error) if isinstance(error, dict) else error
            raise StageError(f"The language model failed: {sentence(said)}", "Look at its log.")
        choices = chunk.get("choices") or []
        if not choices:
            return "", ""  # usage, at the end
        message = choices[0].get(holder) or {}
        content = message.get("content") or message.get("refusal") or ""
        if isinstance(content, list):  # of parts, as Mistral's reasoning models give them: thoughts have no `text`
            content = "".join(part.get("text") or "" for part in content)
        return str(content), str(choices[0].get("finish_reason") or "")
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise StageError("The language model's answer is not in OpenAI's form.", CHECK_URL) from error


def _nothing_said(end: _End) -> Exception:
    if end.reason in UNSAID:
        why, remedy = UNSAID[end.reason]
        return StageError(f"The language model {why}", remedy)
    return Retry(StageError("The language model's answer is empty.", "Look at its log."))
