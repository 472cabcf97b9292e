"""The HTTP face of the graph: thin. Checks requests, hands them to Stitch, Chat, Avatars and TTS; http.py maps errors.

What stands below /sessions is in session_routes.py. Knows the stages as handles only, and no media.
"""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has rebound the routes

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Body, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve

from configs.schema import IngressConfig
from deployments.common.stage import FOOTPRINT_KEYS, footprint
from deployments.common.messages import DEFAULT_SESSION, ChatRequest, SpeakRequest
from deployments.common.paths import output_path
from deployments.common.stage import parse_config
from deployments.ingress.avatar_removal import forgotten
from deployments.ingress.downloads import FOLDER, Downloads
from deployments.ingress.limits import Places
from deployments.ingress.live.hubs import Live
from deployments.ingress.responses import (
    BoundedJson,
    Cancel,
    api,
    progress_lines,
    sound_parts,
    video_parts,
)
from deployments.ingress.routes.sessions import SessionId, SessionRoutes
from deployments.ingress.schemas import SOUND_TYPES, ChatBody, SpeakBody, SpeechBody
from deployments.ingress.security.allowed_hosts import KnownHosts
from deployments.ingress.security.auth import Access, serve_login
from deployments.ingress.security.keys import Keys
from deployments.ingress.security.origins import SameOrigin
from deployments.ingress.session_views import Views
from deployments.ingress.static_page import serve_page
from deployments.ingress.temp_dirs import Scratch
from deployments.ingress.transcriptions import FORM, Listening
from deployments.ingress.uploads import Uploads, discard
from deployments.ingress.webrtc.whep import Whep, ended_by_a_replica
from models.errors import InputError, NotFoundError, StageError
from models.runtime.ids import check_id

serve_page(api)
serve_login(api)


@serve.ingress(api)  # here, so that a replica that imports this file has the routes bound, too
class Ingress(SessionRoutes):
    """Routes. Its `max_ongoing_requests` must exceed the number of viewers: an open stream is an ongoing request."""

    def __init__(self, stitch: Any, avatars: Any, tts: Any, chat: Any, recognize: Any = None) -> None:
        self._stitch = stitch
        self._speak = stitch.options(stream=True, _by_reference=False)
        self._speak_upload = stitch.options(stream=True)  # a message by value holds 4 MB at most
        self._avatars = avatars
        self._tts = tts.options(stream=True, _by_reference=False)
        self._voices = tts
        self._began_s = int(time.time())
        self._chat = chat
        self.config = IngressConfig()
        self._uploads = Uploads(self.config)
        self._views = Views()
        self._scratch = Scratch(output_path(FOLDER))
        self._downloads = Downloads(self._scratch.folder, self.config.max_downloads)
        self._listening = Listening(recognize, self._uploads)
        self._watch = stitch.options(stream=True, _by_reference=False)
        self._sockets = Places(lambda: self.config.max_sockets, "As many sockets are open as this server allows.")
        self._live = Live(self._subscribe, lambda: self.config.max_viewers, self._clock)
        self._whep = Whep(self._live, lambda: self.config, ended_by_a_replica)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.config = parse_config("Ingress", user_config)
        self._uploads.config = self.config
        self._downloads.close()
        self._downloads = Downloads(self._scratch.folder, self.config.max_downloads)
        BoundedJson.max_bytes = int(self.config.max_json_kb * 2**10)
        SameOrigin.allowed = frozenset(self.config.allowed_origins)
        Access.keys, Access.login_s = Keys.of_environment(self.config.api_keys_env), self.config.login_days * 86400
        KnownHosts.allowed = self.config.allowed_hosts or (["*"] if Access.keys else [])

    def _subscribe(self, session_id: str, position: int | None) -> Any:
        return self._watch.options(session_id=session_id).live.remote(session_id, position)

    async def _clock(self, session_id: str) -> tuple[str, float]:
        answer: tuple[str, float] = await self._stitch.options(session_id=session_id).clock.remote()
        return answer

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
        parts = self._tts.encoded.remote(body.input, body.voice, body.speed, body.response_format)
        try:
            first = await anext(parts)  # an unknown voice or a full queue is a status, not a broken stream
        except BaseException:
            parts.cancel()
            raise
        return StreamingResponse(sound_parts(first, parts), media_type=SOUND_TYPES[body.response_format])

    @api.post(
        "/v1/audio/transcriptions",
        summary="What is said in a recording; OpenAI's clients can call it",
        openapi_extra=FORM,
        response_model=None,
    )
    async def transcribe(self, http: Request) -> Response:
        return await self._listening.answer(http)

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

    @api.get("/voices", summary="Voices of the TTS engine, and whether each is here; the first is the default")
    async def voices(self) -> list[dict[str, Any]]:
        known: list[dict[str, Any]] = await self._voices.voices.remote()
        return known

    @api.get("/v1/models", summary="The engines behind /v1/audio, as OpenAI's clients ask for them")
    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [model async for model in self._openai_models()]}

    @api.get("/v1/models/{model}", summary="One of them")
    async def model(self, model: str) -> dict[str, Any]:
        known = {entry["id"]: entry async for entry in self._openai_models()}
        if model not in known:
            raise NotFoundError(f"There is no model {model[:80]!r}.", f"Use one of {', '.join(known)}.")
        return known[model]

    async def _openai_models(self) -> AsyncIterator[dict[str, Any]]:
        """What answers /v1/audio/speech, then what answers /v1/audio/transcriptions, where that is set up."""
        for handle in (self._voices, self._listening.recognize):
            if handle is not None:
                engine = (await handle.stats.remote())["config"]["engine"]
                yield {"id": engine, "object": "model", "created": self._began_s, "owned_by": "warmtalk"}

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

    @api.delete("/avatars/{avatar_id}", summary="Remove an avatar: sessions that show it end, their videos stay")
    async def remove_avatar(self, avatar_id: str) -> dict[str, Any]:
        check_id(avatar_id, "avatar id")
        needed: str = await self._stitch.default_avatar.remote()
        await self._avatars.remove.remote(avatar_id, needed)
        return {"avatar_id": avatar_id, "removed": True, "ended": await forgotten(self._stitch, avatar_id)}

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
            discard(upload)
            raise
        return StreamingResponse(progress_lines(first, events, upload), media_type="application/x-ndjson")

    # --- the rest

    @api.get("/abilities", summary="What this server was set up for beside speech: whether it understands speech")
    async def abilities(self) -> dict[str, bool]:
        return {"recognition": self._listening.there}

    @api.get("/healthz", summary="Whether the ingress runs and Stitch answers it")
    async def healthz(self) -> dict[str, str]:
        await self._stitch.stats.remote()
        return {"status": "ok"}

    @api.get("/footprint", summary="What the processes that sessions live in take: memory, files, threads, tasks")
    async def footprint(self) -> dict[str, Any]:
        found = await asyncio.gather(*(stage.stats.remote() for stage in (self._stitch, self._chat, self._voices)))
        stages = {facts["stage"]: {key: facts[key] for key in FOOTPRINT_KEYS} for facts in found}
        return {"stages": {"Ingress": footprint(), **stages}, "live": self._live.stats()}
