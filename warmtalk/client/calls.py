"""Each call of the server as data: what is sent, whether it may be sent twice, and what its answer means.

Both clients carry out the same calls; here is no connection and no waiting.
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
PASSING = (429, 502, 503, 504)  # statuses that a second try may not meet
PART_BYTES = 2**18  # of a file that is sent
LONG_S = 600.0  # an answer that comes when a long text has been spoken


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `repeatable`: it may be sent again even where the first may have arrived."""

    method: str
    path: str
    read: Callable[[Any], T]
    query: dict[str, Any] = field(default_factory=dict)
    body: Any = None  # JSON
    content: Any = None  # bytes, an iterator of them, or a function that gives one from the first byte for each try
    content_bytes: int | None = None  # how long it is, where an iterator gives it
    file: bytes | None = None  # of a form, whose fields are `body`
    repeatable: bool = True
    timeout_s: float | None = None  # None: the client's

    def arguments(self) -> dict[str, Any]:
        """For httpx's `build_request`; asked anew for each try."""
        said: dict[str, Any] = {"params": _given(self.query)} if self.query else {}
        if self.file is not None:
            said["files"], said["data"] = {"file": ("recording", self.file)}, _given(self.body)
        elif self.body is not None:
            said["json"] = _given(self.body)
        if self.content is not None:
            said["content"] = self.content() if callable(self.content) else self.content
        if self.content_bytes is not None:
            said["headers"] = {"Content-Length": str(self.content_bytes)}
        return said

    @property
    def replayable(self) -> bool:
        """Whether all of it can be sent again: an iterator was read, if only to its middle."""
        return self.content is None or isinstance(self.content, bytes) or callable(self.content)

    def may_repeat(self, status: int) -> bool:
        """429 and 503 are told before any work is done; after other failures only harmless calls go again."""
        return status in (429, 503) or (self.repeatable and status in PASSING)


def authorization(api_key: str | None = None) -> dict[str, str]:
    """The header that opens a server which wants a key: the one given, or $WARMTALK_API_KEY's, where there is one."""
    key = api_key or os.environ.get(KEY_ENV, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _spoken(answer: Any) -> Speech:
    return parsed(Speech, answer)


def _same(answer: Any) -> Any:
    return answer


def speak(text: str, **options: Any) -> Call[Speech]:
    return Call("POST", "speak", _spoken, body={"text": text, **options}, repeatable=False, timeout_s=LONG_S)


def speak_audio(audio: bytes, **options: Any) -> Call[Speech]:
    return Call("POST", "speak/audio", _spoken, query=options, content=audio, repeatable=False, timeout_s=LONG_S)


def stream(text: str | None, audio: bytes | None, **options: Any) -> Call[Any]:
    """An answer of fragmented MP4. Raises ValueError unless exactly one of text and audio is given."""
    if (text is None) == (audio is None):
        raise ValueError("give a text or audio, and only one of them")
    if text is not None:
        body = {"text": text, "stream": True, **options}
        return Call("POST", "speak", _same, body=body, repeatable=False, timeout_s=LONG_S)
    query = {"stream": True, **options}
    return Call("POST", "speak/audio", _same, query=query, content=audio, repeatable=False, timeout_s=LONG_S)


def transcribe(audio: bytes, language: str | None) -> Call[Transcript]:
    form = {"response_format": "verbose_json", "language": language}
    return Call("POST", "v1/audio/transcriptions", _heard, body=form, file=audio, timeout_s=LONG_S)


def _heard(answer: Any) -> Transcript:
    parts = [Heard(part["text"], part["start"], part["end"]) for part in answer.get("segments", [])]
    return Transcript(answer["text"], answer.get("language", ""), answer.get("duration", 0.0), parts)


def say(parts: Any, session_id: str, **options: Any) -> Call[Speech]:
    """parts: an iterator of bytes, asynchronous for the asynchronous client."""
    path = session_path(session_id, "/say")
    return Call("POST", path, _spoken, query=options, content=parts, repeatable=False, timeout_s=LONG_S)


def session_path(session_id: str, rest: str = "") -> str:
    return f"sessions/{quote(session_id, safe='')}{rest}"


def live(session_id: str) -> Call[Any]:
    return Call("GET", session_path(session_id, "/live.mp4"), _same)


def download(session_id: str) -> Call[Any]:
    """The server puts the file together first, which takes a while of a long session."""
    return Call("GET", session_path(session_id, "/download.mp4"), _same, timeout_s=LONG_S)


def captions(session_id: str) -> Call[Any]:
    return Call("GET", session_path(session_id, "/captions.vtt"), _same)


def open_session(session_id: str | None, avatar_id: str | None) -> Call[Session]:
    body = {"session_id": session_id, "avatar_id": avatar_id}
    return Call(
        "POST", "sessions", lambda answer: parsed(Session, answer), body=body, repeatable=session_id is not None
    )


def interrupt(session_id: str) -> Call[Interruption]:
    return Call("POST", session_path(session_id, "/interrupt"), lambda answer: parsed(Interruption, answer))


def sessions() -> Call[list[str]]:
    return Call("GET", "sessions", _same)


def session(session_id: str) -> Call[Session]:
    return Call("GET", session_path(session_id), lambda answer: parsed(Session, answer))


def reset(session_id: str) -> Call[Any]:
    return Call("GET", "reset", _same, query={"session_id": session_id})


def close_session(session_id: str) -> Call[Any]:
    return Call("POST", session_path(session_id, "/close"), _same)


def delete_session(session_id: str) -> Call[bool]:
    return Call("DELETE", session_path(session_id), lambda answer: bool(answer["removed"]))


def avatars() -> Call[list[Avatar]]:
    return Call("GET", "avatars", lambda answer: [parsed(Avatar, entry) for entry in answer])


def remove_avatar(avatar_id: str) -> Call[list[str]]:
    path = f"avatars/{quote(avatar_id, safe='')}"
    return Call("DELETE", path, lambda answer: list(answer["ended"]), repeatable=False)


def prepare(parts: Callable[[], Any], size: int, avatar_id: str, **options: Any) -> Call[Any]:
    """parts: gives the `size` bytes of a video or a picture. The answer is JSON lines: see `progress_of`."""
    call: Call[Any] = Call("POST", "avatars", _same, query={"avatar_id": avatar_id, **options}, content=parts)
    return replace(call, content_bytes=size, repeatable=False, timeout_s=LONG_S)


def file_parts(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, a part at a time: no more than was announced, should it grow."""
    with path.open("rb") as file:
        while size > 0 and (part := file.read(min(size, PART_BYTES))):
            size -= len(part)
            yield part


def progress_of(line: str, avatar_id: str) -> Progress | Prepared:
    """One line of a preparation's answer. Raises ServerError for one that says that it failed."""
    event = json.loads(line)
    if "error" in event:
        raise error_of(422, line.encode())
    return Prepared(avatar_id, event["report"]) if "report" in event else parsed(Progress, event)


def voices() -> Call[list[Voice]]:
    return Call("GET", "voices", lambda answer: [parsed(Voice, entry) for entry in answer])


def healthz() -> Call[bool]:
    return Call("GET", "healthz", lambda answer: bool(answer["status"] == "ok"))


def chat(message: str, **options: Any) -> Call[ChatJob]:
    body = {"message": message, **options}
    return Call("POST", "chat", lambda answer: parsed(ChatJob, answer), body=body, repeatable=False)


def status(job_id: str) -> Call[ChatJob]:
    return Call("GET", f"status/{quote(job_id, safe='')}", lambda answer: parsed(ChatJob, answer))


def messages(session_id: str) -> Call[list[Message]]:
    path = f"chat/{quote(session_id, safe='')}"
    return Call("GET", path, lambda answer: [parsed(Message, entry) for entry in answer])


def answered(job: ChatJob) -> ChatJob:
    """The job, if it was answered. Raises ChatFailed."""
    if job.status == "failed":
        error = job.error or {}
        raise ChatFailed(
            error.get("code", "failed"), error.get("message", "The chat failed."), error.get("remedy", ""), 200
        )
    return job


def late(job: ChatJob, timeout_s: float) -> ServerError:
    return ChatFailed("timeout", f"The answer was not there after {timeout_s:g} s.", f"It is {job.status}: wait on.")


def bytes_of(audio: bytes | str | Path) -> bytes:
    """Sound as bytes; a path is read. Raises OSError."""
    return audio if isinstance(audio, bytes) else Path(audio).read_bytes()
