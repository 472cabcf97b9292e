"""Chat: messages that are answered in speech."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

from typing import Annotated, Any

from fastapi import Body
from ray.serve.handle import DeploymentHandle

from deployments.common.messages import ChatRequest
from deployments.ingress.app import api
from deployments.ingress.schemas import ChatBody, JobId, SessionId


class ChatRoutes:
    _chat: DeploymentHandle

    @api.post("/chat", summary="Have a message answered in speech; responds at once with the id of the chat job")
    async def chat(self, body: Annotated[ChatBody, Body()]) -> dict[str, str]:
        request = ChatRequest(message=body.message, session_id=body.session_id, **body.speech_options())
        started: dict[str, str] = await self._chat.start.remote(request)
        return started

    @api.get("/status/{job_id}", summary="State and progress of a chat job")
    async def status(self, job_id: JobId) -> dict[str, Any]:
        job: dict[str, Any] = await self._chat.status.remote(job_id)
        return job

    @api.get("/chat/{session_id}", summary="The conversation of a session, oldest message first")
    async def messages(self, session_id: SessionId) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = await self._chat.messages.remote(session_id)
        return messages
