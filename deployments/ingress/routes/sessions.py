"""Sessions: open, watch, interrupt, close, delete, and the files of their video."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

import asyncio
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Query, Request, WebSocket
from fastapi.responses import Response, StreamingResponse
from ray.serve.handle import DeploymentHandle

from configs.schema import IngressConfig
from deployments.common.messages import DEFAULT_SESSION
from deployments.common.text_stream import WriterLimits
from deployments.ingress.app import api
from deployments.ingress.commands import interrupt_session
from deployments.ingress.downloads import Downloads
from deployments.ingress.limits import ConcurrencyLimit
from deployments.ingress.live.hubs import Hubs
from deployments.ingress.responses import NO_CACHE, client_of, file_range, length_of, live_stream, open_tagged
from deployments.ingress.schemas import PeerId, SessionBody, SessionId
from deployments.ingress.session_views import SessionViews, with_token
from deployments.ingress.transcriptions import Transcriptions
from deployments.ingress.uploads import Uploads
from deployments.ingress.webrtc.whep import Whep
from deployments.ingress.websocket.connection import Connection
from deployments.ingress.websocket.protocol import schema
from models.errors import BusyError, NotFoundError
from models.stitch.sidecar import committed_lines, sidecar_path

OPEN_ATTEMPTS = 3  # to open a video that is reset between finding and opening it


class SessionRoutes:
    _stitch: DeploymentHandle
    _chat: DeploymentHandle
    _hubs: Hubs
    _transcriptions: Transcriptions
    _uploads: Uploads
    _whep: Whep
    _views: SessionViews
    _downloads: Downloads
    _sockets: ConcurrencyLimit
    config: IngressConfig

    # --- the session itself

    @api.post("/sessions", summary="Open a session; it can be watched before anything is spoken", status_code=201)
    async def create(self, body: Annotated[SessionBody | None, Body()] = None) -> dict[str, Any]:
        session_id = (body and body.session_id) or uuid.uuid4().hex
        stitch = self._stitch.options(session_id=session_id)
        facts: dict[str, Any] = await stitch.create.remote(session_id, body and body.avatar_id)
        return facts

    @api.get("/sessions", summary="The ids of all sessions")
    async def sessions(self) -> list[str]:
        ids: list[str] = await self._stitch.sessions.remote()
        return ids

    @api.get("/sessions/{session_id}", summary="A session's state, size, duration and transcript")
    async def session(self, session_id: SessionId) -> dict[str, Any]:
        facts: dict[str, Any] = await self._stitch.options(session_id=session_id).session.remote(session_id)
        return facts

    @api.get("/reset", summary="Empty a session: its video and its conversation start again")
    async def reset(self, session_id: SessionId = DEFAULT_SESSION) -> dict[str, Any]:
        await self._chat.forget.remote(session_id)
        answer: dict[str, Any] = await self._stitch.options(session_id=session_id).reset.remote(session_id)
        return answer

    @api.delete("/sessions/{session_id}", summary="Delete a session with its video and its conversation")
    async def remove(self, session_id: SessionId) -> dict[str, Any]:
        await self._chat.forget.remote(session_id)
        answer: dict[str, Any] = await self._stitch.options(session_id=session_id).remove.remote(session_id)
        return answer

    @api.post("/sessions/{session_id}/interrupt", summary="Stop what the session speaks, and what is queued")
    async def interrupt(self, session_id: SessionId) -> dict[str, Any]:
        return await interrupt_session(self._stitch, self._chat, session_id)

    @api.post("/sessions/{session_id}/close", summary="End a session: its video stays, nothing more can be spoken")
    async def close(self, session_id: SessionId) -> dict[str, Any]:
        facts: dict[str, Any] = await self._stitch.options(session_id=session_id).close.remote(session_id)
        return facts

    # --- its files

    @api.head("/sessions/{session_id}/video.mp4", include_in_schema=False)
    @api.get("/sessions/{session_id}/video.mp4", summary="The growing video of a session; supports ranges")
    async def video(
        self,
        http: Request,
        session_id: SessionId,
        tag: Annotated[str | None, Query(description="Respond with 404 if the session was reset since.")] = None,
    ) -> Response:
        for _ in range(OPEN_ATTEMPTS):
            facts = await self._facts(session_id)
            if tag not in (None, facts["video_tag"]):  # a player must not mix ranges of two files
                raise NotFoundError(f"The session {session_id!r} was reset.", "Load its playlist again.")
            file = open_tagged(Path(facts["video_path"]), facts["video_tag"])
            if file is not None:
                head, client = http.method == "HEAD", client_of(http)
                return file_range(file, facts["size"], facts["video_tag"], http.headers, head, client=client)
        raise BusyError(f"The session {session_id!r} is being reset repeatedly.", "Try again in a few seconds.")

    @api.head("/sessions/{session_id}/index.m3u8", include_in_schema=False)
    @api.get("/sessions/{session_id}/index.m3u8", summary="The growing video as an HLS playlist")
    async def playlist(self, http: Request, session_id: SessionId) -> Response:
        facts = await self._facts(session_id)
        text = await asyncio.to_thread(self._views.playlist, facts)
        if token := http.query_params.get("token"):  # a player does not add it to the URLs of the playlist
            text = with_token(text, token)
        return Response(text, media_type="application/vnd.apple.mpegurl", headers=NO_CACHE)

    @api.head("/sessions/{session_id}/captions.vtt", include_in_schema=False)
    @api.get("/sessions/{session_id}/captions.vtt", summary="What was spoken, and when, as WebVTT")
    async def captions(
        self,
        session_id: SessionId,
        words: Annotated[bool, Query(description="Add a timestamp before each word whose time is known.")] = False,
    ) -> Response:
        facts = await self._facts(session_id)
        text = await asyncio.to_thread(self._views.captions, facts, words)
        return Response(text, media_type="text/vtt", headers=NO_CACHE)

    @api.head("/sessions/{session_id}/download.mp4", include_in_schema=False)
    @api.get("/sessions/{session_id}/download.mp4", summary="The session so far as one MP4 that plays while it loads")
    async def download(
        self,
        http: Request,
        session_id: SessionId,
        size: Annotated[
            int | None, Query(ge=1, description="The session as it was when video.mp4 had this many bytes.")
        ] = None,
    ) -> Response:
        facts = await self._facts(session_id)
        size = size or facts["size"]
        file, tag = await self._downloads.open(facts, size), f"{facts['video_tag']}-{size}"
        head, client = http.method == "HEAD", client_of(http)
        return file_range(file, length_of(file), tag, http.headers, head, f"{session_id}.mp4", client)

    @api.get("/sessions/{session_id}/sidecar.jsonl", summary="How each frame of the video was made, as JSON lines")
    async def sidecar(self, session_id: SessionId) -> Response:
        facts = await self._facts(session_id)
        lines = await asyncio.to_thread(committed_lines, sidecar_path(Path(facts["video_path"])))
        return Response(lines, media_type="application/x-ndjson")

    async def _facts(self, session_id: str) -> dict[str, Any]:
        """A session's state without its transcript: the cost does not depend on how much was spoken."""
        stitch = self._stitch.options(session_id=session_id)
        facts: dict[str, Any] = await stitch.session.remote(session_id, False)
        return facts

    # --- live

    @api.head("/sessions/{session_id}/live.mp4", include_in_schema=False)
    @api.get(
        "/sessions/{session_id}/live.mp4",
        summary="The session live, as an endless stream: idle motion, and speech when there is any",
        response_class=StreamingResponse,
    )
    async def live(self, http: Request, session_id: SessionId) -> Response:
        headers = {"Cache-Control": "no-store", "X-WarmTalk-Session": session_id}
        if http.method == "HEAD":  # only checks that the session exists: not a viewer yet
            await self._facts(session_id)
            return StreamingResponse(iter(()), media_type="video/mp4", headers=headers)  # no length: it is endless
        viewer = await self._hubs.view(session_id, client_of(http))
        return StreamingResponse(live_stream(viewer), media_type="video/mp4", headers=headers)

    @api.websocket("/sessions/{session_id}/ws")
    async def socket(self, socket: WebSocket, session_id: str) -> None:  # Connection checks the id, and reports it
        limits = WriterLimits.from_config(self.config)
        parts = self._stitch, self._chat, self._hubs, self._transcriptions, self._uploads
        connection = Connection(socket, session_id, *parts, limits)
        await connection.run(self._sockets, self.config.socket_idle_s)

    @api.get("/ws.json", summary="JSON schemas of the messages of /sessions/{session_id}/ws")
    async def messages_schema(self) -> dict[str, Any]:
        return schema()

    @api.post(
        "/sessions/{session_id}/whep",
        summary="The session live over WebRTC (WHEP): the body is an SDP offer, the response is the answer",
        status_code=201,
    )
    async def whep(self, http: Request, session_id: SessionId) -> Response:
        return await self._whep.play(http, session_id)

    @api.options("/sessions/{session_id}/whep", summary="Whether this server offers WebRTC, and with which ICE servers")
    async def whep_options(self, session_id: SessionId) -> Response:
        return self._whep.options()

    @api.delete("/sessions/{session_id}/whep/{peer_id}", summary="End a WebRTC connection")
    async def whep_end(self, session_id: SessionId, peer_id: PeerId) -> dict[str, Any]:
        await self._whep.end(peer_id)
        return {"session_id": session_id, "ended": peer_id}

    @api.patch("/sessions/{session_id}/whep/{peer_id}", include_in_schema=False)
    async def whep_patch(self, session_id: str, peer_id: str) -> Response:
        return self._whep.refuse_patch()
