"""Every request of the HTTP API as data: what is sent, whether it may be repeated, how its answer is parsed.

The synchronous and the asynchronous client send the same calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from warmtalk.client.errors import ChatFailed, ServerError, error_of
from warmtalk.client.results import (
    Avatar,
    ChatJob,
    Heard,
    Interruption,
    Message,
    Prepared,
    Progress,
    Session,
    Speech,
    Transcript,
    Voice,
    parsed,
)

T = TypeVar("T")

KEY_ENV = "WARMTALK_API_KEY"
TRANSIENT_STATUSES = (429, 502, 503, 504)
UPLOAD_CHUNK_BYTES = 2**18
SPEECH_TIMEOUT_S = 600.0  # the answer comes when a long text has been spoken


@dataclass(frozen=True, slots=True)
class ApiCall(Generic[T]):
    """One request. idempotent: it may be sent again even if the server may have received the first one."""

    method: str
    path: str
    parse: Callable[[Any], T]  # the JSON of the answer → the result
    query: dict[str, Any] = field(default_factory=dict)
    body: Any = None  # JSON, or the fields of a form with `file`
    content: Any = None  # bytes, an iterator of bytes, or a function that returns a new iterator for each attempt
    content_bytes: int | None = None  # length of what an iterator yields
    file: bytes | None = None  # the file of a multipart form
    idempotent: bool = True
    timeout_s: float | None = None  # None: the client's

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of httpx's `build_request` for one attempt."""
        arguments: dict[str, Any] = {"params": _without_none(self.query)} if self.query else {}
        if self.file is not None:
            arguments["files"], arguments["data"] = {"file": ("recording", self.file)}, _without_none(self.body)
        elif self.body is not None:
            arguments["json"] = _without_none(self.body)
        if self.content is not None:
            arguments["content"] = self.content() if callable(self.content) else self.content
        if self.content_bytes is not None:
            arguments["headers"] = {"Content-Length": str(self.content_bytes)}
        return arguments

    @property
    def replayable(self) -> bool:
        """Whether the body can be sent a second time; an iterator cannot."""
        return self.content is None or isinstance(self.content, bytes) or callable(self.content)

    def may_retry(self, status: int) -> bool:
        """The server answers 429 and 503 before it does any work; after other failures only idempotent calls retry."""
        return status in (429, 503) or (self.idempotent and status in TRANSIENT_STATUSES)


def authorization(api_key: str | None = None) -> dict[str, str]:
    """The Authorization header with `api_key` or $WARMTALK_API_KEY; empty without a key."""
    key = api_key or os.environ.get(KEY_ENV, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _speech(answer: Any) -> Speech:
    return parsed(Speech, answer)


def _as_is(answer: Any) -> Any:
    return answer


def speak(text: str, **options: Any) -> ApiCall[Speech]:
    return ApiCall(
        "POST", "speak", _speech, body={"text": text, **options}, idempotent=False, timeout_s=SPEECH_TIMEOUT_S
    )


def speak_audio(audio: bytes, **options: Any) -> ApiCall[Speech]:
    return ApiCall(
        "POST", "speak/audio", _speech, query=options, content=audio, idempotent=False, timeout_s=SPEECH_TIMEOUT_S
    )


def stream(text: str | None, audio: bytes | None, **options: Any) -> ApiCall[Any]:
    """The answer is fragmented MP4. Raises ValueError unless exactly one of text and audio is given."""
    if (text is None) == (audio is None):
        raise ValueError("pass either text or audio")
    if text is not None:
        body = {"text": text, "stream": True, **options}
        return ApiCall("POST", "speak", _as_is, body=body, idempotent=False, timeout_s=SPEECH_TIMEOUT_S)
    query = {"stream": True, **options}
    return ApiCall(
        "POST", "speak/audio", _as_is, query=query, content=audio, idempotent=False, timeout_s=SPEECH_TIMEOUT_S
    )


def transcribe(audio: bytes, language: str | None) -> ApiCall[Transcript]:
    form = {"response_format": "verbose_json", "language": language}
    return ApiCall("POST", "v1/audio/transcriptions", _transcript, body=form, file=audio, timeout_s=SPEECH_TIMEOUT_S)


def _transcript(answer: Any) -> Transcript:
    parts = [Heard(part["text"], part["start"], part["end"]) for part in answer.get("segments", [])]
    return Transcript(answer["text"], answer.get("language", ""), answer.get("duration", 0.0), parts)


def say(parts: Any, session_id: str, **options: Any) -> ApiCall[Speech]:
    """parts: an iterator of bytes, or an asynchronous one for AsyncClient."""
    path = session_path(session_id, "/say")
    return ApiCall("POST", path, _speech, query=options, content=parts, idempotent=False, timeout_s=SPEECH_TIMEOUT_S)


def session_path(session_id: str, rest: str = "") -> str:
    return f"sessions/{quote(session_id, safe='')}{rest}"


def live(session_id: str) -> ApiCall[Any]:
    return ApiCall("GET", session_path(session_id, "/live.mp4"), _as_is)


def download(session_id: str) -> ApiCall[Any]:
    """The server assembles the file before it answers, which takes a while for a long session."""
    return ApiCall("GET", session_path(session_id, "/download.mp4"), _as_is, timeout_s=SPEECH_TIMEOUT_S)


def captions(session_id: str) -> ApiCall[Any]:
    return ApiCall("GET", session_path(session_id, "/captions.vtt"), _as_is)


def open_session(session_id: str | None, avatar_id: str | None) -> ApiCall[Session]:
    body = {"session_id": session_id, "avatar_id": avatar_id}
    return ApiCall(
        "POST", "sessions", lambda answer: parsed(Session, answer), body=body, idempotent=session_id is not None
    )


def interrupt(session_id: str) -> ApiCall[Interruption]:
    return ApiCall("POST", session_path(session_id, "/interrupt"), lambda answer: parsed(Interruption, answer))


def sessions() -> ApiCall[list[str]]:
    return ApiCall("GET", "sessions", _as_is)


def session(session_id: str) -> ApiCall[Session]:
    return ApiCall("GET", session_path(session_id), lambda answer: parsed(Session, answer))


def session_facts(session_id: str) -> ApiCall[dict[str, Any]]:
    """Like `session`, with everything that the server answers: `last` is the summary of the last utterance."""
    return ApiCall("GET", session_path(session_id), dict)


def sidecar(session_id: str) -> ApiCall[Any]:
    return ApiCall("GET", session_path(session_id, "/sidecar.jsonl"), _as_is)


def reset(session_id: str) -> ApiCall[Any]:
    return ApiCall("GET", "reset", _as_is, query={"session_id": session_id})


def close_session(session_id: str) -> ApiCall[Any]:
    return ApiCall("POST", session_path(session_id, "/close"), _as_is)


def delete_session(session_id: str) -> ApiCall[bool]:
    return ApiCall("DELETE", session_path(session_id), lambda answer: bool(answer["removed"]))


def avatars() -> ApiCall[list[Avatar]]:
    return ApiCall("GET", "avatars", lambda answer: [parsed(Avatar, entry) for entry in answer])


def remove_avatar(avatar_id: str) -> ApiCall[list[str]]:
    path = f"avatars/{quote(avatar_id, safe='')}"
    return ApiCall("DELETE", path, lambda answer: list(answer["ended"]), idempotent=False)


def prepare(parts: Callable[[], Any], size: int, avatar_id: str, **options: Any) -> ApiCall[Any]:
    """parts: returns an iterator over the `size` bytes of a file. The answer is JSON lines: see `progress_of`."""
    call: ApiCall[Any] = ApiCall("POST", "avatars", _as_is, query={"avatar_id": avatar_id, **options}, content=parts)
    return replace(call, content_bytes=size, idempotent=False, timeout_s=SPEECH_TIMEOUT_S)


def file_parts(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file in chunks; a file that grows meanwhile is cut at its announced length."""
    with path.open("rb") as file:
        while size > 0 and (part := file.read(min(size, UPLOAD_CHUNK_BYTES))):
            size -= len(part)
            yield part


def progress_of(line: str, avatar_id: str) -> Progress | Prepared:
    """Parse one line of a preparation's answer. Raises ServerError for a line with an error."""
    event = json.loads(line)
    if "error" in event:
        raise error_of(422, line.encode())
    return Prepared(avatar_id, event["report"]) if "report" in event else parsed(Progress, event)


def voices() -> ApiCall[list[Voice]]:
    return ApiCall("GET", "voices", lambda answer: [parsed(Voice, entry) for entry in answer])


def healthz() -> ApiCall[bool]:
    return ApiCall("GET", "healthz", lambda answer: bool(answer["status"] == "ok"))


def chat(message: str, **options: Any) -> ApiCall[ChatJob]:
    body = {"message": message, **options}
    return ApiCall("POST", "chat", lambda answer: parsed(ChatJob, answer), body=body, idempotent=False)


def status(job_id: str) -> ApiCall[ChatJob]:
    return ApiCall("GET", f"status/{quote(job_id, safe='')}", lambda answer: parsed(ChatJob, answer))


def messages(session_id: str) -> ApiCall[list[Message]]:
    path = f"chat/{quote(session_id, safe='')}"
    return ApiCall("GET", path, lambda answer: [parsed(Message, entry) for entry in answer])


def answered(job: ChatJob) -> ChatJob:
    """Return a finished job. Raises ChatFailed if it failed."""
    if job.status == "failed":
        error = job.error or {}
        raise ChatFailed(
            error.get("code", "failed"), error.get("message", "The chat failed."), error.get("remedy", ""), 200
        )
    return job


def late(job: ChatJob, timeout_s: float) -> ServerError:
    message = f"The answer was not finished after {timeout_s:g} s."
    return ChatFailed("timeout", message, f"The job is {job.status}: wait longer.")


def bytes_of(audio: bytes | str | Path) -> bytes:
    """The bytes themselves, or the content of the file at a path. Raises OSError."""
    return audio if isinstance(audio, bytes) else Path(audio).read_bytes()
