"""The client for asyncio: the methods of Client, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
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
from warmtalk.client.sync_client import URL
from warmtalk.client.waiting import POLL_S, JobWait

T = TypeVar("T")


class AsyncClient:
    """A connection pool to one server. Use it in an `async with` block, or close it.

    The arguments are those of Client. Every method raises a ServerError of warmtalk.client.errors.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        timeout_s: float = 60.0,
        tries: int = 3,
        api_key: str | None = None,
        headers: dict[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if tries < 1:
            raise ValueError("tries must be at least 1")
        self._tries = tries
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers=calls.authorization(api_key) | (headers or {}),
            timeout=timeouts(timeout_s),
            transport=transport,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- speaking

    async def speak(self, text: str, session_id: str | None = None, **options: Unpack[SpeechOptions]) -> Speech:
        """Speak a text; return when it is finished. options: avatar_id, enhance, strength, voice, speed."""
        return await self._do(calls.speak(text, session_id=session_id, **options))

    async def speak_audio(
        self, audio: bytes | str | Path, session_id: str | None = None, **options: Unpack[AudioOptions]
    ) -> Speech:
        """Speak a recording: WAV, FLAC, MP3 or OGG as bytes or path. options: avatar_id, enhance, strength."""
        return await self._do(calls.speak_audio(calls.bytes_of(audio), session_id=session_id, **options))

    async def stream(
        self,
        text: str | None = None,
        audio: bytes | str | Path | None = None,
        session_id: str | None = None,
        **options: Unpack[SpeechOptions],
    ) -> AsyncGenerator[bytes, None]:
        """Speak a text or a recording; yield fragmented MP4 as it is produced. Closing it stops the speech."""
        sound = None if audio is None else calls.bytes_of(audio)
        async with aclosing(self._bytes(calls.stream(text, sound, session_id=session_id, **options))) as parts:
            async for part in parts:
                yield part

    async def say(self, parts: AsyncIterable[str], session_id: str, **options: Unpack[ChatOptions]) -> Speech:
        """Speak a text while it is being written, such as a language model's tokens. options: those of `chat`.

        Raises Refused with the code `idle` after `parts` has paused for longer than the server's writer_timeout_s, when
        it ends; what came before the pause is spoken. An empty line among the parts keeps the text open.
        """
        return await self._do(calls.say((part.encode() async for part in parts), session_id, **options))

    async def transcribe(self, audio: bytes | str | Path, language: str | None = None) -> Transcript:
        """Transcribe a recording: WAV, FLAC, MP3, OGG or WebM as bytes or path. language: ISO 639-1."""
        return await self._do(calls.transcribe(calls.bytes_of(audio), language))

    async def interrupt(self, session_id: str) -> Interruption:
        """Stop the session's current utterance and drop the queued ones."""
        return await self._do(calls.interrupt(session_id))

    async def voices(self) -> list[Voice]:
        """Voices of the server's TTS engine, the default first."""
        return await self._do(calls.voices())

    # --- chat

    async def chat(self, message: str, session_id: str | None = None, **options: Unpack[ChatOptions]) -> ChatJob:
        """Send a message to answer in speech; return without waiting. options: avatar_id, enhance, voice, speed."""
        return await self._do(calls.chat(message, session_id=session_id, **options))

    async def status(self, job_id: str) -> ChatJob:
        return await self._do(calls.status(job_id))

    async def wait(
        self, job: ChatJob | str, timeout_s: float = 300.0, progress: Callable[[ChatJob], None] | None = None
    ) -> ChatJob:
        """Poll a job until it is done; `progress` gets each state. Raises ChatFailed, also after timeout_s.

        A job survives a restart of the server: Unreachable is raised only after an outage of one minute.
        """
        job_id, waiting = job if isinstance(job, str) else job.job_id, JobWait(timeout_s, progress)
        while True:
            try:
                known = await self.status(job_id)
            except (Unreachable, Busy):
                if waiting.give_up():
                    raise
            else:
                if (answer := waiting.take(known)) is not None:
                    return answer
            await asyncio.sleep(POLL_S)

    async def ask(
        self, message: str, session_id: str | None = None, timeout_s: float = 300.0, **options: Unpack[ChatOptions]
    ) -> ChatJob:
        """`chat`, then `wait`: return when the answer has been spoken."""
        return await self.wait(await self.chat(message, session_id, **options), timeout_s)

    async def messages(self, session_id: str) -> list[Message]:
        """The conversation of a session, oldest message first."""
        return await self._do(calls.messages(session_id))

    # --- sessions

    async def open_session(self, session_id: str | None = None, avatar_id: str | None = None) -> Session:
        """Open a session, so that viewers can join before anything is said."""
        return await self._do(calls.open_session(session_id, avatar_id))

    async def sessions(self) -> list[str]:
        return await self._do(calls.sessions())

    async def session(self, session_id: str) -> Session:
        return await self._do(calls.session(session_id))

    async def live(self, session_id: str) -> AsyncGenerator[bytes, None]:
        """The live stream of a session: fragmented MP4 without end."""
        async with aclosing(self._bytes(calls.live(session_id))) as parts:
            async for part in parts:
                yield part

    async def events(self, session_id: str) -> AsyncGenerator[LiveEvent, None]:
        """Events of the live stream: captions with times, progress of an utterance, and why the stream ends."""
        reader = EventReader()
        async with aclosing(self._bytes(calls.live(session_id))) as parts:
            async for part in parts:
                for event in reader.push(part):
                    yield event

    async def download(self, session_id: str, path: str | Path) -> Path:
        """Write the session so far to `path`, for any player; whole, or not at all. Raises OSError."""
        path, part = Path(path), Path(f"{path}.part")
        try:
            with part.open("wb") as file:
                async for data in self._bytes(calls.download(session_id)):
                    file.write(data)
            return part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    async def captions(self, session_id: str) -> str:
        """The session's captions as WebVTT."""
        return b"".join([part async for part in self._bytes(calls.captions(session_id))]).decode()

    async def reset(self, session_id: str) -> None:
        """Delete the session's video and start again with an empty one."""
        await self._do(calls.reset(session_id))

    async def close_session(self, session_id: str) -> None:
        """End the session: its video stays, and nothing more can be said."""
        await self._do(calls.close_session(session_id))

    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with its video; returns whether it existed."""
        return await self._do(calls.delete_session(session_id))

    # --- avatars

    async def avatars(self) -> list[Avatar]:
        return await self._do(calls.avatars())

    async def remove_avatar(self, avatar_id: str) -> list[str]:
        """Delete an avatar; returns the ids of its sessions, which end. Their videos stay."""
        return await self._do(calls.remove_avatar(avatar_id))

    async def prepare(
        self,
        source: str | Path,
        avatar_id: str,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[PrepareOptions],
    ) -> Prepared:
        """Prepare an avatar from a video or a picture. options: those of PrepareOptions."""
        path = Path(source)
        size = (await asyncio.to_thread(path.stat)).st_size
        call = calls.prepare(lambda: _file_parts(path, size), size, avatar_id, **options)
        async with self._answer(call) as answer:
            async for line in answer.aiter_lines():
                event = calls.progress_of(line, avatar_id)
                if isinstance(event, Prepared):
                    return event
                if progress:
                    progress(event)
        raise ServerError("broken_off", "The answer ended before the preparation was finished.", "Send it again.")

    async def healthy(self) -> bool:
        """Whether the server and its graph answer."""
        try:
            return await self._do(calls.healthz())
        except ServerError:
            return False

    # --- sending a call

    async def _do(self, call: ApiCall[T]) -> T:
        async with self._answer(call) as answer:
            return call.parse(parsed_json(await answer.aread(), answer.status_code))

    async def _bytes(self, call: ApiCall[Any]) -> AsyncGenerator[bytes, None]:
        async with self._answer(call) as answer:
            async for part in answer.aiter_bytes():
                yield part

    @asynccontextmanager
    async def _answer(self, call: ApiCall[Any]) -> AsyncIterator[httpx.Response]:
        """A 2xx answer whose body is not read yet. Raises ServerError."""
        answer = await self._sent(call)
        try:
            yield answer
        except httpx.TransportError as error:
            raise broken_off(error) from error
        finally:
            await answer.aclose()

    async def _sent(self, call: ApiCall[Any]) -> httpx.Response:
        attempts = Attempts(call, self._tries, self._timeout_s)
        while True:
            request = self._http.build_request(call.method, call.path, **attempts.arguments())
            try:
                answer = await self._http.send(request, stream=True)
            except httpx.TransportError as error:
                pause_s = attempts.pause_after_error(error)
            else:
                if answer.is_success:
                    return answer
                body = b""
                with suppress(httpx.TransportError):  # the status counts even if the body is lost
                    body = await answer.aread()
                pause_s = attempts.pause_after_refusal(answer, body)
            await asyncio.sleep(pause_s)


async def _file_parts(path: Path, size: int) -> AsyncGenerator[bytes, None]:
    """calls.file_parts, read on a thread."""
    parts = calls.file_parts(path, size)
    while part := await asyncio.to_thread(next, parts, b""):
        yield part
