"""Avatars: list, prepare, remove."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse
from ray.serve.handle import DeploymentHandle

from deployments.common.errors import cancel_call
from deployments.ingress.app import api
from deployments.ingress.commands import broadcast_avatar_removal
from deployments.ingress.responses import progress_lines
from deployments.ingress.schemas import AvatarId, PrepareQuery
from deployments.ingress.uploads import Uploads, deleting


class AvatarRoutes:
    _stitch: DeploymentHandle
    _avatars: DeploymentHandle
    _uploads: Uploads

    @api.get("/avatars", summary="All prepared avatars")
    async def avatars(self) -> list[dict[str, Any]]:
        facts: list[dict[str, Any]] = await self._avatars.list.remote()
        return facts

    @api.get("/avatars/{avatar_id}/poster.jpg", summary="A small picture of an avatar's face")
    async def poster(self, avatar_id: AvatarId) -> Response:
        picture: bytes = await self._avatars.poster.remote(avatar_id)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    @api.delete("/avatars/{avatar_id}", summary="Remove an avatar; sessions that show it end, their videos stay")
    async def remove_avatar(self, avatar_id: AvatarId) -> dict[str, Any]:
        default: str = await self._stitch.default_avatar.remote()
        await self._avatars.remove.remote(avatar_id, default)
        ended = await broadcast_avatar_removal(self._stitch, avatar_id)
        return {"avatar_id": avatar_id, "removed": True, "ended": ended}

    @api.post(
        "/avatars",
        summary="Prepare an avatar: the body is a video or a picture, the response is progress as JSON lines",
        response_class=StreamingResponse,
    )
    async def prepare(self, http: Request, query: Annotated[PrepareQuery, Query()]) -> Response:
        upload = await self._uploads.store(http, "Send a video or a picture as the body.")
        return await deleting(upload, self._prepare(upload, query))

    async def _prepare(self, upload: Path, query: PrepareQuery) -> Response:
        avatars = self._avatars.options(stream=True, _by_reference=False)
        events = avatars.prepare.remote(str(upload), query.avatar_id, query.force, query.preparation_options())
        try:
            first = await anext(events)  # wait for the first progress: an error until then sets the status
        except BaseException:
            cancel_call(events)
            raise
        return StreamingResponse(progress_lines(first, events), media_type="application/x-ndjson")
