"""Any OpenAI-compatible `POST /chat/completions`: OpenAI's own, vLLM, Ollama, or Ray Serve's LLM app. No Ray here.

The request is `{model, messages, stream: true, …}`; the answer is a stream of server-sent events, whose `data:` lines
are chunks with `choices[0].delta.content`, and then `[DONE]` (OpenAI API reference, "Create chat completion").
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from models.errors import ConfigError, StageError
from models.llm.base import KEY_ENV, MODEL_ENV, URL_ENV, Message
from models.remote import (
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
    instead="Shorten it, or start afresh.",
    check="Check its address and model.",
)


class OpenAIResponder:
    """A `Responder`. Tries again where the server is overloaded or fails, but never after text has been given out."""

    def __init__(self, client: httpx.AsyncClient, body: dict[str, Any], tries: int, max_chars: int) -> None:
        self._client = client
        self._body = body
        self._tries = tries
        self._max_chars = max_chars

    @classmethod
    def load(
        cls,
        base_url: str | None = None,
        model: str | None = None,
        api_key_env: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = 400,
        extra: dict[str, Any] | None = None,
        timeout_s: float = 30.0,
        tries: int = 3,
        max_chars: int = 8000,
    ) -> OpenAIResponder:
        """Prepare requests to `base_url` + `/chat/completions`; nothing is sent before the first message.

        base_url, model: by default $WARMTALK_LLM_URL and $WARMTALK_LLM_MODEL. api_key_env: the environment variable
        that holds the key, by default WARMTALK_LLM_KEY, which may be unset: local servers want none. extra: further
        fields of the request. timeout_s: without a byte. max_chars: of one answer; the rest is cut. Raises ConfigError.
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
        chosen = {"temperature": temperature, "max_tokens": max_tokens}
        body = {"model": model, "stream": True, **{k: v for k, v in chosen.items() if v is not None}, **(extra or {})}
        return cls(client, body, tries, max_chars)

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer's tokens as they come, at most max_chars characters of them.

        Raises InputError for what the server refuses, BusyError where it stays overloaded, StageError where it fails,
        breaks off, says nothing or answers in another form.
        """
        body = {**self._body, "messages": [message.to_dict() for message in messages]}
        for attempt in range(self._tries):
            given = 0
            try:
                async with aclosing(self._request(body)) as tokens:
                    async for token in tokens:
                        yield token[: self._max_chars - given]
                        given += len(token)
                        if given >= self._max_chars:
                            return
                if not given:
                    raise Retry(StageError("The language model's answer is empty.", "Look at its log."))
                return
            except Retry as retry:
                if given or attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                await asyncio.sleep(retry.pause_s(attempt))

    async def _request(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        async with self._answer(body) as answer:
            if answer.headers.get("content-type", "").startswith("application/json"):  # a server that cannot stream
                yield _whole(await answer.aread())
                return
            finished = False
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue  # comments that keep the connection alive, and event names
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                token, ended = _token(data)
                finished |= ended
                if token:
                    yield token
            if not finished:
                raise Retry(StageError("The language model's answer broke off.", "Look at its log."))

    @asynccontextmanager
    async def _answer(self, body: dict[str, Any]) -> AsyncGenerator[httpx.Response, None]:
        """An answer of status 200 whose body is still to come. Raises Retry and WarmTalkError."""
        try:
            async with self._client.stream("POST", "chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise refusal(SERVER, answer, await head_async(answer))
                kind = answer.headers.get("content-type", "")
                if not kind.startswith(("text/event-stream", "application/json")):
                    raise StageError(f"The language model's server answered with {kind or 'no type'}.", CHECK_URL)
                yield answer
        except httpx.TransportError as error:
            raise lost(SERVER, error) from error


CHECK_URL = "Check the address: it usually ends with /v1."


def _token(data: str) -> tuple[str, bool]:
    """The text of one chunk, and whether it is the last with text. Raises StageError for an error in the stream."""
    try:
        chunk = json.loads(data)
        if error := chunk.get("error"):
            said = error.get("message", error) if isinstance(error, dict) else error
            raise StageError(f"The language model failed: {sentence(said)}", "Look at its log.")
        choices = chunk.get("choices") or []
        if not choices:
            return "", False  # usage, at the end
        content = (choices[0].get("delta") or {}).get("content") or ""
        return str(content), choices[0].get("finish_reason") is not None
    except (ValueError, AttributeError, TypeError) as error:
        raise StageError("The language model's answer is not in OpenAI's form.", CHECK_URL) from error


def _whole(data: bytes) -> str:
    try:
        return str(json.loads(data)["choices"][0]["message"]["content"] or "")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise StageError("The language model's answer is not in OpenAI's form.", CHECK_URL) from error
