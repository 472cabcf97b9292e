"""Speak a text or a recording in a session."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Body, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import cancel_call, stream_items
from deployments.common.messages import SpeakRequest
from deployments.common.text_stream import speak_text_stream
from deployments.ingress.app import api
from deployments.ingress.responses import decoded_text, video_stream
from deployments.ingress.schemas import SessionId, SpeakAudioQuery, SpeakBody, SpeechOptions
from deployments.ingress.uploads import Uploads
from models.errors import InputError, StageError
from models.llm.token_stream import speakable_pieces


class SpeechRoutes:
    _stitch: DeploymentHandle
    _tts: DeploymentHandle
    _uploads: Uploads

    @api.post("/speak", summary="Speak a text")
    async def speak(self, body: Annotated[SpeakBody, Body()]) -> Response:
        request = SpeakRequest(body.session_id, body.text, deliver=body.stream, **body.speech_options())
        return await self._speak(request)

    @api.post("/speak/audio", summary="Speak a recording: the body is a WAV, FLAC, MP3 or OGG file")
    async def speak_audio(self, http: Request, query: Annotated[SpeakAudioQuery, Query()]) -> Response:
        audio = await self._uploads.receive(http)
        if not audio:
            raise InputError("The request has no body.", "Send a WAV, FLAC, MP3 or OGG file as the body.")
        options = query.model_dump(exclude={"session_id", "stream"})
        return await self._speak(SpeakRequest(query.session_id, audio=audio, deliver=query.stream, **options))

    @api.post(
        "/sessions/{session_id}/say", summary="Speak a text while it is still being written: the body is plain text"
    )
    async def say(self, http: Request, session_id: SessionId, query: Annotated[SpeechOptions, Query()]) -> Response:
        request = SpeakRequest(session_id, deliver=False, **query.speech_options())
        pieces = speakable_pieces(decoded_text(http.stream()))
        async with aclosing(speak_text_stream(self._stitch, request, pieces)) as events:
            summaries = [event.summary async for event in events if event.summary is not None]
        return _summary_response(summaries[-1] if summaries else None)

    @api.get("/voices", summary="The voices of the TTS engine, the default voice first, and which are installed")
    async def voices(self) -> list[dict[str, Any]]:
        known: list[dict[str, Any]] = await self._tts.voices.remote()
        return known

    async def _speak(self, request: SpeakRequest) -> Response:
        """The summary as JSON, or the fragments as a stream."""
        # A recording goes through the object store: a message by value holds 4 MB at most.
        stitch = self._stitch.options(stream=True, _by_reference=bool(request.audio), session_id=request.session_id)
        events = stitch.speak.remote(request)
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
            first = [await anext(events), await anext(events)]  # wait for the first fragment: an error sets the status
        except BaseException:
            cancel_call(events)
            raise
        headers = {"X-WarmTalk-Session": request.session_id, "Cache-Control": "no-store"}
        return StreamingResponse(video_stream(first, events), media_type="video/mp4", headers=headers)


def _summary_response(summary: dict[str, Any] | None) -> Response:
    if summary is None:
        raise StageError("The utterance ended without a summary.", "See the log of Stitch for the reason.")
    return JSONResponse(summary)
