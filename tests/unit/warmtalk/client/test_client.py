"""Both clients over a mock transport: what they send, when they retry, what they return and raise."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.media.emsg import event_box
from models.media.mp4 import box
from warmtalk import (
    AsyncClient,
    Busy,
    Caption,
    ChatFailed,
    Client,
    Ended,
    Making,
    NotFound,
    Prepared,
    Progress,
    Refused,
    ServerError,
    Unauthorized,
    Unreachable,
    Word,
)
from warmtalk.client import retries, waiting
from warmtalk.client.events import EventReader

pytestmark = pytest.mark.usefixtures("waits")
Answer = httpx.Response | Exception
SPOKEN = {"session_id": "a", "avatar_id": "p", "video_url": "/v", "frames": 25, "duration_s": 1.0}
SPOKEN |= {"ttff_ms": 500.0, "rtf": 0.5, "stages": {"TTS": {"calls": 1.0}}, "a_new_field": 1}
SPOKEN |= {"start_s": 3.2, "interrupted": True, "warnings": ["Skipped a block of code."]}


class Server:
    """Returns `answers` in turn, then the last one again, and records the requests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer.stream, httpx.ByteStream):
            return answer
        body = httpx.ByteStream(answer.content)  # like an answer from the network: not read yet
        return httpx.Response(answer.status_code, headers=answer.headers, stream=body)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: Server) -> Callable[..., Any]:
    """call(answers, method, …) → the result of that method of either client; a stream as a list."""

    async def answer(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return server(request)

    async def awaited(method: str, arguments: Any, options: Any) -> Any:
        async with AsyncClient("http://x/base/", transport=httpx.MockTransport(answer)) as asked:
            given = getattr(asked, method)(*arguments, **options)
            return [part async for part in given] if inspect.isasyncgen(given) else await given

    def run(answers: Any, method: str, *arguments: Any, **options: Any) -> Any:
        server.answers[:] = answers if isinstance(answers, list) else [answers]
        if request.param == "async":
            return asyncio.run(awaited(method, arguments, options))
        with Client("http://x/base", transport=httpx.MockTransport(server)) as asked:
            given = getattr(asked, method)(*arguments, **options)
            return list(given) if inspect.isgenerator(given) else given

    return run


def ok(answer: Any) -> httpx.Response:
    return httpx.Response(200, json=answer)


def failed(status: int, code: str = "bad_input", retry_after: str | None = None) -> httpx.Response:
    error = {"code": code, "message": "It is wrong.", "remedy": "Fix it."}
    return httpx.Response(status, json={"error": error}, headers={"Retry-After": retry_after or "0.1"})


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    names = {name for name in vars(Client) if not name.startswith("_") and name != "say"}
    assert names | {"say"} == {name for name in vars(AsyncClient) if not name.startswith("_")} and "speak" in names
    for name in names:
        one, other = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
        assert list(one.parameters.values()) == list(other.parameters.values()), name


# --- requests and results


def test_transcribe_returns_text_and_segment_times(call: Callable[..., Any], server: Server, tmp_path: Path) -> None:
    heard = {"task": "transcribe", "language": "de", "duration": 1.5, "text": "Guten Tag."}
    heard["segments"] = [{"id": 0, "start": 0.2, "end": 1.4, "text": "Guten Tag.", "avg_logprob": -0.2}]
    (tmp_path / "a.wav").write_bytes(b"RIFF-sound")
    found = call([failed(503), ok(heard)], "transcribe", tmp_path / "a.wav", language="de")
    assert (found.text, found.language, found.duration_s) == ("Guten Tag.", "de", 1.5)
    assert [(part.text, part.start_s, part.end_s) for part in found.segments] == [("Guten Tag.", 0.2, 1.4)]
    assert len(server.requests) == 2
    for request in server.requests:
        assert (request.method, request.url.path) == ("POST", "/base/v1/audio/transcriptions")
        assert request.headers["content-type"].startswith("multipart/form-data")
        assert b"RIFF-sound" in request.content and b'name="language"\r\n\r\nde\r\n' in request.content
        assert b'name="response_format"\r\n\r\nverbose_json\r\n' in request.content
    assert call(ok({"text": ""}), "transcribe", b"RIFF").segments == []
    assert b'name="language"' not in server.requests[-1].content


def test_transcribe_without_recognition_raises_the_servers_error(call: Callable[..., Any]) -> None:
    with pytest.raises(ServerError, match="It is wrong") as caught:
        call(failed(501, "not_configured"), "transcribe", b"RIFF")
    assert (caught.value.code, caught.value.status) == ("not_configured", 501)


def test_the_api_key_comes_from_the_argument_or_the_environment(
    call: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WARMTALK_API_KEY", raising=False)
    call([ok([])], "sessions")
    assert "authorization" not in server.requests[-1].headers
    with pytest.raises(Unauthorized, match="API key is required") as caught:
        error = {"code": "unauthorized", "message": "An API key is required."}
        call([httpx.Response(401, json={"error": error})], "sessions")
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    monkeypatch.setenv("WARMTALK_API_KEY", "of-the-environment")
    call([ok([])], "sessions")
    assert server.requests[-1].headers["authorization"] == "Bearer of-the-environment"
    server.answers = [ok([])]
    with Client("http://x/base", api_key="given", transport=httpx.MockTransport(server)) as asked:
        asked.sessions()
    assert server.requests[-1].headers["authorization"] == "Bearer given"


def test_speak_returns_a_speech_and_ignores_unknown_fields(call: Any, server: Server) -> None:
    speech = call(ok(SPOKEN), "speak", "Hello.", session_id="a", enhance=True, voice=None)
    assert (speech.session_id, speech.frames, speech.ttff_ms, speech.stages) == ("a", 25, 500.0, {"TTS": {"calls": 1}})
    assert (speech.start_s, speech.interrupted) == (3.2, True)
    assert speech.warnings == ["Skipped a block of code."]
    assert str(server.requests[0].url) == "http://x/base/speak"
    assert json.loads(server.requests[0].content) == {"text": "Hello.", "session_id": "a", "enhance": True}


def test_speak_audio_sends_the_recording_as_the_body(call: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    for audio in (b"RIFF", tmp_path / "a.wav", str(tmp_path / "a.wav")):
        assert call(ok(SPOKEN), "speak_audio", audio, session_id="a").frames == 25
    assert {(r.url.query, r.content) for r in server.requests} == {(b"session_id=a", b"RIFF")}


def test_stream_and_live_yield_bytes(call: Any, server: Server) -> None:
    assert b"".join(call(httpx.Response(200, content=b"moof"), "stream", "Hello.", session_id="a")) == b"moof"
    assert json.loads(server.requests[0].content) == {"text": "Hello.", "stream": True, "session_id": "a"}
    assert b"".join(call(httpx.Response(200, content=b"moof"), "live", "a/b")) == b"moof"
    assert server.requests[1].url.raw_path == b"/base/sessions/a%2Fb/live.mp4"


def test_say_sends_the_text_as_a_streamed_body(server: Server) -> None:
    server.answers[:] = [ok(SPOKEN)]
    with Client("http://x/base", transport=httpx.MockTransport(server)) as asked:
        assert asked.say(iter(["Hel", "lo ", "wörld."]), "a", voice="nova").frames == 25

    async def awaited() -> None:
        async def tokens() -> Any:
            for token in ("Hel", "lo ", "wörld."):
                yield token

        async def read(request: httpx.Request) -> httpx.Response:
            await request.aread()
            server.requests.append(request)
            return ok(SPOKEN)

        async with AsyncClient("http://x/base", transport=httpx.MockTransport(read)) as asked:
            assert (await asked.say(tokens(), "a", voice="nova")).frames == 25

    asyncio.run(awaited())
    for request in server.requests:
        assert request.content == "Hello wörld.".encode() and request.url.raw_path == b"/base/sessions/a/say?voice=nova"
    assert len(server.requests) == 2


@pytest.mark.parametrize("arguments", [{}, {"text": "Hi", "audio": b"RIFF"}])
def test_stream_takes_either_text_or_audio(call: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either text or audio"):
        call(ok({}), "stream", **arguments)


@pytest.mark.parametrize(
    ("method", "arguments", "answer", "sent", "result"),
    [
        ("sessions", (), ["a"], "GET /base/sessions", ["a"]),
        ("close_session", ("a",), {"session_id": "a"}, "POST /base/sessions/a/close", None),
        ("reset", ("a",), {"reset": True}, "GET /base/reset?session_id=a", None),
        ("delete_session", ("a",), {"removed": True}, "DELETE /base/sessions/a", True),
        ("healthy", (), {"status": "ok"}, "GET /base/healthz", True),
    ],
)
def test_session_calls_use_the_right_method_and_path(
    call: Any, server: Server, method: str, arguments: Any, answer: Any, sent: str, result: Any
) -> None:
    assert call(ok(answer), method, *arguments) == result
    assert f"{server.requests[0].method} {server.requests[0].url.raw_path.decode()}" == sent


def test_sessions_avatars_and_messages_are_dataclasses(call: Any, server: Server) -> None:
    assert call(ok({"session_id": "a", "frames": 3, "size": 9}), "session", "a").frames == 3
    assert call(httpx.Response(201, json={"session_id": "a"}), "open_session", "a", "p").session_id == "a"
    assert json.loads(server.requests[-1].content) == {"session_id": "a", "avatar_id": "p"}
    assert call(ok({"session_id": "a", "interrupted": 2}), "interrupt", "a").interrupted == 2
    facts = {"avatar_id": "p", "version": "1", "fps": 25, "width": 512, "height": 512, "frames": 9}
    assert [(known.width, known.removable) for known in call(ok([facts]), "avatars")] == [(512, False)]
    (own,) = call(ok([{**facts, "removable": True}]), "avatars")
    assert own.removable
    assert call(ok([{"role": "user", "content": "Hi"}]), "messages", "a")[0].content == "Hi"


def test_remove_avatar_returns_ended_sessions_and_is_not_retried(call: Any, server: Server) -> None:
    answer = {"avatar_id": "me", "removed": True, "ended": ["alice"]}
    assert call(ok(answer), "remove_avatar", "me") == ["alice"]
    asked = server.requests[0]
    assert (asked.method, asked.url.path) == ("DELETE", "/base/avatars/me")
    with pytest.raises(Unreachable):  # the first request may have arrived: a second one would get a 404
        call(httpx.ReadTimeout("slow"), "remove_avatar", "me")
    assert len(server.requests) == 2


def test_voices_show_which_must_be_downloaded(call: Any, server: Server) -> None:
    voices = [{"name": "heart", "ready": True, "fetch_mb": 0.0}, {"name": "emma", "ready": False, "fetch_mb": 7.9}]
    heart, emma = call(ok(voices), "voices")
    assert (heart.name, heart.ready) == ("heart", True) and (emma.name, emma.ready, emma.fetch_mb) == (
        "emma",
        False,
        7.9,
    )
    assert server.requests[0].url.path == "/base/voices"


def test_a_broken_download_leaves_no_file(call: Any, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert call(httpx.Response(200, content=b"mp4"), "download", "a", path) == path and path.read_bytes() == b"mp4"
    assert server.requests[0].url.path == "/base/sessions/a/download.mp4"
    path.unlink()

    def broken() -> Any:
        yield b"half"
        raise httpx.ReadError("gone")

    class Half(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Any:
            yield from broken()

        async def __aiter__(self) -> Any:
            for part in broken():
                yield part

    with pytest.raises(Unreachable, match="broke during"):
        call(httpx.Response(200, stream=Half()), "download", "a", path)
    assert list(tmp_path.iterdir()) == []


# --- chat


def test_ask_polls_until_the_job_is_done(call: Any, server: Server, waits: list[float]) -> None:
    states = [ok({"job_id": "j", "session_id": "a", "status": s, "reply": "Hi."}) for s in ("thinking", "done")]
    job = call([ok({"job_id": "j", "session_id": "a"}), *states], "ask", "Hello?", session_id="a")
    assert (job.status, job.reply, job.finished, waits) == ("done", "Hi.", True, [0.5])
    assert [r.url.path for r in server.requests] == ["/base/chat", "/base/status/j", "/base/status/j"]


def test_wait_reports_every_state(call: Any) -> None:
    reported: list[str] = []
    states = [ok({"job_id": "j", "session_id": "a", "status": s}) for s in ("queued", "speaking", "done")]
    call(states, "wait", "j", progress=lambda job: reported.append(job.status))
    assert reported == ["queued", "speaking", "done"]


def test_wait_raises_for_a_failed_or_late_job(call: Any) -> None:
    error = {"code": "stage_failed", "message": "The model failed.", "remedy": "Look."}
    answer = ok({"job_id": "j", "session_id": "a", "status": "failed", "error": error})
    with pytest.raises(ChatFailed, match=r"The model failed\. Look\.") as caught:
        call(answer, "wait", "j")
    assert caught.value.code == "stage_failed"
    with pytest.raises(ChatFailed, match="not finished after 0 s"):
        call(ok({"job_id": "j", "session_id": "a", "status": "thinking"}), "wait", "j", timeout_s=0)


def test_wait_survives_an_outage_of_the_server(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[Answer] = [httpx.ConnectError("nobody")] * 9 + [failed(503)] * 5
    done = ok({"job_id": "j", "session_id": "a", "status": "done", "reply": "Hi."})
    assert call([*gone, done], "wait", "j").reply == "Hi."
    monkeypatch.setattr(waiting, "MAX_OUTAGE_S", 0.0)
    with pytest.raises(Unreachable):
        call(httpx.ConnectError("nobody"), "wait", "j")
    with pytest.raises(NotFound):  # an answer about the job itself is raised at once
        call(failed(404), "wait", "j")


# --- preparing


def test_prepare_reports_progress_and_returns_the_report(call: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "me.mp4").write_bytes(b"video")
    lines = b'{"step": "finding faces", "done": 1, "total": 2}\n{"report": {"frames": 2}}\n'
    reported: list[Progress] = []
    options = {"progress": reported.append, "fps": 30}
    done = call(httpx.Response(200, content=lines), "prepare", tmp_path / "me.mp4", "me", **options)
    assert done == Prepared("me", {"frames": 2}) and reported == [Progress("finding faces", 1, 2)]
    assert (server.requests[0].content, server.requests[0].url.query) == (b"video", b"avatar_id=me&fps=30")


def test_prepare_raises_an_error_from_the_middle_of_the_answer(call: Any, tmp_path: Path) -> None:
    (tmp_path / "me.mp4").write_bytes(b"video")
    line = b'{"error": {"code": "no_face", "message": "No face.", "remedy": "Use another."}}\n'
    with pytest.raises(Refused, match="No face") as caught:
        call(httpx.Response(200, content=line), "prepare", tmp_path / "me.mp4", "me")
    assert caught.value.code == "no_face"
    with pytest.raises(ServerError, match="ended before"):
        call(httpx.Response(200, content=b""), "prepare", tmp_path / "me.mp4", "me")


# --- errors and retries


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (404, NotFound), (413, Refused), (422, Refused), (500, ServerError)]
)
def test_an_error_has_the_servers_message_and_class(
    call: Any, server: Server, status: int, kind: type[ServerError]
) -> None:
    with pytest.raises(kind, match=r"It is wrong\. Fix it\.") as caught:
        call(failed(status, "bad_text"), "speak", "…")
    assert type(caught.value) is kind and (caught.value.code, caught.value.status) == ("bad_text", status)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b'{"detail": "no"}', b"[]"])
def test_an_answer_of_a_proxy_becomes_a_server_error(call: Any, body: bytes) -> None:
    with pytest.raises(ServerError, match="answered with status 500"):
        call(httpx.Response(500, content=body), "voices")
    if body:
        with pytest.raises(ServerError, match="not JSON"):
            call(httpx.Response(200, content=b"<html>"), "voices")


class Torn(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends with a broken connection."""

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"err'
        raise httpx.RemoteProtocolError("peer closed connection")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


def test_an_error_with_a_broken_body_keeps_its_status(call: Any, server: Server) -> None:
    with pytest.raises(NotFound, match="answered with status 404"):
        call(httpx.Response(404, stream=Torn()), "session", "alice")
    assert call([httpx.Response(503, stream=Torn()), ok(["a"])], "sessions") == ["a"]


def test_a_full_queue_is_retried_after_retry_after_within_a_limit(call: Any, waits: list[float]) -> None:
    assert call([failed(429, retry_after="2"), failed(503), ok(SPOKEN)], "speak", "Hi").frames == 25
    assert waits[0] == 2.0 and len(waits) == 2
    with pytest.raises(Busy):
        call(failed(429, retry_after="9999"), "speak", "Hi")
    assert max(waits) == retries.MAX_WAIT_S


def test_speak_is_not_retried_once_it_may_have_arrived(call: Any, server: Server) -> None:
    for trouble in (httpx.ReadTimeout("slow"), httpx.ReadError("gone")):
        server.requests.clear()
        with pytest.raises(Unreachable):
            call([trouble, ok(SPOKEN)], "speak", "Hi")
        assert len(server.requests) == 1
    server.requests.clear()
    with pytest.raises(ServerError):
        call([failed(502), ok(SPOKEN)], "speak", "Hi")
    assert len(server.requests) == 1
    assert call([httpx.ConnectError("refused"), ok(SPOKEN)], "speak", "Hi").frames == 25  # it was never sent


@pytest.mark.parametrize("trouble", [httpx.ReadError("gone"), httpx.ReadTimeout("slow"), failed(502), failed(504)])
def test_idempotent_calls_are_retried(call: Any, trouble: Answer) -> None:
    assert call([trouble, ok(["a"])], "sessions") == ["a"]


def test_an_unreachable_server_raises_unreachable(call: Any, server: Server) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        call(httpx.ConnectError("refused"), "voices")
    assert len(server.requests) == 3
    assert call(httpx.ConnectError("refused"), "healthy") is False
    with pytest.raises(Unreachable, match="did not answer in time"):
        call(httpx.ReadTimeout("slow"), "voices")


def test_tries_must_be_at_least_one() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="at least 1"):
            kind(tries=0)


# --- events of a live stream


def test_events_are_parsed_and_unknown_kinds_ignored(call: Any, server: Server) -> None:
    caption = {"id": 1, "text": "Hi there.", "start_s": 0.5, "end_s": 1.2, "cut": False, "a_new_field": 1}
    caption["words"] = [{"text": "Hi", "start_s": 0.5, "end_s": 0.8}, {"text": "there.", "start_s": 0.8, "end_s": 1.2}]
    making = {"frames": 8, "shown_frames": 4, "duration_s": 0.32, "ttff_ms": 480.0, "spoken_chars": 3, "stages": {}}
    reported = [("caption", caption), ("making", making), ("news", {}), ("ended", {"reason": "closed"})]
    boxes = [box(b"moof", b"emsg" * 9) + event_box(*event, k, 0.0) + box(b"mdat") for k, event in enumerate(reported)]
    answer = httpx.Response(200, content=b"".join(boxes), headers={"Content-Type": "video/mp4"})
    found = call(answer, "events", "alice")
    words = [Word("Hi", 0.5, 0.8), Word("there.", 0.8, 1.2)]
    assert found == [Caption(1, "Hi there.", 0.5, 1.2, words), Making(**making), Ended("closed")]
    assert server.requests[-1].url.path == "/base/sessions/alice/live.mp4"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_found_for_any_chunk_size(size: int) -> None:
    data = box(b"moof", bytes(50)) + event_box("ended", {"reason": "reset"}, 1, 0.0) + box(b"mdat", bytes(20)) * 2
    data += event_box("caption", {"id": 2, "text": "Größe 👋", "start_s": 0, "end_s": 1}, 2, 0.0)
    reader = EventReader()
    found = [event for at in range(0, len(data), size) for event in reader.push(data[at : at + size])]
    assert found == [Ended("reset"), Caption(2, "Größe 👋", 0, 1)]
