"""The client for asyncio: the same methods as Client's, awaited. What is said stands in calls.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
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
from warmtalk.client.sync_client import BACKOFF_S, POLL_S, URL, parsed_json, timeouts, unreachable, wait_s
from warmtalk.client.waiting import Waiting

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of typing from 3.11 on

T = TypeVar("T")


class AsyncClient:
    """A connection pool to one server; to be closed, or used in an `async with`.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if tries < 1:
            raise ValueError("tries is at least 1")
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
        """Say a text; return when it is whole. options: avatar_id, enhance, strength, voice, speed."""
        return await self._do(calls.speak(text, session_id=session_id, **options))

    async def speak_audio(
        self, audio: bytes | str | Path, session_id: str | None = None, **options: Unpack[AudioOptions]
    ) -> Speech:
        """Say a recording: bytes, or the path, of a WAV, FLAC, MP3 or OGG. options: avatar_id, enhance, strength."""
        return await self._do(calls.speak_audio(calls.bytes_of(audio), session_id=session_id, **options))

    async def stream(
        self,
        text: str | None = None,
        audio: bytes | str | Path | None = None,
        session_id: str | None = None,
        **options: Unpack[SpeechOptions],
    ) -> AsyncGenerator[bytes, None]:
        """Say a text or a recording; yield fragmented MP4 as it is made. Closing it ends the speech."""
        sound = None if audio is None else calls.bytes_of(audio)
        async with aclosing(self._bytes(calls.stream(text, sound, session_id=session_id, **options))) as parts:
            async for part in parts:
                yield part

    async def say(self, parts: AsyncIterable[str], session_id: str, **options: Unpack[ChatOptions]) -> Speech:
        """Say a text while it is still being written, such as a language model's tokens. options: as of `chat`."""
        return await self._do(calls.say((part.encode() async for part in parts), session_id, **options))

    async def transcribe(self, audio: bytes | str | Path, language: str | None = None) -> Transcript:
        """What is said in a recording: bytes, or the path, of a WAV, FLAC, MP3, OGG or WebM. language: ISO 639-1."""
        return await self._do(calls.transcribe(calls.bytes_of(audio), language))

    async def interrupt(self, session_id: str) -> Interruption:
        """Stop what the session says and is going to say."""
        return await self._do(calls.interrupt(session_id))

    async def voices(self) -> list[Voice]:
        """Voices of the server's engine, the default first."""
        return await self._do(calls.voices())

    # --- chat

    async def chat(self, message: str, session_id: str | None = None, **options: Unpack[ChatOptions]) -> ChatJob:
        """Have a message answered in speech; return at once. options: avatar_id, enhance, voice, speed."""
        return await self._do(calls.chat(message, session_id=session_id, **options))

    async def status(self, job_id: str) -> ChatJob:
        return await self._do(calls.status(job_id))

    async def wait(
        self, job: ChatJob | str, timeout_s: float = 300.0, progress: Callable[[ChatJob], None] | None = None
    ) -> ChatJob:
        """Poll a job until it is done; progress is told of each state. Raises ChatFailed, also after timeout_s.

        A job outlives its server: one that cannot be reached is waited for, up to a minute; then Unreachable is raised.
        """
        job_id, waiting = job if isinstance(job, str) else job.job_id, Waiting(timeout_s, progress)
        while True:
            try:
                known = await self.status(job_id)
            except (Unreachable, Busy):
                if waiting.is_in_vain():
                    raise
            else:
                if (answer := waiting.take(known)) is not None:
                    return answer
            await asyncio.sleep(POLL_S)

    async def ask(
        self, message: str, session_id: str | None = None, timeout_s: float = 300.0, **options: Unpack[ChatOptions]
    ) -> ChatJob:
        """`chat` and `wait`: the answer, when it has been spoken."""
        return await self.wait(await self.chat(message, session_id, **options), timeout_s)

    async def messages(self, session_id: str) -> list[Message]:
        """The conversation of a session, the oldest message first."""
        return await self._do(calls.messages(session_id))

    # --- sessions

    async def open_session(self, session_id: str | None = None, avatar_id: str | None = None) -> Session:
        """Open a session, so that it can be watched before anything is said."""
        return await self._do(calls.open_session(session_id, avatar_id))

    async def sessions(self) -> list[str]:
        return await self._do(calls.sessions())

    async def session(self, session_id: str) -> Session:
        return await self._do(calls.session(session_id))

    async def live(self, session_id: str) -> AsyncGenerator[bytes, None]:
        """The session live, as fragmented MP4 without end."""
        async with aclosing(self._bytes(calls.live(session_id))) as parts:
            async for part in parts:
                yield part

    async def events(self, session_id: str) -> AsyncGenerator[LiveEvent, None]:
        """What the live stream tells: what is heard when, how its making goes, and at last why it ends."""
        reader = EventReader()
        async with aclosing(self._bytes(calls.live(session_id))) as parts:
            async for part in parts:
                for event in reader.push(part):
                    yield event

    async def download(self, session_id: str, path: str | Path) -> Path:
        """Write the session so far to `path`, for any player; nothing is left where it breaks off. Raises OSError."""
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
        """Start the session afresh."""
        await self._do(calls.reset(session_id))

    async def close_session(self, session_id: str) -> None:
        """End the session: it can still be seen, and nothing more is said."""
        await self._do(calls.close_session(session_id))

    async def delete_session(self, session_id: str) -> bool:
        """Delete the session with its video; whether there was one."""
        return await self._do(calls.delete_session(session_id))

    # --- avatars

    async def avatars(self) -> list[Avatar]:
        return await self._do(calls.avatars())

    async def remove_avatar(self, avatar_id: str) -> list[str]:
        """Delete an avatar for good; the sessions that showed it and so have ended. Videos of its sessions stay."""
        return await self._do(calls.remove_avatar(avatar_id))

    async def prepare(
        self,
        source: str | Path,
        avatar_id: str,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[PrepareOptions],
    ) -> Prepared:
        """Prepare an avatar from a video or a picture. options: PrepareOptions."""
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
        raise ServerError("broken_off", "The preparation broke off.", "Send it again.")

    async def healthy(self) -> bool:
        """Whether the server is there and its graph answers."""
        try:
            return await self._do(calls.healthz())
        except ServerError:
            return False

    # --- how a call is carried out

    async def _do(self, call: Call[T]) -> T:
        async with self._answer(call) as answer:
            return call.read(parsed_json(await answer.aread(), answer.status_code))

    async def _bytes(self, call: Call[Any]) -> AsyncGenerator[bytes, None]:
        async with self._answer(call) as answer:
            async for part in answer.aiter_bytes():
                yield part

    @asynccontextmanager
    async def _answer(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        """An answer of 2xx whose body is still to come. Raises ServerError."""
        answer = await self._sent(call)
        try:
            yield answer
        except httpx.TransportError as error:
            raise Unreachable("broken_off", f"The answer broke off: {error}.", "Try again.") from error
        finally:
            await answer.aclose()

    async def _sent(self, call: Call[Any]) -> httpx.Response:
        patience_s = call.timeout_s or self._timeout_s
        end_s = time.monotonic() + patience_s
        for attempt in range(self._tries):
            last = attempt == self._tries - 1 or not call.replayable
            arguments = call.arguments() | {"timeout": timeouts(patience_s)}
            request = self._http.build_request(call.method, call.path, **arguments)
            try:
                answer = await self._http.send(request, stream=True)
            except httpx.TransportError as error:
                if last or not (call.repeatable or isinstance(error, httpx.ConnectError)):
                    raise unreachable(error) from error
                await asyncio.sleep(BACKOFF_S * 2**attempt)
                continue
            if answer.is_success:
                return answer
            try:
                failure = error_of(answer.status_code, await answer.aread())
            except httpx.TransportError:
                failure = error_of(answer.status_code, b"")  # its words were lost, its status was not
            pause_s = wait_s(answer, attempt)
            if last or not call.may_repeat(answer.status_code) or time.monotonic() + pause_s > end_s:
                raise failure
            await asyncio.sleep(pause_s)
        raise AssertionError("tries is at least 1")


async def _file_parts(path: Path, size: int) -> AsyncGenerator[bytes, None]:
    """calls.file_parts, read on a thread."""
    parts = calls.file_parts(path, size)
    while part := await asyncio.to_thread(next, parts, b""):
        yield part
