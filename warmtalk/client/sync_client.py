"""The synchronous client: each method returns the parsed answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx

from warmtalk.client import calls
from warmtalk.client.calls import ApiCall
from warmtalk.client.errors import Busy, ServerError, Unreachable
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
from warmtalk.client.retries import Attempts, broken_off, parsed_json, timeouts
from warmtalk.client.waiting import POLL_S, JobWait

T = TypeVar("T")

URL = "http://127.0.0.1:8000"


class Client:
    """A connection pool to one server. Use it in a `with` block, or close it.

    timeout_s: longest time without a byte; calls that speak have a longer one. tries: attempts per call, where the
    server is busy or the call is safe to repeat. api_key: $WARMTALK_API_KEY by default. transport: an httpx transport,
    for example with a proxy. Every method raises a ServerError of warmtalk.client.errors.
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
            raise ValueError("tries must be at least 1")
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
        """Speak a text; return when it is finished. options: avatar_id, enhance, strength, voice, speed."""
        return self._do(calls.speak(text, session_id=session_id, **options))

    def speak_audio(
        self, audio: bytes | str | Path, session_id: str | None = None, **options: Unpack[AudioOptions]
    ) -> Speech:
        """Speak a recording: WAV, FLAC, MP3 or OGG as bytes or path. options: avatar_id, enhance, strength."""
        return self._do(calls.speak_audio(calls.bytes_of(audio), session_id=session_id, **options))

    def stream(
        self,
        text: str | None = None,
        audio: bytes | str | Path | None = None,
        session_id: str | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Generator[bytes, None, None]:
        """Speak a text or a recording; yield fragmented MP4 as it is produced. Closing it stops the speech."""
        sound = None if audio is None else calls.bytes_of(audio)
        yield from self._bytes(calls.stream(text, sound, session_id=session_id, **options))

    def say(self, parts: Iterable[str], session_id: str, **options: Unpack[ChatOptions]) -> Speech:
        """Speak a text while it is being written, such as a language model's tokens. options: those of `chat`.

        Raises Refused with the code `idle` after `parts` has paused for longer than the server's writer_timeout_s, when
        it ends; what came before the pause is spoken. An empty line among the parts keeps the text open.
        """
        return self._do(calls.say((part.encode() for part in parts), session_id, **options))

    def transcribe(self, audio: bytes | str | Path, language: str | None = None) -> Transcript:
        """Transcribe a recording: WAV, FLAC, MP3, OGG or WebM as bytes or path. language: ISO 639-1."""
        return self._do(calls.transcribe(calls.bytes_of(audio), language))

    def interrupt(self, session_id: str) -> Interruption:
        """Stop the session's current utterance and drop the queued ones."""
        return self._do(calls.interrupt(session_id))

    def voices(self) -> list[Voice]:
        """Voices of the server's TTS engine, the default first."""
        return self._do(calls.voices())

    # --- chat

    def chat(self, message: str, session_id: str | None = None, **options: Unpack[ChatOptions]) -> ChatJob:
        """Send a message to answer in speech; return without waiting. options: avatar_id, enhance, voice, speed."""
        return self._do(calls.chat(message, session_id=session_id, **options))

    def status(self, job_id: str) -> ChatJob:
        return self._do(calls.status(job_id))

    def wait(
        self, job: ChatJob | str, timeout_s: float = 300.0, progress: Callable[[ChatJob], None] | None = None
    ) -> ChatJob:
        """Poll a job until it is done; `progress` gets each state. Raises ChatFailed, also after timeout_s.

        A job survives a restart of the server: Unreachable is raised only after an outage of one minute.
        """
        job_id, waiting = job if isinstance(job, str) else job.job_id, JobWait(timeout_s, progress)
        while True:
            try:
                known = self.status(job_id)
            except (Unreachable, Busy):
                if waiting.give_up():
                    raise
            else:
                if (answer := waiting.take(known)) is not None:
                    return answer
            time.sleep(POLL_S)

    def ask(
        self, message: str, session_id: str | None = None, timeout_s: float = 300.0, **options: Unpack[ChatOptions]
    ) -> ChatJob:
        """`chat`, then `wait`: return when the answer has been spoken."""
        return self.wait(self.chat(message, session_id, **options), timeout_s)

    def messages(self, session_id: str) -> list[Message]:
        """The conversation of a session, oldest message first."""
        return self._do(calls.messages(session_id))

    # --- sessions

    def open_session(self, session_id: str | None = None, avatar_id: str | None = None) -> Session:
        """Open a session, so that viewers can join before anything is said."""
        return self._do(calls.open_session(session_id, avatar_id))

    def sessions(self) -> list[str]:
        return self._do(calls.sessions())

    def session(self, session_id: str) -> Session:
        return self._do(calls.session(session_id))

    def live(self, session_id: str) -> Generator[bytes, None, None]:
        """The live stream of a session: fragmented MP4 without end."""
        yield from self._bytes(calls.live(session_id))

    def events(self, session_id: str) -> Generator[LiveEvent, None, None]:
        """Events of the live stream: captions with times, progress of an utterance, and why the stream ends."""
        reader = EventReader()
        for part in self._bytes(calls.live(session_id)):
            yield from reader.push(part)

    def download(self, session_id: str, path: str | Path) -> Path:
        """Write the session so far to `path`, for any player; whole, or not at all. Raises OSError."""
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
        """Delete the session's video and start again with an empty one."""
        self._do(calls.reset(session_id))

    def close_session(self, session_id: str) -> None:
        """End the session: its video stays, and nothing more can be said."""
        self._do(calls.close_session(session_id))

    def delete_session(self, session_id: str) -> bool:
        """Delete the session with its video; returns whether it existed."""
        return self._do(calls.delete_session(session_id))

    # --- avatars

    def avatars(self) -> list[Avatar]:
        return self._do(calls.avatars())

    def remove_avatar(self, avatar_id: str) -> list[str]:
        """Delete an avatar; returns the ids of its sessions, which end. Their videos stay."""
        return self._do(calls.remove_avatar(avatar_id))

    def prepare(
        self,
        source: str | Path,
        avatar_id: str,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[PrepareOptions],
    ) -> Prepared:
        """Prepare an avatar from a video or a picture. options: those of PrepareOptions."""
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
        raise ServerError("broken_off", "The answer ended before the preparation was finished.", "Send it again.")

    def healthy(self) -> bool:
        """Whether the server and its graph answer."""
        try:
            return self._do(calls.healthz())
        except ServerError:
            return False

    # --- sending a call

    def _do(self, call: ApiCall[T]) -> T:
        with self._answer(call) as answer:
            return call.parse(parsed_json(answer.read(), answer.status_code))

    def _bytes(self, call: ApiCall[Any]) -> Generator[bytes, None, None]:
        with self._answer(call) as answer:
            yield from answer.iter_bytes()

    @contextmanager
    def _answer(self, call: ApiCall[Any]) -> Iterator[httpx.Response]:
        """A 2xx answer whose body is not read yet. Raises ServerError."""
        answer = self._sent(call)
        try:
            yield answer
        except httpx.TransportError as error:
            raise broken_off(error) from error
        finally:
            answer.close()

    def _sent(self, call: ApiCall[Any]) -> httpx.Response:
        attempts = Attempts(call, self._tries, self._timeout_s)
        while True:
            request = self._http.build_request(call.method, call.path, **attempts.arguments())
            try:
                answer = self._http.send(request, stream=True)
            except httpx.TransportError as error:
                pause_s = attempts.pause_after_error(error)
            else:
                if answer.is_success:
                    return answer
                body = b""
                with suppress(httpx.TransportError):  # the status counts even if the body is lost
                    body = answer.read()
                pause_s = attempts.pause_after_refusal(answer, body)
            time.sleep(pause_s)
