"""The HTTP face of the graph: thin. Checks requests, hands them to Stitch and Avatars, maps errors to JSON.

Knows the stages as handles only, and no media.
"""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has rebound the routes

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Query, Request
from fastapi import HTTPException as HTTPError
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.schema import IngressConfig
from deployments.paths import output_path
from deployments.requests import DEFAULT_SESSION, SpeakRequest
from deployments.stage import parse_config
from models.errors import BusyError, InputError, StageError, WarmTalkError
from models.ids import check_id

log = logging.getLogger("ray.serve")

READ_CHUNK = 2**18  # bytes
UPLOADS = ("/speak/audio", "/avatars")  # their bodies are files, and have a limit of their own
ABANDONED_S = 24 * 3600.0  # an upload this old belongs to an ingress that died over it
REMEDIES = {404: "See /docs for what there is.", 405: "See /docs for what there is.", 413: "Send a shorter text."}

api = FastAPI(
    title="WarmTalk",
    version="0.1.0",
    summary="Text or speech in, a talking-head video stream out.",
    description='Every error is JSON: `{"error": {"code", "message", "remedy"}}`.',
)

# --- errors, mapped once. serve.ingress freezes `api` as it is when the class is made: handlers come first


def _known(error: Exception) -> WarmTalkError:
    """The WarmTalkError behind whatever a handle raised."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, WarmTalkError):
        return cause
    if isinstance(error, WarmTalkError):
        return error
    if isinstance(error, BackPressureError):
        return BusyError("All replicas are busy and their queues are full.", "Try again in a few seconds.")
    if isinstance(error, DeploymentUnavailableError):
        return BusyError("A stage has no running replica at the moment.", "Try again in a few seconds.")
    log.error("unexpected error", exc_info=error)
    return StageError("A stage failed while it served the request.", "Send it again; the server's log has the details.")


def _response(error: WarmTalkError) -> JSONResponse:
    headers = {"Retry-After": "2"} if error.status == 429 else None
    return JSONResponse({"error": error.to_dict()}, error.status, headers)


class _Route(APIRoute):
    """Makes a WarmTalkError of what a handle raises. Serve sets its own handlers for some of its errors: plain text."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def handle(http: Request) -> Response:
            try:
                return await inner(http)
            except (RayError, RayServeException) as error:
                raise _known(error) from error

        return handle


api.router.route_class = _Route


@api.exception_handler(WarmTalkError)
async def _on_error(http: Request, error: Exception) -> JSONResponse:
    return _response(_known(error))


@api.exception_handler(RequestValidationError)
async def _on_invalid(http: Request, error: RequestValidationError) -> JSONResponse:
    details = "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}".lstrip(": ") for item in error.errors())
    return _response(InputError(f"The request is not valid: {details}.", "See /docs for its form."))


@api.exception_handler(HTTPException)
async def _on_http(http: Request, error: HTTPException) -> JSONResponse:
    remedy = REMEDIES.get(error.status_code, "")
    return JSONResponse(
        {"error": {"code": f"http_{error.status_code}", "message": str(error.detail), "remedy": remedy}},
        error.status_code,
        error.headers,
    )


@api.exception_handler(Exception)
async def _on_bug(http: Request, error: Exception) -> JSONResponse:
    return _response(_known(error))


class _BoundedJson:
    """Refuses a body of JSON beyond `max_bytes` while it comes, so that it never fills the memory."""

    max_bytes = int(IngressConfig().max_json_kb * 2**10)  # the replica's: Ingress.reconfigure sets it

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(UPLOADS):
            return await self._app(scope, receive, send)
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise HTTPError(413, f"The request exceeds {self.max_bytes / 2**10:g} KB.")
            return message

        await self._app(scope, bounded, send)


api.add_middleware(_BoundedJson)

# --- answers that come in pieces


def _file_range(path: Path, size: int, wanted: str) -> Response:
    """The first `size` bytes of a growing file, or one range of them: what lies behind may be half a fragment."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.strip())
    if not match or match.group(0) == "bytes=-":  # no range, or several: the whole is a valid answer
        headers["Content-Length"] = str(size)
        return StreamingResponse(_read(path, 0, size), 200, headers, "video/mp4")
    first, last = match.groups()
    begin = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if begin >= end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
    headers |= {"Content-Range": f"bytes {begin}-{end - 1}/{size}", "Content-Length": str(end - begin)}
    return StreamingResponse(_read(path, begin, end), 206, headers, "video/mp4")


def _read(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while begin < end and (part := file.read(min(READ_CHUNK, end - begin))):
            begin += len(part)
            yield part


class _Cancel:
    """Cancels a streaming call when closed; a finished one does not mind."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def close(self) -> None:
        self._events.cancel()


async def _stream(first: list[Any], events: Any) -> AsyncIterator[bytes]:
    try:
        for event in first:
            yield event.data
        async for event in events:
            if event.data:
                yield event.data
    finally:
        events.cancel()


async def _sound(first: bytes, parts: Any) -> AsyncIterator[bytes]:
    try:
        yield first
        async for part in parts:
            yield part
    finally:
        parts.cancel()


async def _progress(first: dict[str, Any], events: Any, upload: Path) -> AsyncIterator[bytes]:
    """Progress as JSON lines; an error that comes after the status was sent is the last line."""
    try:
        yield json.dumps(first).encode() + b"\n"
        async for event in events:
            yield json.dumps(event).encode() + b"\n"
    except (RayError, RayServeException, WarmTalkError) as error:
        yield json.dumps({"error": _known(error).to_dict()}).encode() + b"\n"
    finally:
        events.cancel()
        upload.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


# --- routes

SessionId = Annotated[str, Query(description="1 to 64 of a-z, 0-9, _ and -", examples=["alice"])]


class SpeakBody(BaseModel):
    """The JSON of POST /speak."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "Hello, nice to meet you."},
                {"text": "And again.", "session_id": "alice", "stream": True},
            ]
        },
    )
    text: str = Field(description="What is to be said.")
    session_id: str = Field(DEFAULT_SESSION, description="One viewer's growing conversation.")
    avatar_id: str | None = Field(None, description="A prepared avatar; the configured one by default.")
    enhance: bool | None = Field(None, description="Face restoration; the configured choice by default.")
    strength: float | None = Field(None, ge=0, le=1, description="Of the restoration.")
    voice: str | None = Field(None, description="A voice of the TTS engine.")
    speed: float | None = Field(None, ge=0.5, le=2.0, description="1 is the voice's own pace.")
    stream: bool = Field(False, description="Answer with fragmented MP4 as it is made.")


SOUND_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class SpeechBody(BaseModel):
    """The JSON of POST /v1/audio/speech, as OpenAI's clients send it; what is not named here is passed over."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "Hello.", "response_format": "wav"}]})
    input: str = Field(description="What is to be said.")
    model: str = Field("", description="Any: the engine is the one in the config.")
    voice: str = Field("default", description="A voice of the TTS engine, or `default`.")
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float | None = Field(None, ge=0.5, le=2.0, description="1 is the voice's own pace.")
    stream_format: Literal["audio"] = "audio"


@serve.ingress(api)  # here, so that a replica that imports this file has the routes bound, too
class Ingress:
    """Routes. Its `max_ongoing_requests` must exceed the number of viewers: an open stream is an ongoing request."""

    def __init__(self, stitch: Any, avatars: Any, tts: Any) -> None:
        self._stitch = stitch
        self._speak = stitch.options(stream=True, _by_reference=False)
        self._speak_upload = stitch.options(stream=True)  # a message by value holds 4 MB at most
        self._avatars = avatars
        self._tts = tts.options(stream=True, _by_reference=False)
        self.config = IngressConfig()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.config = parse_config("Ingress", user_config)
        _BoundedJson.max_bytes = int(self.config.max_json_kb * 2**10)

    # --- speaking

    @api.post("/speak", summary="Say a text")
    async def speak(self, body: Annotated[SpeakBody, Body()]) -> Response:
        request = SpeakRequest(
            session_id=body.session_id,
            text=body.text,
            avatar_id=body.avatar_id,
            enhance=body.enhance,
            strength=body.strength,
            voice=body.voice,
            speed=body.speed,
            deliver=body.stream,
        )
        return await self._answer(request)

    @api.post("/speak/audio", summary="Say a recording: the body is a WAV, FLAC, MP3 or OGG file")
    async def speak_audio(
        self,
        http: Request,
        session_id: SessionId = DEFAULT_SESSION,
        avatar_id: str | None = None,
        enhance: bool | None = None,
        strength: Annotated[float | None, Query(ge=0, le=1)] = None,
        stream: bool = False,
    ) -> Response:
        audio = await self._body(http)
        if not audio:
            raise InputError("The request has no body.", "Send a WAV, FLAC, MP3 or OGG file as the request's body.")
        return await self._answer(SpeakRequest(session_id, "", audio, avatar_id, enhance, strength, deliver=stream))

    @api.post("/v1/audio/speech", summary="Say a text as sound alone, streamed; OpenAI's clients can call it")
    async def sound(self, body: Annotated[SpeechBody, Body()]) -> Response:
        voice = None if body.voice == "default" else body.voice
        parts = self._tts.encoded.remote(body.input, voice, body.speed, body.response_format)
        try:
            first = await anext(parts)  # an unknown voice or a full queue is a status, not a broken stream
        except BaseException:
            parts.cancel()
            raise
        return StreamingResponse(_sound(first, parts), media_type=SOUND_TYPES[body.response_format])

    async def _answer(self, request: SpeakRequest) -> Response:
        """The summary as JSON, or the fragments as a stream whose first bytes are there before the status is sent."""
        check_id(request.session_id, "session id")
        if request.avatar_id is not None:
            check_id(request.avatar_id, "avatar id")
        handle = (self._speak_upload if request.audio else self._speak).options(session_id=request.session_id)
        events = handle.speak.remote(request)
        if not request.deliver:
            with contextlib.closing(_Cancel(events)):
                async for event in events:
                    if event.summary is not None:
                        return JSONResponse(event.summary)
            raise StageError("The utterance ended without a summary.", "Look at the log of Stitch.")
        try:
            first = [await anext(events), await anext(events)]  # init segment and fragment: a failure is a status
        except BaseException:
            events.cancel()
            raise
        headers = {"X-WarmTalk-Session": request.session_id, "Cache-Control": "no-store"}
        return StreamingResponse(_stream(first, events), media_type="video/mp4", headers=headers)

    async def _body(self, http: Request) -> bytes:
        limit = int(self.config.max_upload_mb * 2**20)
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > limit:
                raise InputError(f"The upload exceeds {self.config.max_upload_mb:g} MB.", "Send a smaller file.")
            parts.append(part)
        return b"".join(parts)

    # --- sessions

    @api.get("/reset", summary="Start a session afresh")
    async def reset(self, session_id: SessionId = DEFAULT_SESSION) -> dict[str, Any]:
        check_id(session_id, "session id")
        answer: dict[str, Any] = await self._stitch.options(session_id=session_id).reset.remote(session_id)
        return answer

    @api.delete("/sessions/{session_id}", summary="Delete a session and its video")
    async def remove(self, session_id: str) -> dict[str, Any]:
        check_id(session_id, "session id")
        answer: dict[str, Any] = await self._stitch.options(session_id=session_id).remove.remote(session_id)
        return answer

    @api.get("/sessions", summary="Ids of all sessions")
    async def sessions(self) -> list[str]:
        ids: list[str] = await self._stitch.sessions.remote()
        return ids

    @api.get("/sessions/{session_id}", summary="Facts of a session, with its transcript")
    async def session(self, session_id: str) -> dict[str, Any]:
        check_id(session_id, "session id")
        facts: dict[str, Any] = await self._stitch.options(session_id=session_id).session.remote(session_id)
        return facts

    @api.get("/sessions/{session_id}/video.mp4", summary="The growing video of a session; serves ranges")
    async def video(self, http: Request, session_id: str) -> Response:
        facts = await self.session(session_id)
        return _file_range(Path(facts["video_path"]), facts["size"], http.headers.get("range", ""))

    # --- avatars

    @api.get("/avatars", summary="All prepared avatars")
    async def avatars(self) -> list[dict[str, Any]]:
        facts: list[dict[str, Any]] = await self._avatars.list.remote()
        return facts

    @api.post(
        "/avatars", summary="Prepare an avatar: the body is a video or a picture; the answer is progress, a JSON a line"
    )
    async def prepare(
        self,
        http: Request,
        avatar_id: str,
        force: bool = False,
        fps: Literal["24", "25", "30"] | None = None,  # a query is text
        bbox_shift: Annotated[int | None, Query(ge=-50, le=50)] = None,
        extra_margin: Annotated[int | None, Query(ge=0, le=100)] = None,
    ) -> StreamingResponse:
        check_id(avatar_id, "avatar id")
        options = {"fps": int(fps) if fps else None, "bbox_shift": bbox_shift, "extra_margin": extra_margin}
        upload = await self._store_upload(http)
        prepare = self._avatars.options(stream=True, _by_reference=False).prepare
        events = prepare.remote(str(upload), avatar_id, force, options)
        try:
            first = await anext(events)  # a bad id or an existing avatar is a status, not a broken stream
        except BaseException:
            events.cancel()
            upload.unlink(missing_ok=True)
            raise
        return StreamingResponse(_progress(first, events, upload), media_type="application/x-ndjson")

    async def _store_upload(self, http: Request) -> Path:
        """The request's body as a file of a name that the caller cannot choose; removed if the upload breaks off."""
        folder = output_path("results/uploads")
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        path, size, limit = folder / uuid.uuid4().hex, 0, int(self.config.max_upload_mb * 2**20)
        try:
            with path.open("wb") as file:
                async for part in http.stream():
                    size += len(part)
                    if size > limit:
                        raise InputError(
                            f"The upload exceeds {self.config.max_upload_mb:g} MB.", "Send a smaller file."
                        )
                    await asyncio.to_thread(file.write, part)
            if not size:
                raise InputError("The request has no body.", "Send a video or a picture as the request's body.")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    # --- the rest

    @api.get("/healthz", summary="Whether the ingress runs and Stitch answers it")
    async def healthz(self) -> dict[str, str]:
        await self._stitch.stats.remote()
        return {"status": "ok"}
