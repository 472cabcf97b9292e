"""One WebSocket connection of a session: executes commands, sends the live stream and events.

protocol.py defines the messages. Everything that a connection has started ends with it.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextlib
import contextvars
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import cancel_call, stream_items, to_warmtalk_error
from deployments.common.messages import ChatRequest, SpeakEvent, SpeakRequest
from deployments.common.requests import sent_error
from deployments.common.speech_call import SpeechCall
from deployments.common.text_stream import MAX_CHARS, WriterLimits, speak_text_stream, text_too_long_error
from deployments.ingress.commands import interrupt_session
from deployments.ingress.limits import ConcurrencyLimit
from deployments.ingress.live.hub import Viewer
from deployments.ingress.live.hubs import Hubs
from deployments.ingress.transcriptions import Transcriptions
from deployments.ingress.uploads import Uploads, discard
from deployments.ingress.websocket.audio_upload import AudioUpload
from deployments.ingress.websocket.protocol import (
    CLOSE_CODES,
    COMMANDS,
    Audio,
    Chat,
    Command,
    Event,
    Interrupt,
    Played,
    Speak,
    Text,
    Watch,
)
from models.errors import BusyError, IdleError, InputError, TextError, WarmTalkError
from models.runtime.ids import check_id

MAX_UNPLAYED = 16  # live fragments sent but not played, for a client that reports what it has played: 2.5 s
MAX_MESSAGE_CHARS = 256 * 2**10  # of JSON
MAX_ERROR_CHARS = 400  # of an error message that repeats what the client sent
MAX_COMMANDS = 16  # running at a time on one connection
MAX_REASON_BYTES = 120  # of a close frame, RFC 6455 allows 123
CHAT_POLL_S = 0.25
STOP_TIMEOUT_S = 5.0  # for the tasks of a closed connection to end
STOPPING_CHECK_S = 0.5  # while this replica is being stopped: how often a connection checks that it is idle


@dataclass(slots=True)
class _TextInput:
    """A text that is still being written. parts: None is its end."""

    id: str | None
    parts: asyncio.Queue[str | TextError | None] = field(default_factory=asyncio.Queue)
    chars: int = 0
    over: bool = False  # it is not spoken any more

    def add(self, part: str) -> None:
        """Queue a part. A text that is too long ends with an error, after what came before was spoken."""
        if self.over or self.chars > MAX_CHARS:
            return
        self.chars += len(part)
        self.parts.put_nowait(part if self.chars <= MAX_CHARS else text_too_long_error())

    async def read(self) -> AsyncGenerator[str, None]:
        """The parts as they arrive. Raises TextError."""
        while (part := await self.parts.get()) is not None:
            if isinstance(part, TextError):
                raise part
            yield part


class Connection:
    """`run` returns when the WebSocket is closed and everything that it started has ended."""

    def __init__(
        self,
        socket: WebSocket,
        session_id: str,
        stitch: DeploymentHandle,
        chat: DeploymentHandle,
        hubs: Hubs,
        transcriptions: Transcriptions,
        uploads: Uploads,
        limits: WriterLimits,
    ) -> None:
        self._socket, self._session_id = socket, session_id
        self._stitch, self._chat, self._hubs, self._transcriptions = stitch, chat, hubs, transcriptions
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()  # running commands
        self._sending = asyncio.Lock()
        self._text: _TextInput | None = None
        self._audio = AudioUpload(uploads)
        self._announced: Audio | None = None  # the command that announced the next binary message
        self._watching: asyncio.Task[None] | None = None
        self._sent = self._played = 0  # live fragments
        self._reports_played = False
        self._played_more = asyncio.Event()

    async def run(self, limit: ConcurrencyLimit, idle_timeout_s: float) -> None:
        """idle_timeout_s: time without messages, running commands or live stream until it is closed; 0: never."""
        await self._socket.accept()
        leaving = asyncio.create_task(self._leave_when_stopping())
        try:
            with limit.acquire():
                check_id(self._session_id, "session id")
                await self._stitch.options(session_id=self._session_id).session.remote(self._session_id, False)
                await self._send_event("ready", session_id=self._session_id)
                while (message := await self._receive(idle_timeout_s))["type"] != "websocket.disconnect":
                    await self._handle(message)
        except WebSocketDisconnect:
            return
        except (WarmTalkError, RayError, RayServeException) as error:
            known = to_warmtalk_error(error)
            await self._send_event("failed", error=sent_error(known))
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left
                await self._socket.close(4000 + known.status, close_reason(known.message))
        finally:
            leaving.cancel()
            await self._stop()

    async def _receive(self, idle_timeout_s: float) -> Any:
        """The next message. Raises IdleError."""
        receiving = asyncio.ensure_future(self._socket.receive())
        try:
            while not (await asyncio.wait({receiving}, timeout=idle_timeout_s or None))[0]:
                if not self._tasks and (self._watching is None or self._watching.done()):
                    raise IdleError(
                        f"Nothing was sent or watched for {idle_timeout_s:g} s.", "Connect again when you need it."
                    )
            return receiving.result()
        finally:
            receiving.cancel()

    async def _leave_when_stopping(self) -> None:
        """Close the connection when this replica is being stopped, once no command runs and nothing is watched."""
        await self._hubs.draining.wait()
        while self._tasks or (self._watching is not None and not self._watching.done()):
            await asyncio.sleep(STOPPING_CHECK_S)
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left
            await self._socket.close(*CLOSE_CODES["stopped"])

    async def _stop(self) -> None:
        self._audio.clear()
        tasks = [*self._tasks, *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)

    # --- messages from the client

    async def _handle(self, message: Any) -> None:
        command: Command | None = None
        try:
            if (data := message.get("bytes")) is not None:
                await self._handle_audio(data)
                return
            text = message.get("text") or ""
            if len(text) > MAX_MESSAGE_CHARS:
                raise InputError(f"The message exceeds {MAX_MESSAGE_CHARS // 2**10} KB.", "Send less at a time.")
            command = COMMANDS.validate_json(text)
            await self._execute(command)
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"])) or "message"
            what = f"{place}: {found['msg']}"
            what = what if len(what) <= MAX_ERROR_CHARS else f"{what[:MAX_ERROR_CHARS]}…"
            await self._send_failed(InputError(f"{what}.", "See GET /ws.json for the messages."), None)
        except (WarmTalkError, RayError, RayServeException) as error:
            await self._send_failed(error, command)

    async def _execute(self, command: Command) -> None:
        if isinstance(command, Speak):
            request = SpeakRequest(self._session_id, command.text, deliver=False, **command.speech_options())
            self._start(self._speak(command, request))
        elif isinstance(command, Text):
            self._add_text(command)
        elif isinstance(command, Audio):
            self._announced = command  # first, because its binary message arrives even if the command is refused
            if command.mode == "chat":
                self._transcriptions.require()
        elif isinstance(command, Chat):
            self._start(self._answer(command))
        elif isinstance(command, Interrupt):
            await interrupt_session(self._stitch, self._chat, self._session_id)
            await self._send_event("interrupted", command)
        elif isinstance(command, Watch):
            await self._watch(command)
        elif isinstance(command, Played):
            self._reports_played, self._played = True, command.pieces
            self._played_more.set()

    def _add_text(self, command: Text) -> None:
        """Add a part to the text that is being written, or start a new text. Raises BusyError."""
        if self._text is not None and command.id not in (None, self._text.id):
            self._text.parts.put_nowait(None)
            self._text = None
        if self._text is None:
            text = _TextInput(command.id)
            request = SpeakRequest(self._session_id, deliver=False, **command.speech_options())
            self._start(self._speak(command, request, text))
            self._text = text
        self._text.add(command.text)
        if command.last:
            self._text.parts.put_nowait(None)
            self._text = None

    async def _handle_audio(self, data: bytes) -> None:
        """Add a part to the recording; after the last part, speak or answer it.

        Raises InputError, BusyError, DiskFullError.
        """
        if self._announced is None:
            raise InputError("A binary message was not announced.", 'Send {"type": "audio"} before it.')
        command, self._announced = self._announced, None
        if command.mode == "chat" and not self._transcriptions.available:
            return self._audio.clear()  # the command was refused already
        upload = await self._audio.add(data, command.last, command.pcm_hz)
        if upload is None:
            return
        if command.mode == "chat":
            self._start(self._transcribe(command, upload), upload)
        else:
            options = command.speech_options()
            request = SpeakRequest(self._session_id, audio_path=str(upload), deliver=False, **options)
            self._start(self._speak(command, request), upload)

    # --- running commands

    def _start(self, work: Coroutine[Any, Any, None], upload: Path | None = None) -> None:
        """Run a command beside others. upload: is deleted when the command ends. Raises BusyError."""
        if len(self._tasks) >= MAX_COMMANDS:
            work.close()
            if upload is not None:
                discard(upload)
            raise BusyError("Too many commands run on this connection.", "Wait until some of them end.")
        # In a context of its own: in the connection's context, Serve would give all calls the same request id.
        task = contextvars.Context().run(asyncio.create_task, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if upload is not None:
            task.add_done_callback(lambda _: discard(upload))

    async def _speak(self, command: Command, request: SpeakRequest, text: "_TextInput | None" = None) -> None:
        await self._send_event("started", command)
        try:
            if text is None:
                events = self._stitch_events(request)
            else:
                events = speak_text_stream(self._stitch, request, self._limits.pieces(text.read()))
            failed = False
            async with aclosing(events):
                async for event in events:
                    if event.error is not None:
                        failed = True
                        self._end_text(text)
                        await self._send_failed(event.error, command)
                    if event.summary is not None and not failed:
                        await self._send_event("done", command, summary=event.summary)
        except (WarmTalkError, RayError, RayServeException) as error:
            await self._send_failed(error, command)
        finally:
            if text is not None:
                text.over = True

    def _end_text(self, text: "_TextInput | None") -> None:
        """After its writer was silent for too long: what arrives now is another text."""
        if text is not None:
            text.over = True
            if self._text is text and text.chars <= MAX_CHARS:
                self._text = None

    async def _stitch_events(self, request: SpeakRequest) -> AsyncGenerator[SpeakEvent, None]:
        """The events of an utterance, which is cancelled when the caller stops."""
        response = SpeechCall(self._stitch, request)
        try:
            async with aclosing(stream_items(response)) as items:
                async for event in items:
                    yield event
        finally:
            cancel_call(response)

    async def _transcribe(self, command: Audio, upload: Path) -> None:
        """Recognize a recording, report its text, and answer it if there is any."""
        try:
            transcript = await self._transcriptions.transcribe(upload, command.language)
        except (WarmTalkError, RayError, RayServeException) as error:
            return await self._send_failed(error, command)
        await self._send_event("heard", command, text=transcript.text, language=transcript.language)
        if transcript.text:
            chat = Chat(type="chat", message=transcript.text, id=command.id, **command.speech_options())
            await self._answer(chat)

    async def _answer(self, command: Chat) -> None:
        """Have a message answered, and report each change of the chat job. Interrupt it when the connection ends."""
        request = ChatRequest(message=command.message, session_id=self._session_id, **command.speech_options())
        try:
            started = await self._chat.start.remote(request)
            try:
                await self._report_job(command, started)
            except asyncio.CancelledError:
                await self._chat.interrupt.remote(self._session_id, started["job_id"])
                raise
        except (WarmTalkError, RayError, RayServeException) as error:
            await self._send_failed(error, command)

    async def _report_job(self, command: Chat, started: dict[str, Any]) -> None:
        await self._send_event("started", command, job=started)
        reported: dict[str, Any] = {}
        while reported.get("status") not in ("done", "failed"):
            job = await self._chat.status.remote(started["job_id"])
            if job != reported:
                await self._send_event("done" if job["status"] == "done" else "status", command, job=job)
            reported = job
            await asyncio.sleep(CHAT_POLL_S)

    # --- the live stream

    async def _watch(self, command: Watch) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
            self._watching = None
        if command.on:
            client = (self._socket.client.host, self._socket.client.port) if self._socket.client else None
            viewer = await self._hubs.view(self._session_id, client)
            viewer.is_busy = lambda: bool(self._tasks)
            self._sent = self._played = 0
            self._watching = asyncio.create_task(self._send_live(viewer))
            self._watching.add_done_callback(lambda task: viewer.close())  # also if the task never started

    async def _send_live(self, viewer: Viewer) -> None:
        """Send the live stream; to a client that reports what it has played, at most MAX_UNPLAYED fragments ahead."""
        try:
            await self._send_bytes(viewer.timeline.init)
            async with aclosing(viewer.muxed()) as fragments:
                async for _, data in fragments:
                    for kind, message in viewer.take_messages():
                        await self._send_event(kind, None, **{kind: message})
                    await self._send_bytes(data)
                    self._sent += 1
                    while self._reports_played and self._sent - self._played >= MAX_UNPLAYED:
                        self._played_more.clear()
                        await self._played_more.wait()
            if viewer.ending is not None:
                await self._send_event("ended", session_id=self._session_id, reason=viewer.ending)
                with contextlib.suppress(RuntimeError):  # the client has left
                    await self._socket.close(*CLOSE_CODES[viewer.ending])
        finally:
            viewer.close()

    # --- messages to the client

    async def _send_bytes(self, data: bytes) -> None:
        async with self._sending:
            await self._socket.send_bytes(data)

    async def _send_event(self, kind: Any, command: Command | None = None, **fields: Any) -> None:
        event = Event(type=kind, id=command.id if command is not None else None, **fields)
        async with self._sending:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left
                await self._socket.send_text(json.dumps(event.model_dump(exclude_none=True)))

    async def _send_failed(self, error: Exception, command: Command | None) -> None:
        await self._send_event("failed", command, error=sent_error(to_warmtalk_error(error)))


def close_reason(message: str) -> str:
    """The message, cut to what a close frame can hold."""
    return message.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore")
