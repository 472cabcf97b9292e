"""WHEP over HTTP (draft-ietf-wish-whep, and RFC 9725 for what it shares with WHIP): what the routes of /whep answer.

Belongs to the ingress; knows no media. Not taken: PATCH, so an offer must hold all of its candidates, and another
network needs another POST.
"""

# no `from __future__ import annotations`: FastAPI must see the real types

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from ray import serve

from configs.schema import IceServer, IngressConfig
from deployments.ingress.live.hubs import Live
from deployments.ingress.webrtc.peers import Peers
from models.errors import MediaTypeError, NotConfiguredError, NotFoundError
from models.runtime.ids import check_id

SDP = "application/sdp"
ELSEWHERE_S = 5.0  # for the other replicas to say whether a connection is theirs
TAKES = "OPTIONS, POST"
OF_A_CONNECTION = "OPTIONS, DELETE"


class Whep:
    """The WebRTC viewers of an ingress replica. elsewhere: ends a connection of another replica, if it is there."""

    def __init__(self, live: Live, config: Callable[[], IngressConfig], elsewhere: Callable[[str], Awaitable[bool]]):
        self._live, self._config, self._elsewhere = live, config, elsewhere
        self.peers = Peers(config)

    async def play(self, http: Request, session_id: str) -> Response:
        """201 with the SDP answer, and where the connection can be ended."""
        check_id(session_id, "session id")
        self.peers.check()
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != SDP:
            raise MediaTypeError("The body is not said to be an SDP offer.", f"Send it with Content-Type: {SDP}.")
        sdp = (await http.body()).decode("utf-8", "replace")
        peer_id, answer = await self.peers.offer(sdp, lambda: self._live.view(session_id))
        headers = {"Location": f"{http.scope.get('root_path', '')}/sessions/{session_id}/whep/{peer_id}"}
        return Response(answer, 201, {**headers, "Cache-Control": "no-store", **self._links()}, SDP)

    def options(self) -> Response:
        """What POST takes, and which ICE servers to use. Without WebRTC it takes none: no error yet."""
        headers = {"Allow": "OPTIONS", "Cache-Control": "no-store"}
        with contextlib.suppress(NotConfiguredError):
            self.peers.check()
            headers |= {"Allow": TAKES, "Accept-Post": SDP, **self._links()}
        return Response(None, 204, headers)

    async def end(self, peer_id: str) -> None:
        """End a connection of this replica, or of another. Raises NotFoundError, IdError."""
        check_id(peer_id, "connection id")
        try:
            await self.peers.end(peer_id)
        except NotFoundError:
            if not await self._elsewhere(peer_id):
                raise

    async def ended(self, peer_id: str) -> bool:
        """Whether the connection was this replica's: it has ended then."""
        try:
            await self.peers.end(peer_id)
        except NotFoundError:
            return False
        return True

    def refuse(self) -> Response:
        """405: neither trickled candidates nor ICE restarts."""
        error = {"code": "http_405", "message": "A connection takes no further candidates, and does not start anew."}
        error["remedy"] = "Send an offer that holds all candidates; for another network POST another."
        return JSONResponse({"error": error}, 405, {"Allow": OF_A_CONNECTION})

    def _links(self) -> dict[str, str]:
        links = [link(server, url) for server in self._config().ice_servers for url in server.urls]
        return {"Link": ", ".join(links)} if links else {}


def link(server: IceServer, url: str) -> str:
    """An ICE server as a Link header names it (RFC 9725, 4.6)."""
    text = f'<{url}>; rel="ice-server"'
    if server.username is not None and url.startswith("turn"):
        text += f'; username="{_quoted(server.username)}"; credential="{_quoted(server.credential or "")}"'
        text += '; credential-type="password"'
    return text


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


async def ended_by_a_replica(peer_id: str) -> bool:
    """Ask all ingress replicas to end a connection; whether one of them had it. Called in a replica."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, context.app_name)
    asked: Any = handle.broadcast("ended", peer_id)
    try:
        answers = await asyncio.wait_for(asked.results_async(return_exceptions=True), ELSEWHERE_S)
    except TimeoutError:
        return False
    return any(answer is True for answer in answers)
