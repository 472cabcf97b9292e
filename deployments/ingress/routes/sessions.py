"""The routes of sessions, a part of the ingress: opened, watched, interrupted, their files, closed, deleted.

Knows the stages as handles only, and no media.
"""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has rebound the routes

import asyncio
import uuid
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Query, Request, WebSocket
from fastapi.responses import JSONResponse, Response, StreamingResponse

from configs.schema import IngressConfig
from deployments.common.messages import DEFAULT_SESSION, SpeakRequest
from deployments.common.text_stream import speak_text_stream
from deployments.ingress.downloads import Downloads
from deployments.ingress.interrupt import hush
from deployments.ingress.limits import Places
from deployments.ingress.live.hubs import Live
from deployments.ingress.responses import (
    NO_CACHE,
    api,
    client_of,
    file_range,
    length_of,
    live_parts,
    open_tagged,
    written,
)
from deployments.ingress.schemas import SessionBody
from deployments.ingress.session_views import Views, with_token
from deployments.ingress.transcriptions import Listening
from deployments.ingress.webrtc.whep import Whep
from deployments.ingress.websocket.connection import Talk
from deployments.ingress.websocket.protocol import schema
from models.errors import BusyError, NotFoundError, StageError
from models.llm.token_stream import speakable_pieces
from models.runtime.ids import check_id
from models.stitch.sidecar import committed_lines, sidecar_path

OPEN_TRIES = 3  # of a video that is reset in the moment of being opened

SessionId = Annotated[str, Query(description="1 to 64 of a-z, 0-9, _ and -", examples=["alice"])]


class SessionRoutes:
    """Ingress inherits them; it has the handles, the hubs, the WebRTC connections and the files made for viewers."""

    _stitch: Any
    _chat: Any
    _live: Live
    _listening: Listening
    _whep: Whep
    _views: Views
    _downloads: Downloads
    _sockets: Places
    config: IngressConfig

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

    async def _facts(self, session_id: str) -> dict[str, Any]:
        """Where a session's video is and how much there is of it, at the same cost however much was said in it."""
        check_id(session_id, "session id")
        stitch = self._stitch.options(session_id=session_id)
        facts: dict[str, Any] = await stitch.session.remote(session_id, False)
        return facts

    @api.head("/sessions/{session_id}/video.mp4", include_in_schema=False)
    @api.get("/sessions/{session_id}/video.mp4", summary="The growing video of a session; serves ranges")
    async def video(self, http: Request, session_id: str, tag: str | None = None) -> Response:
        for _ in range(OPEN_TRIES):
            facts = await self._facts(session_id)
            if tag not in (None, facts["video_tag"]):  # a player's ranges must not come from another file
                raise NotFoundError(f"The session {session_id!r} was reset since.", "Load its playlist anew.")
            file = open_tagged(Path(facts["video_path"]), facts["video_tag"])
            if file is not None:
                head, client = http.method == "HEAD", client_of(http)
                return file_range(file, facts["size"], facts["video_tag"], http.headers, head, client=client)
        raise BusyError(f"The session {session_id!r} is being reset again and again.", "Try again in a few seconds.")

    @api.get("/sessions/{session_id}/sidecar.jsonl", summary="How each frame of the video came about, JSON lines")
    async def sidecar(self, session_id: str) -> Response:
        facts = await self._facts(session_id)
        lines = await asyncio.to_thread(committed_lines, sidecar_path(Path(facts["video_path"])))
        return Response(lines, media_type="application/x-ndjson")

    @api.head("/sessions/{session_id}/live.mp4", include_in_schema=False)
    @api.get(
        "/sessions/{session_id}/live.mp4",
        summary="The session live, without end: idle motion, and speech when there is any",
        response_class=StreamingResponse,
    )
    async def live(self, http: Request, session_id: str) -> Response:
        headers = {"Cache-Control": "no-store", "X-WarmTalk-Session": session_id}
        if http.method == "HEAD":  # who looks first whether it is there is no viewer yet
            await self._facts(session_id)
            return StreamingResponse(iter(()), media_type="video/mp4", headers=headers)  # of no length: it has no end
        check_id(session_id, "session id")
        viewer = await self._live.view(session_id, client_of(http))
        return StreamingResponse(live_parts(viewer), media_type="video/mp4", headers=headers)

    @api.post("/sessions/{session_id}/close", summary="End a session: it can still be seen, and nothing more is said")
    async def close(self, session_id: str) -> dict[str, Any]:
        check_id(session_id, "session id")
        facts: dict[str, Any] = await self._stitch.options(session_id=session_id).close.remote(session_id)
        return facts

    @api.head("/sessions/{session_id}/captions.vtt", include_in_schema=False)
    @api.get("/sessions/{session_id}/captions.vtt", summary="What was said, and when, as WebVTT")
    async def captions(
        self,
        session_id: str,
        words: Annotated[
            bool, Query(description="With a timestamp before each word, where the voice knows it.")
        ] = False,
    ) -> Response:
        facts = await self._facts(session_id)
        text = await asyncio.to_thread(self._views.captions, facts, words)
        return Response(text, media_type="text/vtt", headers=NO_CACHE)

    @api.head("/sessions/{session_id}/index.m3u8", include_in_schema=False)
    @api.get("/sessions/{session_id}/index.m3u8", summary="The growing video as an HLS playlist")
    async def playlist(self, http: Request, session_id: str) -> Response:
        facts = await self._facts(session_id)
        text = await asyncio.to_thread(self._views.playlist, facts)
        if token := http.query_params.get("token"):  # players do not carry it on to what a playlist names
            text = with_token(text, token)
        return Response(text, media_type="application/vnd.apple.mpegurl", headers=NO_CACHE)

    @api.head("/sessions/{session_id}/download.mp4", include_in_schema=False)
    @api.get("/sessions/{session_id}/download.mp4", summary="The session so far as one MP4 that plays while it loads")
    async def download(
        self,
        http: Request,
        session_id: str,
        size: Annotated[int | None, Query(ge=1, description="As it was when its video had so many bytes.")] = None,
    ) -> Response:
        facts = await self._facts(session_id)
        size = size or facts["size"]
        file, tag = await self._downloads.open(facts, size), f"{facts['video_tag']}-{size}"
        head, client = http.method == "HEAD", client_of(http)
        return file_range(file, length_of(file), tag, http.headers, head, f"{session_id}.mp4", client)

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
        async with aclosing(speak_text_stream(self._stitch, request, speakable_pieces(written(http.stream())))) as events:
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
        return await self._whep.play(http, session_id)

    @api.options("/sessions/{session_id}/whep", summary="Whether there is WebRTC here, and with which ICE servers")
    async def whep_options(self, session_id: str) -> Response:
        check_id(session_id, "session id")
        return self._whep.options()

    @api.delete("/sessions/{session_id}/whep/{peer_id}", summary="End a WebRTC connection")
    async def whep_end(self, session_id: str, peer_id: str) -> dict[str, Any]:
        await self._whep.end(peer_id)
        return {"session_id": session_id, "ended": peer_id}

    @api.patch("/sessions/{session_id}/whep/{peer_id}", include_in_schema=False)
    async def whep_patch(self, session_id: str, peer_id: str) -> Response:
        return self._whep.refuse()

    async def ended(self, peer_id: str) -> bool:
        """Called by another ingress replica: end a WebRTC connection, if it is one of this."""
        return await self._whep.ended(peer_id)

    async def stats(self) -> dict[str, int]:
        """Of this replica: hubs, viewers, pieces that slow ones missed, those over WebRTC, and tasks."""
        return {**self._live.stats(), "webrtc": len(self._whep.peers), "tasks": len(asyncio.all_tasks())}

    @api.get("/ws.json", summary="Schemas of the messages of /sessions/{session_id}/ws")
    async def messages_schema(self) -> dict[str, Any]:
        return schema()

    @api.websocket("/sessions/{session_id}/ws")
    async def socket(self, socket: WebSocket, session_id: str) -> None:
        talk = Talk(socket, session_id, self._stitch, self._chat, self._live, self._listening)
        await talk.run(self._sockets, self.config.socket_idle_s)

    @api.post("/sessions/{session_id}/interrupt", summary="Stop what the session says and is going to say")
    async def interrupt(self, session_id: str) -> dict[str, Any]:
        check_id(session_id, "session id")
        return await hush(self._stitch, self._chat, session_id)
