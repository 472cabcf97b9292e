"""The HTTP face of the graph: thin. Checks requests, hands them to Stitch, Chat, Avatars and TTS; http.py maps errors.

Knows the stages as handles only, and no media.
"""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has rebound the routes

import asyncio
import contextlib
import uuid
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, Query, Request, WebSocket
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve

from configs.schema import IngressConfig
from deployments.bodies import SOUND_TYPES, ChatBody, SessionBody, SpeakBody, SpeechBody
from deployments.growing import speak_growing
from deployments.http import (
    NO_CACHE,
    BoundedJson,
    Cancel,
    api,
    file_range,
    live_parts,
    open_tagged,
    progress_lines,
    sound_parts,
    unlink_result,
    video_parts,
    whole_file,
    written,
)
from deployments.live import Live
from deployments.messages import schema
from deployments.origins import SameOrigin
from deployments.paths import output_path
from deployments.requests import DEFAULT_SESSION, ChatRequest, SpeakRequest
from deployments.stage import parse_config
from deployments.talk import Talk
from deployments.uploads import FOLDER, Uploads
from deployments.views import captions, faststart, playlist
from deployments.web import serve_page
from deployments.webrtc import Peers
from models.errors import BusyError, InputError, StageError
from models.ids import check_id
from models.llm.pieces import pieces
from models.stitch.sidecar import committed_lines, sidecar_path

# --- routes

OPEN_TRIES = 3  # of a video that is reset in the moment of being opened

SessionId = Annotated[str, Query(description="1 to 64 of a-z, 0-9, _ and -", examples=["alice"])]


serve_page(api)


@serve.ingress(api)  # here, so that a replica that imports this file has the routes bound, too
class Ingress:
    """Routes. Its `max_ongoing_requests` must exceed the number of viewers: an open stream is an ongoing request."""

    def __init__(self, stitch: Any, avatars: Any, tts: Any, chat: Any) -> None:
        self._stitch = stitch
        self._speak = stitch.options(stream=True, _by_reference=False)
        self._speak_upload = stitch.options(stream=True)  # a message by value holds 4 MB at most
        self._avatars = avatars
        self._tts = tts.options(stream=True, _by_reference=False)
        self._voices = tts
        self._chat = chat
        self.config = IngressConfig()
        self._uploads = Uploads(self.config)
        self._watch = stitch.options(stream=True, _by_reference=False)
        self._peers = Peers()
        self._live = Live(self._subscribe, lambda: self.config.max_viewers)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.config = parse_config("Ingress", user_config)
        self._uploads.config = self.config
        BoundedJson.max_bytes = int(self.config.max_json_kb * 2**10)
        SameOrigin.allowed = frozenset(self.config.allowed_origins)

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
        audio = await self._uploads.received(http)
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
        return StreamingResponse(sound_parts(first, parts), media_type=SOUND_TYPES[body.response_format])

    async def _answer(self, request: SpeakRequest) -> Response:
        """The summary as JSON, or the fragments as a stream whose first bytes are there before the status is sent."""
        check_id(request.session_id, "session id")
        if request.avatar_id is not None:
            check_id(request.avatar_id, "avatar id")
        handle = (self._speak_upload if request.audio else self._speak).options(session_id=request.session_id)
        events = handle.speak.remote(request)
        if not request.deliver:
            with contextlib.closing(Cancel(events)):
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
        return StreamingResponse(video_parts(first, events), media_type="video/mp4", headers=headers)

    @api.get("/voices", summary="Voices of the TTS engine; the first is the default")
    async def voices(self) -> list[str]:
        names: list[str] = await self._voices.voices.remote()
        return names

    # --- chat

    @api.post("/chat", summary="Have a message answered, in speech: the answer is a job's id, at once")
    async def chat(self, body: Annotated[ChatBody, Body()]) -> dict[str, str]:
        check_id(body.session_id, "session id")
        if body.avatar_id is not None:
            check_id(body.avatar_id, "avatar id")
        started: dict[str, str] = await self._chat.start.remote(ChatRequest(**body.model_dump()))
        return started

    @api.get("/status/{job_id}", summary="How far a chat job has come")
    async def status(self, job_id: str) -> dict[str, Any]:
        check_id(job_id, "job id")
        job: dict[str, Any] = await self._chat.status.remote(job_id)
        return job

    @api.get("/chat/{session_id}", summary="The conversation of a session, the oldest message first")
    async def messages(self, session_id: str) -> list[dict[str, str]]:
        check_id(session_id, "session id")
        said: list[dict[str, str]] = await self._chat.messages.remote(session_id)
        return said

    # --- sessions

    @api.post("/sessions", summary="Open a session, so that it can be watched before anything is said", status_code=201)
    async def create(self, body: Annotated[SessionBody | None, Body()] = None) -> dict[str, Any]:
        body = body or SessionBody(session_id=None, avatar_id=None)
        session_id = uuid.uuid4().hex if body.session_id is None else check_id(body.session_id, "session id")
        if body.avatar_id is not None:
            check_id(body.avatar_id, "avatar id")
        stitch = self._stitch.options(session_id=session_id)
        facts: dict[str, Any] = await stitch.create.remote(session_id, body.avatar_id)
        return facts

    @api.get("/reset", summary="Start a session afresh")
    async def reset(self, session_id: SessionId = DEFAULT_SESSION) -> dict[str, Any]:
        check_id(session_id, "session id")
        await self._chat.forget.remote(session_id)
        answer: dict[str, Any] = await self._stitch.options(session_id=session_id).reset.remote(session_id)
        return answer

    @api.delete("/sessions/{session_id}", summary="Delete a session and its video")
    async def remove(self, session_id: str) -> dict[str, Any]:
        check_id(session_id, "session id")
        await self._chat.forget.remote(session_id)
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

    @api.head("/sessions/{session_id}/video.mp4", include_in_schema=False)
    @api.get("/sessions/{session_id}/video.mp4", summary="The growing video of a session; serves ranges")
    async def video(self, http: Request, session_id: str) -> Response:
        for _ in range(OPEN_TRIES):
            facts = await self.session(session_id)
            file = open_tagged(Path(facts["video_path"]), facts["video_tag"])
            if file is not None:
                return file_range(file, facts["size"], facts["video_tag"], http.headers, http.method == "HEAD")
        raise BusyError(f"The session {session_id!r} is being reset again and again.", "Try again in a few seconds.")

    @api.get("/sessions/{session_id}/sidecar.jsonl", summary="How each frame of the video came about, JSON lines")
    async def sidecar(self, session_id: str) -> Response:
        facts = await self.session(session_id)
        lines = await asyncio.to_thread(committed_lines, sidecar_path(Path(facts["video_path"])))
        return Response(lines, media_type="application/x-ndjson")

    @api.get(
        "/sessions/{session_id}/live.mp4",
        summary="The session live, without end: idle motion, and speech when there is any",
        response_class=StreamingResponse,
    )
    async def live(self, http: Request, session_id: str) -> Response:
        check_id(session_id, "session id")
        client = (http.client.host, http.client.port) if http.client else None
        viewer = await self._live.view(session_id, client)
        headers = {"Cache-Control": "no-store", "X-WarmTalk-Session": session_id}
        return StreamingResponse(live_parts(viewer), media_type="video/mp4", headers=headers)

    @api.post("/sessions/{session_id}/close", summary="End a session: it can still be seen, and nothing more is said")
    async def close(self, session_id: str) -> dict[str, Any]:
        check_id(session_id, "session id")
        facts: dict[str, Any] = await self._stitch.options(session_id=session_id).close.remote(session_id)
        return facts

    @api.get("/sessions/{session_id}/captions.vtt", summary="What was said, and when, as WebVTT")
    async def captions(self, session_id: str) -> Response:
        facts = await self.session(session_id)
        return Response(await asyncio.to_thread(captions, facts), media_type="text/vtt", headers=NO_CACHE)

    @api.get("/sessions/{session_id}/index.m3u8", summary="The growing video as an HLS playlist")
    async def playlist(self, session_id: str) -> Response:
        facts = await self.session(session_id)
        text = await asyncio.to_thread(playlist, facts)
        return Response(text, media_type="application/vnd.apple.mpegurl", headers=NO_CACHE)

    @api.get("/sessions/{session_id}/download.mp4", summary="The session so far as one MP4 that plays while it loads")
    async def download(self, session_id: str) -> Response:
        facts = await self.session(session_id)
        made = asyncio.create_task(asyncio.to_thread(faststart, facts, output_path(FOLDER)))
        try:
            path = await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(unlink_result)  # the thread goes on
            raise
        return whole_file(path, f"{session_id}.mp4")

    @api.post("/sessions/{session_id}/say", summary="Say a text while it is still being written: a body of plain text")
    async def say(
        self,
        http: Request,
        session_id: str,
        avatar_id: str | None = None,
        enhance: bool | None = None,
        voice: str | None = None,
        speed: Annotated[float | None, Query(ge=0.5, le=2.0)] = None,
    ) -> Response:
        check_id(session_id, "session id")
        if avatar_id is not None:
            check_id(avatar_id, "avatar id")
        request = SpeakRequest(
            session_id, avatar_id=avatar_id, enhance=enhance, voice=voice, speed=speed, deliver=False
        )
        async with aclosing(speak_growing(self._stitch, request, pieces(written(http.stream())))) as events:
            summaries = [event.summary async for event in events if event.summary is not None]
        if not summaries:
            raise StageError("The utterance ended without a summary.", "Look at the log of Stitch.")
        return JSONResponse(summaries[-1])

    @api.post(
        "/sessions/{session_id}/whep",
        summary="The session live over WebRTC, as WHEP does: the body is an SDP offer, the answer is in the response",
        status_code=201,
    )
    async def whep(self, http: Request, session_id: str) -> Response:
        check_id(session_id, "session id")
        sdp = (await http.body()).decode("utf-8", "replace")
        peer_id, answer = await self._peers.offer(sdp, lambda: self._live.view(session_id))
        headers = {"Location": f"/sessions/{session_id}/whep/{peer_id}"}
        return Response(answer, 201, headers, "application/sdp")

    @api.delete("/sessions/{session_id}/whep/{peer_id}", summary="End a WebRTC connection")
    async def whep_end(self, session_id: str, peer_id: str) -> dict[str, Any]:
        await self._peers.end(check_id(peer_id, "connection id"))
        return {"session_id": session_id, "ended": peer_id}

    @api.get("/ws.json", summary="Schemas of the messages of /sessions/{session_id}/ws")
    async def messages_schema(self) -> dict[str, Any]:
        return schema()

    @api.websocket("/sessions/{session_id}/ws")
    async def socket(self, socket: WebSocket, session_id: str) -> None:
        await Talk(socket, session_id, self._stitch, self._chat, self._live).run()

    @api.post("/sessions/{session_id}/interrupt", summary="Stop what the session says and is going to say")
    async def interrupt(self, session_id: str) -> dict[str, Any]:
        await self.session(session_id)
        await self._chat.interrupt.remote(session_id)
        answer: dict[str, Any] = await self._stitch.options(session_id=session_id).interrupt.remote(session_id)
        return answer

    def _subscribe(self, session_id: str, position: int | None) -> Any:
        return self._watch.options(session_id=session_id).live.remote(session_id, position)

    # --- avatars

    @api.get("/avatars", summary="All prepared avatars")
    async def avatars(self) -> list[dict[str, Any]]:
        facts: list[dict[str, Any]] = await self._avatars.list.remote()
        return facts

    @api.get("/avatars/{avatar_id}/poster.jpg", summary="A small picture of an avatar's face")
    async def poster(self, avatar_id: str) -> Response:
        check_id(avatar_id, "avatar id")
        picture: bytes = await self._avatars.poster.remote(avatar_id)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

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
        geometry: Literal["similarity", "box", "musetalk"] | None = None,
        smoothing: Literal["zero_phase", "one_euro", "kalman", "none"] | None = None,
        affine_tracking_enabled: bool | None = None,
        scale_lock_enabled: bool | None = None,
        subpixel_enabled: bool | None = None,
    ) -> StreamingResponse:
        check_id(avatar_id, "avatar id")
        options: dict[str, Any] = {"fps": int(fps) if fps else None, "bbox_shift": bbox_shift}
        options |= {"extra_margin": extra_margin}
        options |= {"geometry": geometry, "smoothing": smoothing, "affine_tracking_enabled": affine_tracking_enabled}
        options |= {"scale_lock_enabled": scale_lock_enabled, "subpixel_enabled": subpixel_enabled}
        upload = await self._uploads.stored(http)
        prepare = self._avatars.options(stream=True, _by_reference=False).prepare
        events = prepare.remote(str(upload), avatar_id, force, options)
        try:
            first = await anext(events)  # a bad id or an existing avatar is a status, not a broken stream
        except BaseException:
            events.cancel()
            upload.unlink(missing_ok=True)
            raise
        return StreamingResponse(progress_lines(first, events, upload), media_type="application/x-ndjson")

    # --- the rest

    @api.get("/healthz", summary="Whether the ingress runs and Stitch answers it")
    async def healthz(self) -> dict[str, str]:
        await self._stitch.stats.remote()
        return {"status": "ok"}
