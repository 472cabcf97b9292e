"""Chat with any server that has OpenAI's `POST /chat/completions`: OpenAI, vLLM, Ollama, or Ray Serve's LLM app.

The request is `{model, messages, stream: true, …}`. The answer is a stream of server-sent events: each `data:` line is
a chunk with `choices[0].delta.content`, the last one is `[DONE]` (OpenAI API reference, "Create chat completion").
The reasoning of a model, in `<think>` tags or in separate fields, is not part of the answer.
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
from models.llm.base import KEY_ENV, MODEL_ENV, URL_ENV, Message, alternate_roles
from models.llm.token_stream import without_thoughts
from models.openai_http import (
    RetryableError,
    ServerTexts,
    as_sentence,
    client_options,
    connection_error,
    error_body_async,
    status_error,
)

SERVER = ServerTexts(
    "The language model",
    key=f"Set {KEY_ENV}, or api_key_env of Chat.",
    refused="the conversation",
    instead="Shorten it, start a new session, or correct the options of Chat.",
    check="Check its address and model.",
)
LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"  # newer OpenAI models accept only the second, others the first
MAX_LINE_BYTES = 2**20
CHECK_URL = "Check base_url: it usually ends with /v1."
# finish_reason of an empty answer → cause and remedy. A retry would give the same answer.
EMPTY_ANSWERS = {
    "length": ("used all its tokens before the first word.", "Raise max_tokens in Chat's options: reasoning counts."),
    "content_filter": ("was stopped by its server's content filter.", "Ask for something else."),
}


@dataclass(slots=True)
class _Finish:
    """The finish_reason of an answer; empty until the server sends it."""

    reason: str = ""


class OpenAIResponder:
    """A `Responder`. Retries if the server is overloaded or fails, but not after text has been yielded."""

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
        """Prepare requests to `base_url` + `/chat/completions`. Sends nothing before the first message.

        base_url, model: default $WARMTALK_LLM_URL and $WARMTALK_LLM_MODEL. api_key_env: the environment variable with
        the key, default WARMTALK_LLM_KEY, which may be unset for local servers. extra: further fields of the request.
        timeout_s: longest wait for a connection or for further bytes. max_chars: longest answer; the rest is dropped.
        thinks_first: answers begin inside a <think> block, because the model's chat template opens it.

        Raises ConfigError: an option is wrong or the key is missing.
        """
        base_url, model = base_url or os.environ.get(URL_ENV, ""), model or os.environ.get(MODEL_ENV, "")
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"The language model's base_url {base_url!r} is not a URL.",
                f"Set base_url in Chat's options, or {URL_ENV}, to a URL such as http://127.0.0.1:8001/v1.",
            )
        if not model:
            raise ConfigError("The language model's name is not set.", f"Set model in Chat's options, or {MODEL_ENV}.")
        if tries < 1 or timeout_s <= 0 or max_chars < 1:
            raise ConfigError("tries, timeout_s and max_chars must be above 0.", "Correct Chat's options.")
        default_env = KEY_ENV if os.environ.get(KEY_ENV, "").strip() else None  # local servers need no key
        client = httpx.AsyncClient(**client_options(base_url, api_key_env or default_env, "language model", timeout_s))
        chosen = {"temperature": temperature, LIMIT: max_tokens}
        body = {"model": model, "stream": True, **{k: v for k, v in chosen.items() if v is not None}, **(extra or {})}
        return cls(client, body, tries, max_chars, thinks_first)

    async def stream(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """Yield the answer's tokens as they arrive, at most max_chars characters, not counting reasoning.

        Raises InputError if the server refuses the request, BusyError if it stays overloaded, StageError if it fails,
        breaks off, gives an empty answer, or does not answer in OpenAI's format.
        """
        request = [message.to_dict() for message in alternate_roles(messages)]
        for attempt in range(self._tries):
            yielded, finish = 0, _Finish()
            try:
                answer = without_thoughts(self._request(request, finish), self._thinks_first)
                async with aclosing(answer) as tokens:
                    async for token in tokens:
                        yield token[: self._max_chars - yielded]
                        yielded += len(token)
                        if yielded >= self._max_chars:
                            return
                if not yielded:
                    raise _empty_answer(finish)
                return
            except RetryableError as retry:
                if yielded or attempt == self._tries - 1:
                    raise retry.error from retry.__cause__
                await asyncio.sleep(retry.backoff_s(attempt))

    async def _request(self, messages: list[dict[str, str]], finish: _Finish) -> AsyncGenerator[str, None]:
        async with self._answer(messages) as answer:
            if answer.headers.get("content-type", "").startswith("application/json"):  # a server that cannot stream
                token, finish.reason = _parse_chunk(await answer.aread(), "message")
                yield token
                return
            async with aclosing(_events(answer)) as events:
                async for data in events:
                    if data == b"[DONE]":
                        return
                    token, reason = _parse_chunk(data, "delta")
                    finish.reason = reason or finish.reason
                    if token:
                        yield token
            if not finish.reason:
                raise RetryableError(StageError("The language model's answer is incomplete.", "Read its log."))

    @asynccontextmanager
    async def _answer(self, messages: list[dict[str, str]]) -> AsyncGenerator[httpx.Response, None]:
        """An answer with status 200 whose body is not read yet. Raises RetryableError and WarmTalkError."""
        try:
            while True:
                body = {**self._body, "messages": messages}
                async with self._client.stream("POST", "chat/completions", json=body) as answer:
                    if answer.status_code == 200:
                        kind = answer.headers.get("content-type", "")
                        if not kind.startswith(("text/event-stream", "application/json")):
                            raise StageError(
                                f"The language model's server answered with {kind or 'no content type'}.", CHECK_URL
                            )
                        yield answer
                        return
                    body_start = await error_body_async(answer)
                    if answer.status_code != 400 or LIMIT not in body or NEW_LIMIT.encode() not in body_start:
                        raise status_error(SERVER, answer, body_start)
                if LIMIT in self._body:  # a concurrent request may have replaced it already
                    self._body = {NEW_LIMIT if key == LIMIT else key: value for key, value in self._body.items()}
        except httpx.TransportError as error:
            raise connection_error(SERVER, error) from error


async def _events(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the data of server-sent events. Comments (keep-alive) and event names are skipped.

    Splits at LF or CR LF only, not with `splitlines`, because JSON may contain U+2028. Raises StageError for a line
    over MAX_LINE_BYTES.
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


def _parse_chunk(data: bytes, key: str) -> tuple[str, str]:
    """The text and the finish_reason of one chunk (key `delta`) or whole answer (key `message`).

    Raises StageError: wrong format, or the chunk contains an error.
    """
    try:
        chunk = json.loads(data.decode("utf-8", "replace"))
        if error := chunk.get("error"):
            message = error.get("message", error) if isinstance(error, dict) else error
            raise StageError(f"The language model failed: {as_sentence(message)}", "Read its log.")
        choices = chunk.get("choices") or []
        if not choices:
            return "", ""  # the usage chunk at the end
        message = choices[0].get(key) or {}
        content = message.get("content") or message.get("refusal") or ""
        if isinstance(content, list):  # a list of parts (Mistral's reasoning models): reasoning parts have no `text`
            content = "".join(part.get("text") or "" for part in content)
        return str(content), str(choices[0].get("finish_reason") or "")
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise StageError("The language model's answer is not in OpenAI's form.", CHECK_URL) from error


def _empty_answer(finish: _Finish) -> Exception:
    if finish.reason in EMPTY_ANSWERS:
        cause, remedy = EMPTY_ANSWERS[finish.reason]
        return StageError(f"The language model {cause}", remedy)
    return RetryableError(StageError("The language model's answer is empty.", "Read its log."))
