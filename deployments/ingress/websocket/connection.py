"""One WebSocket of a session: commands in as JSON, the live stream and what happens out. Belongs to the ingress.

messages.py says what is sent. What is under way ends with the socket.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import contextlib
import contextvars
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.common.errors import stream_items, to_warmtalk_error
from deployments.common.messages import ChatRequest, SpeakRequest
from deployments.common.text_stream import MAX_CHARS, speak_text_stream, text_too_long_error
from deployments.ingress.interrupt import hush
from deployments.ingress.limits import Places
from deployments.ingress.live.hub import Viewer
from deployments.ingress.live.hubs import Live
from deployments.ingress.transcriptions import Listening
from deployments.ingress.websocket.audio_buffer import Recording
from deployments.ingress.websocket.protocol import (
    COMMANDS,
    ENDINGS,
    Audio,
    Chat,
    Event,
    Interrupt,
    Speak,
    Text,
    Watch,
    asked_of,
)
from models.errors import BusyError, IdleError, InputError, TextError, WarmTalkError
from models.llm.token_stream import speakable_pieces
from models.runtime.ids import check_id
from models.speech.audio import wav_from_pcm

UNPLAYED = 16  # pieces that may be on their way to a client that says what it has played: 2.5 s
MAX_MESSAGE_CHARS = 256 * 2**10  # of JSON
MAX_SENTENCE = 400  # characters of an error that repeats what was sent
MAX_UNDER_WAY = 16  # commands of one socket that are being carried out
CHAT_POLL_S = 0.25


@dataclass(slots=True)
class _Written:
    """A text that is being written."""

    id: str | None
    parts: asyncio.Queue[str | TextError | None] = field(default_factory=asyncio.Queue)
    chars: int = 0
    over: bool = False  # it is said no more

    def add(self, part: str) -> None:
        """Hand on a part; nothing of a text that is over, or too long: that is told behind what came before."""
        if self.over or self.chars > MAX_CHARS:
            return
        self.chars += len(part)
        self.parts.put_nowait(part if self.chars <= MAX_CHARS else text_too_long_error())


class Talk:
    """One socket. `run` returns when it is closed, and everything that it began has ended."""

    def __init__(
        self, socket: WebSocket, session_id: str, stitch: Any, chat: Any, live: Live, listening: Listening
    ) -> None:
        self._socket, self._session_id = socket, session_id
        self._stitch, self._chat, self._live, self._listening = stitch, chat, live, listening
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._text: _Written | None = None
        self._recording = Recording()
        self._expects: Audio | None = None  # the next binary message belongs to it
        self._watching: asyncio.Task[None] | None = None
        self._sent = self._played = 0
        self._counts = False  # whether the client says what it has played
        self._room = asyncio.Event()

    async def run(self, places: Places, idle_s: float) -> None:
        """places: of sockets. idle_s: so long nothing may be sent, under way or watched; 0: for ever."""
        await self._socket.accept()
        try:
            with places.taken():
                check_id(self._session_id, "session id")
                await self._stitch.options(session_id=self._session_id).session.remote(self._session_id, False)
                await self._tell("ready", session_id=self._session_id)
                while (message := await self._received(idle_s))["type"] != "websocket.disconnect":
                    await self._take(message)
        except WebSocketDisconnect:
            return
        except (WarmTalkError, RayError, RayServeException) as error:
            known = to_warmtalk_error(error)
            await self._tell("failed", error=known.to_dict())
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it has gone meanwhile
                await self._socket.close(4000 + known.status, close_reason(known.message))
        finally:
            await self._end()

    async def _received(self, idle_s: float) -> Any:
        """What comes next. Raises IdleError."""
        coming = asyncio.ensure_future(self._socket.receive())
        try:
            while not (await asyncio.wait({coming}, timeout=idle_s or None))[0]:
                if not self._tasks and (self._watching is None or self._watching.done()):
                    raise IdleError(f"Nothing was sent or watched for {idle_s:g} s.", "Connect again when there is.")
            return coming.result()
        finally:
            coming.cancel()

    async def _end(self) -> None:
        """A socket that is gone takes along what it has begun."""
        self._recording.drop()
        tasks = [*self._tasks, *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    # --- what comes in

    async def _take(self, message: Any) -> None:
        command = None
        try:
            if (data := message.get("bytes")) is not None:
                self._take_audio(data)
                return
            text = message.get("text") or ""
            if len(text) > MAX_MESSAGE_CHARS:
                raise InputError(f"The message exceeds {MAX_MESSAGE_CHARS // 2**10} KB.", "Send less at a time.")
            command = COMMANDS.validate_json(text)
            await self._obey(command)
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"])) or "message"
            said = f"{place}: {found['msg']}"
            said = said if len(said) <= MAX_SENTENCE else f"{said[:MAX_SENTENCE]}…"
            await self._failed(InputError(f"{said}.", "GET /ws.json says what may be sent."), None)
        except (WarmTalkError, RayError, RayServeException) as error:
            await self._failed(error, command)

    async def _obey(self, command: Any) -> None:
        request = SpeakRequest(self._session_id, deliver=False)
        if isinstance(command, Speak):
            self._begin(self._speak(command, replace(request, text=command.text, **asked_of(command))))
        elif isinstance(command, Text):
            self._write(command, replace(request, **asked_of(command)))
        elif isinstance(command, Audio):
            self._expects = command  # what it announces comes, even where it is refused
            if command.mode == "chat":
                self._listening.require()
        elif isinstance(command, Chat):
            self._begin(self._answer(command))
        elif isinstance(command, Interrupt):
            await hush(self._stitch, self._chat, self._session_id)
            await self._tell("interrupted", command)
        elif isinstance(command, Watch):
            await self._watch(command)
        else:
            self._counts, self._played = True, command.pieces
            self._room.set()

    def _write(self, command: Text, request: SpeakRequest) -> None:
        """Add to the text that is being written, or begin one. Raises BusyError."""
        if self._text is not None and command.id not in (None, self._text.id):
            self._text.parts.put_nowait(None)
            self._text = None
        if self._text is None:
            text = _Written(command.id)
            self._begin(self._speak(command, request, text))
            self._text = text
        self._text.add(command.text)
        if command.last:
            self._text.parts.put_nowait(None)
            self._text = None

    def _take_audio(self, data: bytes) -> None:
        """A part of a recording; with its last one it is said. Raises InputError, BusyError."""
        if self._expects is None:
            raise InputError("A binary message came without being announced.", 'Send {"type": "audio"} before it.')
        command, self._expects = self._expects, None
        if command.mode == "chat" and not self._listening.there:
            return self._recording.drop()  # it has been refused when it was announced
        audio = self._recording.add(data, command.last)
        if audio is not None:
            audio = wav_from_pcm(audio, command.pcm_hz) if command.pcm_hz else audio
            request = SpeakRequest(self._session_id, audio=audio, enhance=command.enhance, deliver=False)
            self._begin(self._speak(command, request) if command.mode == "repeat" else self._hear(command, audio))

    # --- what is done

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= MAX_UNDER_WAY:
            work.close()
            raise BusyError("Too many commands of this socket are under way.", "Wait for some of them to end.")
        # in a context of its own: in the socket's, Serve would give all calls at a time the same id
        task = contextvars.Context().run(asyncio.create_task, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _speak(self, command: Any, request: SpeakRequest, text: "_Written | None" = None) -> None:
        """Have something said, and tell how it went."""
        await self._tell("started", command)
        try:
            if text is None:
                by_reference = bool(request.audio)  # a message by value holds 4 MB at most
                handle = self._stitch.options(
                    stream=True, _by_reference=by_reference, session_id=self._session_id
                ).speak.remote(request)
                events = _until_closed(handle)
            else:
                events = speak_text_stream(self._stitch, request, speakable_pieces(_taken(text.parts)))
            async with aclosing(events):
                async for event in events:
                    if event.summary is not None:
                        await self._tell("done", command, summary=event.summary)
        except (WarmTalkError, RayError, RayServeException) as error:
            await self._failed(error, command)
        finally:
            if text is not None:
                text.over = True

    async def _hear(self, command: Audio, audio: bytes) -> None:
        """Understand a recording, tell its text, and have it answered where there is any."""
        try:
            transcript = await self._listening.heard(audio, command.language)
        except (WarmTalkError, RayError, RayServeException) as error:
            return await self._failed(error, command)
        await self._tell("heard", command, text=transcript.text, language=transcript.language)
        if transcript.text:
            await self._answer(Chat(type="chat", message=transcript.text, id=command.id, **asked_of(command)))

    async def _answer(self, command: Chat) -> None:
        """Have a message answered; tell each change of the job, which ends with the socket."""
        try:
            started = await self._chat.start.remote(ChatRequest(command.message, self._session_id, **asked_of(command)))
            try:
                await self._tell_job(command, started)
            except asyncio.CancelledError:
                await self._chat.interrupt.remote(self._session_id, started["job_id"])
                raise
        except (WarmTalkError, RayError, RayServeException) as error:
            await self._failed(error, command)

    async def _tell_job(self, command: Chat, started: dict[str, Any]) -> None:
        await self._tell("started", command, job=started)
        told: dict[str, Any] = {}
        while told.get("status") not in ("done", "failed"):
            job = await self._chat.status.remote(started["job_id"])
            if job != told:
                await self._tell("done" if job["status"] == "done" else "status", command, job=job)
            told = job
            await asyncio.sleep(CHAT_POLL_S)

    async def _watch(self, command: Watch) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
            self._watching = None
        if command.on:
            client = (self._socket.client.host, self._socket.client.port) if self._socket.client else None
            viewer = await self._live.view(self._session_id, client)
            self._sent = self._played = 0
            self._watching = asyncio.create_task(self._show(viewer))
            self._watching.add_done_callback(lambda task: viewer.close())  # also of one that never came to run

    async def _show(self, viewer: Viewer) -> None:
        """Send the live stream, no faster than it is played where the client says how far it is."""
        try:
            await self._send_bytes(viewer.timeline.init)
            async with aclosing(viewer.pieces()) as shown:
                async for _, data in shown:
                    for kind, message in viewer.news():
                        await self._tell(kind, **{kind: message})
                    await self._send_bytes(data)
                    self._sent += 1
                    while self._counts and self._sent - self._played >= UNPLAYED:
                        self._room.clear()
                        await self._room.wait()
            if viewer.why is not None:
                await self._tell("ended", session_id=self._session_id, reason=viewer.why)
                with contextlib.suppress(RuntimeError):  # it has gone meanwhile
                    await self._socket.close(*ENDINGS[viewer.why])
        finally:
            viewer.close()

    # --- what goes out

    async def _send_bytes(self, data: bytes) -> None:
        async with self._sending:
            await self._socket.send_bytes(data)

    async def _tell(self, kind: Any, command: Any = None, **fields: Any) -> None:
        event = Event(type=kind, id=command.id if command is not None else None, **fields)
        async with self._sending:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it has gone meanwhile
                await self._socket.send_text(json.dumps(event.model_dump(exclude_none=True)))

    async def _failed(self, error: Exception, command: Any) -> None:
        await self._tell("failed", command, error=to_warmtalk_error(error).to_dict())


def close_reason(message: str) -> str:
    """As much of a sentence as a close frame holds: RFC 6455 leaves 123 bytes."""
    return message.encode()[:120].decode("utf-8", "ignore")


async def _until_closed(events: Any) -> AsyncGenerator[Any, None]:
    """The items of a streaming call, which is cancelled when the caller stops."""
    try:
        async with aclosing(stream_items(events)) as items:
            async for event in items:
                yield event
    finally:
        events.cancel()


async def _taken(queue: "asyncio.Queue[str | TextError | None]") -> AsyncGenerator[str, None]:
    while (text := await queue.get()) is not None:
        if isinstance(text, TextError):
            raise text
        yield text
