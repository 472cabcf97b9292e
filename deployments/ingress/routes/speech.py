"""Speak a text or a recording in a session."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Body, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from configs.schema import IngressConfig
from deployments.common.errors import cancel_call, stream_items
from deployments.common.messages import SpeakEvent, SpeakRequest
from deployments.common.speech_call import SpeechCall
from deployments.common.text_stream import WriterLimits, speak_text_stream
from deployments.ingress.app import api
from deployments.ingress.responses import decoded_text, video_stream
from deployments.ingress.schemas import SessionId, SpeakAudioQuery, SpeakBody, SpeechOptions
from deployments.ingress.uploads import Uploads, deleting
from models.errors import IdleError, StageError, WarmTalkError

log = logging.getLogger("ray.serve")


class SpeechRoutes:
    _stitch: DeploymentHandle
    _tts: DeploymentHandle
    _uploads: Uploads
    _background: set[asyncio.Task[None]]
    config: IngressConfig

    @api.post("/speak", summary="Speak a text")
    async def speak(self, body: Annotated[SpeakBody, Body()]) -> Response:
        request = SpeakRequest(body.session_id, body.text, deliver=body.stream, **body.speech_options())
        return await self._speak(request)

    @api.post("/speak/audio", summary="Speak a recording: the body is a WAV, FLAC, MP3 or OGG file")
    async def speak_audio(self, http: Request, query: Annotated[SpeakAudioQuery, Query()]) -> Response:
        upload = await self._uploads.store(http, "Send a WAV, FLAC, MP3 or OGG file as the body.")
        options = query.model_dump(exclude={"session_id", "stream"})
        request = SpeakRequest(query.session_id, audio_path=str(upload), deliver=query.stream, **options)
        return await deleting(upload, self._speak(request))

    @api.post(
        "/sessions/{session_id}/say", summary="Speak a text while it is still being written: the body is plain text"
    )
    async def say(self, http: Request, session_id: SessionId, query: Annotated[SpeechOptions, Query()]) -> Response:
        request = SpeakRequest(session_id, deliver=False, **query.speech_options())
        pieces = WriterLimits.from_config(self.config).pieces(decoded_text(http.stream()))
        events = speak_text_stream(self._stitch, request, pieces)
        error, summary = None, None
        try:
            async for event in events:
                if (error := event.error) is not None:
                    raise error
                summary = event.summary or summary
        finally:
            if isinstance(error, IdleError):
                self._finish(events)
            else:
                await events.aclose()
        return _summary_response(summary)

    def _finish(self, events: AsyncGenerator[SpeakEvent, None]) -> None:
        """Speak what has arrived from a silent writer to its end, after the response."""

        async def finish() -> None:
            async with aclosing(events):
                try:
                    async for _ in events:
                        pass
                except (WarmTalkError, RayError, RayServeException) as error:
                    log.warning("A text that its writer did not end could not be spoken: %s", error)

        task = contextvars.Context().run(asyncio.create_task, finish())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @api.get("/voices", summary="The voices of the TTS engine, the default voice first, and which are installed")
    async def voices(self) -> list[dict[str, Any]]:
        known: list[dict[str, Any]] = await self._tts.voices.remote()
        return known

    async def _speak(self, request: SpeakRequest) -> Response:
        """The summary as JSON, or the fragments as a stream."""
        events = SpeechCall(self._stitch, request)
        if not request.deliver:
            try:
                async with aclosing(stream_items(events)) as items:
                    async for event in items:
                        if event.summary is not None:
                            return _summary_response(event.summary)
                return _summary_response(None)
            finally:
                cancel_call(events)
        try:
            first = await anext(events)  # wait for the first fragment: an error sets the status
        except BaseException:
            cancel_call(events)
            raise
        headers = {"X-WarmTalk-Session": request.session_id, "Cache-Control": "no-store"}
        return StreamingResponse(video_stream(first, events), media_type="video/mp4", headers=headers)


def _summary_response(summary: dict[str, Any] | None) -> Response:
    if summary is None:
        raise StageError("The utterance ended without a summary.", "See the log of Stitch for the reason.")
    return JSONResponse(summary)
