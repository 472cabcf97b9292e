"""OpenAI's audio routes: speech, transcriptions, models."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, Path, Request
from fastapi.responses import Response, StreamingResponse
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import cancel_call
from deployments.ingress.app import api
from deployments.ingress.responses import sound_stream
from deployments.ingress.schemas import SOUND_TYPES, SpeechBody
from deployments.ingress.transcriptions import FORM, Transcriptions
from models.errors import NotFoundError


class OpenAIRoutes:
    _tts: DeploymentHandle
    _transcriptions: Transcriptions
    _started_s: int

    @api.post("/v1/audio/speech", summary="Speak a text as sound alone, streamed; compatible with OpenAI's clients")
    async def sound(self, body: Annotated[SpeechBody, Body()]) -> Response:
        tts = self._tts.options(stream=True, _by_reference=False)
        parts = tts.encoded.remote(body.input, body.voice, body.speed, body.response_format)
        try:
            first = await anext(parts)  # wait for the first sound: an unknown voice or a full queue sets the status
        except BaseException:
            cancel_call(parts)
            raise
        headers = {"X-WarmTalk-Warnings": json.dumps(first.warnings)} if first.warnings else None  # escaped: ASCII
        sound = sound_stream(first.data, parts)
        return StreamingResponse(sound, media_type=SOUND_TYPES[body.response_format], headers=headers)

    @api.post(
        "/v1/audio/transcriptions",
        summary="Transcribe a recording; compatible with OpenAI's clients",
        openapi_extra=FORM,
        response_model=None,
    )
    async def transcribe(self, http: Request) -> Response:
        return await self._transcriptions.respond(http)

    @api.get("/v1/models", summary="The engines behind /v1/audio, in OpenAI's form")
    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [model async for model in self._engines()]}

    @api.get("/v1/models/{model}", summary="One engine behind /v1/audio, in OpenAI's form")
    async def model(self, model: Annotated[str, Path(description="The name of an engine.")]) -> dict[str, Any]:
        known = {entry["id"]: entry async for entry in self._engines()}
        if model not in known:
            raise NotFoundError(f"There is no model {model[:80]!r}.", f"Use one of {', '.join(known)}.")
        return known[model]

    async def _engines(self) -> AsyncIterator[dict[str, Any]]:
        """The engine of TTS, then that of Recognize, if it is configured."""
        for stage in (self._tts, self._transcriptions.recognize):
            if stage is not None:
                engine = (await stage.stats.remote())["config"]["engine"]
                yield {"id": engine, "object": "model", "created": self._started_s, "owned_by": "warmtalk"}
