"""WHEP (draft-ietf-wish-whep, and RFC 9725 for what it shares with WHIP): the responses of the /whep routes.

PATCH is not supported: an offer must hold all its candidates, and a client that changes networks must POST again.
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
from deployments.common.requests import sent_error
from deployments.ingress.live.hubs import Hubs
from deployments.ingress.webrtc.peers import Peers
from models.errors import MediaTypeError, NotConfiguredError, NotFoundError

SDP = "application/sdp"
BROADCAST_TIMEOUT_S = 5.0  # for the other replicas to say whether they have a connection
OFFER_METHODS = "OPTIONS, POST"
CONNECTION_METHODS = "OPTIONS, DELETE"


class Whep:
    """The WebRTC viewers of an ingress replica. end_elsewhere: ends a connection that another replica has."""

    def __init__(
        self, hubs: Hubs, config: Callable[[], IngressConfig], end_elsewhere: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._hubs, self._config, self._end_elsewhere = hubs, config, end_elsewhere
        self.peers = Peers(config)

    async def play(self, http: Request, session_id: str) -> Response:
        """201 with the SDP answer, and the URL that ends the connection."""
        self.peers.check_available()
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != SDP:
            raise MediaTypeError(f"The Content-Type of the body is not {SDP}.", f"Send an offer as {SDP}.")
        sdp = (await http.body()).decode("utf-8", "replace")
        peer_id, answer = await self.peers.offer(sdp, lambda: self._hubs.view(session_id))
        headers = {"Location": f"{http.scope.get('root_path', '')}/sessions/{session_id}/whep/{peer_id}"}
        return Response(answer, 201, {**headers, "Cache-Control": "no-store", **self._ice_links()}, SDP)

    def options(self) -> Response:
        """The methods, what POST accepts, and the ICE servers. Without WebRTC, POST is missing; that is no error."""
        headers = {"Allow": "OPTIONS", "Cache-Control": "no-store"}
        with contextlib.suppress(NotConfiguredError):
            self.peers.check_available()
            headers |= {"Allow": OFFER_METHODS, "Accept-Post": SDP, **self._ice_links()}
        return Response(None, 204, headers)

    async def end(self, peer_id: str) -> None:
        """End a connection of this replica or of another. Raises NotFoundError."""
        if not await self.end_here(peer_id) and not await self._end_elsewhere(peer_id):
            raise NotFoundError("There is no WebRTC connection with this id.", "It may have ended already.")

    async def end_here(self, peer_id: str) -> bool:
        """End a connection if this replica has it, and return whether it had."""
        try:
            await self.peers.end(peer_id)
        except NotFoundError:
            return False
        return True

    def refuse_patch(self) -> Response:
        """405 for further candidates (trickle ICE) and for ICE restarts."""
        error = {"code": "http_405", "message": "Further ICE candidates and ICE restarts are not supported."}
        error["remedy"] = "Send an offer that holds all candidates; after a change of networks, send another offer."
        return JSONResponse({"error": sent_error(error)}, 405, {"Allow": CONNECTION_METHODS})

    def _ice_links(self) -> dict[str, str]:
        links = [ice_link(server, url) for server in self._config().ice_servers for url in server.urls]
        return {"Link": ", ".join(links)} if links else {}


def ice_link(server: IceServer, url: str) -> str:
    """An ICE server in a Link header (RFC 9725, 4.6)."""
    text = f'<{url}>; rel="ice-server"'
    if server.username is not None and url.startswith("turn"):
        text += f'; username="{_quoted(server.username)}"; credential="{_quoted(server.credential or "")}"'
        text += '; credential-type="password"'
    return text


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


async def end_on_other_replica(peer_id: str) -> bool:
    """Ask all ingress replicas to end a connection, and return whether one of them had it. Runs in a replica."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, context.app_name)
    call: Any = handle.broadcast("end_peer", peer_id)
    try:
        async with asyncio.timeout(BROADCAST_TIMEOUT_S):
            answers = await call.results_async(return_exceptions=True)
    except TimeoutError:
        return False
    return any(answer is True for answer in answers)
