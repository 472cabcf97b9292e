"""models.llm.openai with a local server that answers, is slow, refuses, sends garbage or breaks off."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from models import openai_http
from models.errors import BusyError, ConfigError, InputError, StageError
from models.llm.base import KEY_ENV, MODEL_ENV, URL_ENV, Message
from models.llm.openai import OpenAIResponder
from tests.support.llm_server import (
    Answer,
    Handler,
    LLMServer,
    broken_off,
    chunk,
    llm_server,
    plain,
    refused,
    streamed,
)

KEY = "sk-very-secret"
ASKED = [Message("system", "Be brief."), Message("user", "Hi")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.openai_http.BACKOFF_S", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", URL_ENV, MODEL_ENV, KEY_ENV):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with llm_server() as running:
        yield running


async def ask(server: LLMServer, *answers: Answer, **options: Any) -> list[str]:
    server.answers[:] = answers
    responder = OpenAIResponder.load(base_url=server.url, **{"model": "tiny", **options})
    return [token async for token in responder.stream(ASKED)]


async def test_tokens_are_yielded_as_they_arrive(server: LLMServer) -> None:
    second = threading.Event()
    server.answers[:] = [streamed("Hel", second, "lo")]
    received: list[tuple[str, bool]] = []
    async for token in OpenAIResponder.load(server.url, "tiny").stream(ASKED):
        received.append((token, second.is_set()))
        second.set()
    assert received == [("Hel", False), ("lo", True)]


async def test_the_request(server: LLMServer) -> None:
    await ask(server, streamed("Hi."), temperature=0.2, max_tokens=50, extra={"top_p": 0.9})
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and "authorization" not in {name.lower() for name in headers}
    assert body == {
        "model": "tiny",
        "stream": True,
        "temperature": 0.2,
        "max_tokens": 50,
        "top_p": 0.9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }


async def test_address_model_and_key_come_from_the_environment(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers[:] = [streamed("Hi.")]
    monkeypatch.setenv(URL_ENV, server.url)
    monkeypatch.setenv(MODEL_ENV, "from-env")
    monkeypatch.setenv(KEY_ENV, KEY)
    assert [token async for token in OpenAIResponder.load().stream(ASKED)] == ["Hi."]
    _, headers, body = server.requests[0]
    assert (headers["Authorization"], body["model"]) == (f"Bearer {KEY}", "from-env")


async def test_an_answer_without_streaming_is_accepted(server: LLMServer) -> None:
    def whole(http: Handler) -> None:
        http.begin(kind="application/json")
        http.wfile.write(json.dumps({"choices": [{"message": {"content": "All at once."}}]}).encode())

    assert await ask(server, whole) == ["All at once."]


async def test_an_answer_is_cut_at_max_chars(server: LLMServer) -> None:
    tokens = await ask(server, streamed(*["12345"] * 100), max_chars=12)
    assert "".join(tokens) == "123451234512"


async def test_reasoning_is_dropped_and_does_not_count(server: LLMServer) -> None:
    thought = ["<think>", *["Let me see. "] * 50, "</think>"]
    assert "".join(await ask(server, streamed(*thought, "\n\nHello", " there."), max_chars=20)) == "Hello there."
    aside = plain(chunk(None, reasoning_content="Hm."), chunk("Hello."), chunk(None, "stop"))
    assert await ask(server, aside) == ["Hello."]


async def test_reasoning_opened_by_the_chat_template_is_dropped(server: LLMServer) -> None:
    """As with Qwen3's thinking models on a server that does not separate reasoning from answers."""
    answer = streamed("Let me see.", "</th", "ink>", "\n\nHello.")
    assert "".join(await ask(server, answer, thinks_first=True)) == "Hello."
    assert (
        "".join(await ask(server, answer)) == "Let me see.\n\nHello."
    )  # the engine cannot know; only the tag is dropped


async def test_unicode_line_separators_do_not_end_a_line(server: LLMServer) -> None:
    """JSON may contain U+2028 and U+0085, at which `splitlines` splits. Bytes arrive one by one."""
    data = chunk("One\u2028two\x85three é 🙂.", "stop").encode()

    def torn(http: Handler) -> None:
        http.begin()
        for byte in data.replace(b"\n", b"\r\n"):
            http.wfile.write(bytes([byte]))
            http.wfile.flush()

    assert await ask(server, torn) == ["One\u2028two\x85three é 🙂."]
    assert len(server.requests) == 1


async def test_a_last_event_without_newline_is_read(server: LLMServer) -> None:
    assert await ask(server, plain(": ping\n\nevent: message\n", chunk("Hi.", "stop").strip())) == ["Hi."]


async def test_content_as_a_list_of_parts_is_accepted(server: LLMServer) -> None:
    """As Mistral's reasoning models send it: reasoning parts and text parts."""
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]
    answer = plain(chunk(thought), chunk([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}], "stop"))
    assert await ask(server, answer) == ["Hello."]


async def test_a_refusal_is_the_answer(server: LLMServer) -> None:
    assert await ask(server, plain(chunk(None, refusal="I cannot help with that."), chunk(None, "stop"))) == [
        "I cannot help with that."
    ]


async def test_the_newer_name_of_max_tokens_is_used_after_it_was_requested(server: LLMServer) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.answers[:] = [refused(400, words), streamed("Hi."), streamed("Hi again.")]
    responder = OpenAIResponder.load(server.url, "gpt-new", max_tokens=50, tries=1)
    assert [token for _ in range(2) async for token in responder.stream(ASKED)] == ["Hi.", "Hi again."]
    limits = [{key: value for key, value in body.items() if "tokens" in key} for _, _, body in server.requests]
    assert limits == [{"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_completion_tokens": 50}]
    with pytest.raises(InputError, match="Unsupported parameter"):  # if the server refuses both names, it gives up
        await ask(server, refused(400, words))
    assert len(server.requests) == 5


async def test_user_and_assistant_messages_alternate(server: LLMServer) -> None:
    server.answers[:] = [streamed("Hi.")]
    said = [Message("system", " "), Message("assistant", "Yes."), Message("user", "One."), Message("user", "Two.")]
    said += [Message("assistant", "Three."), Message("user", "Four.")]
    async for _ in OpenAIResponder.load(server.url, "tiny").stream(said):
        pass
    assert [(m["role"], m["content"]) for m in server.requests[0][2]["messages"]] == [
        ("user", "One.\n\nTwo."),
        ("assistant", "Three."),
        ("user", "Four."),
    ]


@pytest.mark.parametrize("trouble", [refused(500), refused(503), refused(429, Retry_After="0"), broken_off()])
async def test_temporary_failures_are_retried(server: LLMServer, trouble: Answer) -> None:
    assert await ask(server, trouble, streamed("Hi.")) == ["Hi."]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "kind", "words", "asked"),
    [
        (refused(429, "slow down", Retry_After="0"), BusyError, "overloaded: slow down", 3),
        (refused(500, "boom"), StageError, "failed with 500: boom", 3),
        (refused(401, KEY), StageError, r"refused the key \(401\)", 1),
        (refused(400, "too long"), InputError, "refused the conversation: too long", 1),
        (refused(404, "no such model"), StageError, "answered 404: no such model", 1),
        (streamed(), StageError, "answer is empty", 3),
        (streamed("<think>", "Hm."), StageError, "answer is empty", 3),
        (streamed(finish="length"), StageError, "used all its tokens before the first word", 1),
        (streamed("<think>", "Hm.", finish="length"), StageError, "used all its tokens", 1),
        (streamed(finish="content_filter"), StageError, "server's content filter", 1),
        (plain('{"error": {"message": "oom"}}', kind="application/json"), StageError, "failed: oom", 1),
        (plain("data: " + "x" * 2**20 + "x"), StageError, "not in OpenAI's form", 1),
        (broken_off(), StageError, "is incomplete", 3),
        (lambda http: http.begin(kind="text/html"), StageError, "answered with text/html", 1),
        (lambda http: (http.begin(), http.event("{not json")), StageError, "not in OpenAI's form", 1),
        (lambda http: (http.begin(), http.event("[1]")), StageError, "not in OpenAI's form", 1),
        (lambda http: (http.begin(), http.event({"error": {"message": "oom"}})), StageError, "failed: oom", 1),
    ],
)
async def test_every_failure_gives_an_error_with_a_remedy(
    server: LLMServer, answer: Answer, kind: type[Exception], words: str, asked: int
) -> None:
    with pytest.raises(kind, match=words) as caught:
        await ask(server, answer)
    assert caught.value.remedy and KEY not in str(caught.value)  # type: ignore[attr-defined]
    assert len(server.requests) == asked


async def test_a_slow_server_times_out_at_each_try(server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    release, attempts = threading.Event(), list[int]()
    monkeypatch.setattr(openai_http.RetryableError, "backoff_s", lambda _, attempt: attempts.append(attempt) or 0.0)
    with pytest.raises(StageError, match="did not answer in time"):
        await ask(server, lambda http: release.wait(30), timeout_s=0.05, tries=3)
    release.set()
    assert attempts == [0, 1]


async def test_there_is_no_retry_after_the_first_token(server: LLMServer) -> None:
    server.answers[:] = [broken_off("Half an ans")]
    heard = []
    with pytest.raises(StageError, match="is incomplete"):
        async for token in OpenAIResponder.load(server.url, "tiny").stream(ASKED):
            heard.append(token)
    assert (heard, len(server.requests)) == (["Half an ans"], 1)


async def test_an_unreachable_server_gives_an_error(server: LLMServer) -> None:
    with pytest.raises(StageError, match="connection to the language model failed"):
        async for _ in OpenAIResponder.load("http://127.0.0.1:9/v1", "tiny", tries=1).stream(ASKED):
            pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base_url": "localhost:8000", "model": "m"},
        {"base_url": "http://x/v1"},
        {"base_url": "http://x/v1", "model": "m", "api_key_env": "NOT_SET_ANYWHERE"},
        {"base_url": "http://x/v1", "model": "m", "tries": 0},
    ],
)
def test_wrong_options_are_refused_at_load(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIResponder.load(**options)
    assert caught.value.remedy
