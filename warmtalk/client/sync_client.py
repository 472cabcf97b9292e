"""The client for programs that wait for each answer. Knows httpx; what is said stands in calls.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from warmtalk.client import calls
from warmtalk.client.calls import Call
from warmtalk.client.errors import Busy, ServerError, Unreachable, error_of
from warmtalk.client.events import EventReader, LiveEvent
from warmtalk.client.options import AudioOptions, ChatOptions, PrepareOptions, SpeechOptions
from warmtalk.client.results import (
    Avatar,
    ChatJob,
    Interruption,
    Message,
    Prepared,
    Progress,
    Session,
    Speech,
    Transcript,
    Voice,
)
from warmtalk.client.waiting import Waiting

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of typing from 3.11 on

T = TypeVar("T")

URL = "http://127.0.0.1:8000"
BACKOFF_S = 0.5  # doubled at each try
LONGEST_WAIT_S = 10.0  # whatever Retry-After says
POLL_S = 0.5


class Client:
    """A connection pool to one server; to be closed, or used in a `with`.

    timeout_s: without a byte; what speaks has a longer one of its own. tries: of a call that meets a full queue, or
    that may be repeated without harm. api_key: of a server that wants one; $WARMTALK_API_KEY by default.
    transport: of httpx, for proxies of one's own. Every method raises a ServerError of warmtalk.client.errors.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        timeout_s: float = 60.0,
        tries: int = 3,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if tries < 1:
            raise ValueError("tries is at least 1")
        self._tries = tries
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=url.rstrip("/") + "/",
            headers=calls.authorization(api_key) | (headers or {}),
            timeout=timeouts(timeout_s),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- speaking

    def speak(self, text: str, session_id: str | None = None, **options: Unpack[SpeechOptions]) -> Speech:
        """Say a text; return when it is whole. options: avatar_id, enhance, strength, voice, speed."""
        return self._do(calls.speak(text, session_id=session_id, **options))

    def speak_audio(
        self, audio: bytes | str | Path, session_id: str | None = None, **options: Unpack[AudioOptions]
    ) -> Speech:
        """Say a recording: bytes, or the path, of a WAV, FLAC, MP3 or OGG. options: avatar_id, enhance, strength."""
        return self._do(calls.speak_audio(calls.bytes_of(audio), session_id=session_id, **options))

    def stream(
        self,
        text: str | None = None,
        audio: bytes | str | Path | None = None,
        session_id: str | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Generator[bytes, None, None]:
        """Say a text or a recording; yield fragmented MP4 as it is made. Closing it ends the speech."""
        sound = None if audio is None else calls.bytes_of(audio)
        yield from self._bytes(calls.stream(text, sound, session_id=session_id, **options))

    def say(self, parts: Iterable[str], session_id: str, **options: Unpack[ChatOptions]) -> Speech:
        """Say a text while it is still being written, such as a language model's tokens. options: as of `chat`."""
        return self._do(calls.say((part.encode() for part in parts), session_id, **options))

    def transcribe(self, audio: bytes | str | Path, language: str | None = None) -> Transcript:
        """What is said in a recording: bytes, or the path, of a WAV, FLAC, MP3, OGG or WebM. language: ISO 639-1."""
        return self._do(calls.transcribe(calls.bytes_of(audio), language))

    def interrupt(self, session_id: str) -> Interruption:
        """Stop what the session says and is going to say."""
        return self._do(calls.interrupt(session_id))

    def voices(self) -> list[Voice]:
        """Voices of the server's engine, the default first."""
        return self._do(calls.voices())

    # --- chat

    def chat(self, message: str, session_id: str | None = None, **options: Unpack[ChatOptions]) -> ChatJob:
        """Have a message answered in speech; return at once. options: avatar_id, enhance, voice, speed."""
        return self._do(calls.chat(message, session_id=session_id, **options))

    def status(self, job_id: str) -> ChatJob:
        return self._do(calls.status(job_id))

    def wait(
        self, job: ChatJob | str, timeout_s: float = 300.0, progress: Callable[[ChatJob], None] | None = None
    ) -> ChatJob:
        """Poll a job until it is done; progress is told of each state. Raises ChatFailed, also after timeout_s.

        A job outlives its server: one that cannot be reached is waited for, up to a minute; then Unreachable is raised.
        """
        job_id, waiting = job if isinstance(job, str) else job.job_id, Waiting(timeout_s, progress)
        while True:
            try:
                known = self.status(job_id)
            except (Unreachable, Busy):
                if waiting.is_in_vain():
                    raise
            else:
                if (answer := waiting.take(known)) is not None:
                    return answer
            time.sleep(POLL_S)

    def ask(
        self, message: str, session_id: str | None = None, timeout_s: float = 300.0, **options: Unpack[ChatOptions]
    ) -> ChatJob:
        """`chat` and `wait`: the answer, when it has been spoken."""
        return self.wait(self.chat(message, session_id, **options), timeout_s)

    def messages(self, session_id: str) -> list[Message]:
        """The conversation of a session, the oldest message first."""
        return self._do(calls.messages(session_id))

    # --- sessions

    def open_session(self, session_id: str | None = None, avatar_id: str | None = None) -> Session:
        """Open a session, so that it can be watched before anything is said."""
        return self._do(calls.open_session(session_id, avatar_id))

    def sessions(self) -> list[str]:
        return self._do(calls.sessions())

    def session(self, session_id: str) -> Session:
        return self._do(calls.session(session_id))

    def live(self, session_id: str) -> Generator[bytes, None, None]:
        """The session live, as fragmented MP4 without end."""
        yield from self._bytes(calls.live(session_id))

    def events(self, session_id: str) -> Generator[LiveEvent, None, None]:
        """What the live stream tells: what is heard when, how its making goes, and at last why it ends."""
        reader = EventReader()
        for part in self._bytes(calls.live(session_id)):
            yield from reader.push(part)

    def download(self, session_id: str, path: str | Path) -> Path:
        """Write the session so far to `path`, for any player; nothing is left where it breaks off. Raises OSError."""
        path, part = Path(path), Path(f"{path}.part")
        try:
            with part.open("wb") as file:
                for data in self._bytes(calls.download(session_id)):
                    file.write(data)
            return part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def captions(self, session_id: str) -> str:
        """The session's captions as WebVTT."""
        return b"".join(self._bytes(calls.captions(session_id))).decode()

    def reset(self, session_id: str) -> None:
        """Start the session afresh."""
        self._do(calls.reset(session_id))

    def close_session(self, session_id: str) -> None:
        """End the session: it can still be seen, and nothing more is said."""
        self._do(calls.close_session(session_id))

    def delete_session(self, session_id: str) -> bool:
        """Delete the session with its video; whether there was one."""
        return self._do(calls.delete_session(session_id))

    # --- avatars

    def avatars(self) -> list[Avatar]:
        return self._do(calls.avatars())

    def remove_avatar(self, avatar_id: str) -> list[str]:
        """Delete an avatar for good; the sessions that showed it and so have ended. Videos of its sessions stay."""
        return self._do(calls.remove_avatar(avatar_id))

    def prepare(
        self,
        source: str | Path,
        avatar_id: str,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[PrepareOptions],
    ) -> Prepared:
        """Prepare an avatar from a video or a picture. options: PrepareOptions."""
        path = Path(source)
        size = path.stat().st_size
        call = calls.prepare(lambda: calls.file_parts(path, size), size, avatar_id, **options)
        with self._answer(call) as answer:
            for line in answer.iter_lines():
                event = calls.progress_of(line, avatar_id)
                if isinstance(event, Prepared):
                    return event
                if progress:
                    progress(event)
        raise ServerError("broken_off", "The preparation broke off.", "Send it again.")

    def healthy(self) -> bool:
        """Whether the server is there and its graph answers."""
        try:
            return self._do(calls.healthz())
        except ServerError:
            return False

    # --- how a call is carried out

    def _do(self, call: Call[T]) -> T:
        with self._answer(call) as answer:
            return call.read(parsed_json(answer.read(), answer.status_code))

    def _bytes(self, call: Call[Any]) -> Generator[bytes, None, None]:
        with self._answer(call) as answer:
            yield from answer.iter_bytes()

    @contextmanager
    def _answer(self, call: Call[Any]) -> Iterator[httpx.Response]:
        """An answer of 2xx whose body is still to come. Raises ServerError."""
        answer = self._sent(call)
        try:
            yield answer
        except httpx.TransportError as error:
            raise Unreachable("broken_off", f"The answer broke off: {error}.", "Try again.") from error
        finally:
            answer.close()

    def _sent(self, call: Call[Any]) -> httpx.Response:
        patience_s = call.timeout_s or self._timeout_s
        end_s = time.monotonic() + patience_s
        for attempt in range(self._tries):
            last = attempt == self._tries - 1 or not call.replayable
            arguments = call.arguments() | {"timeout": timeouts(patience_s)}
            request = self._http.build_request(call.method, call.path, **arguments)
            try:
                answer = self._http.send(request, stream=True)
            except httpx.TransportError as error:
                if last or not (call.repeatable or isinstance(error, httpx.ConnectError)):
                    raise unreachable(error) from error
                time.sleep(BACKOFF_S * 2**attempt)
                continue
            if answer.is_success:
                return answer
            try:
                failure = error_of(answer.status_code, answer.read())
            except httpx.TransportError:
                failure = error_of(answer.status_code, b"")  # its words were lost, its status was not
            pause_s = wait_s(answer, attempt)
            if last or not call.may_repeat(answer.status_code) or time.monotonic() + pause_s > end_s:
                raise failure
            time.sleep(pause_s)
        raise AssertionError("tries is at least 1")


def timeouts(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0))


def wait_s(answer: httpx.Response, attempt: int) -> float:
    """Before the next try: what the server asks for, within reason."""
    try:
        asked_s = float(answer.headers["retry-after"])
    except (KeyError, ValueError):
        asked_s = BACKOFF_S * 2**attempt
    return min(max(asked_s, 0.0), LONGEST_WAIT_S)


def unreachable(error: httpx.TransportError) -> Unreachable:
    if isinstance(error, httpx.TimeoutException):
        return Unreachable("timeout", "The server did not answer in time.", "Raise timeout_s, or look at its log.")
    return Unreachable("unreachable", f"The server cannot be reached: {error}.", "Start it with `warmtalk serve`.")


def parsed_json(data: bytes, status: int) -> Any:
    try:
        return httpx.Response(200, content=data).json()
    except ValueError as error:
        raise ServerError("bad_answer", "The answer is not JSON.", "Check the address.", status) from error
