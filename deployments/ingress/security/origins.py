"""Keeps other sites' pages from acting through a viewer's browser. Belongs to the ingress; knows no route.

A browser lets any page send simple requests to any server that it reaches, and open WebSockets: to one on the viewer's
own machine, too. It says from which origin: `Origin` (RFC 6454), `Sec-Fetch-Site` (W3C Fetch Metadata) where it sends
none. What only reads is let through, since without CORS no other page sees the answer; clients that are no browsers
send neither header. Pages of allowed origins are told so, as the Fetch standard has it, and see answers and errors.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
CHANGING_PATHS = ("/reset",)  # by GET, as the manual has it
PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
REFUSAL = {
    "code": "cross_origin",
    "message": "The request comes from a page of another origin.",
    "remedy": "Name that origin in allowed_origins of Ingress.",
}
POLICY_VIOLATION = 1008  # RFC 6455
SEEN = "Accept-Post, Allow, ETag, Link, Location, Retry-After, X-WarmTalk-Session"
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match, Range",
    "Access-Control-Max-Age": "600",
}


class SameOrigin:
    """Refuses with 403 what would change something and comes from a page of another origin."""

    allowed: frozenset[str] = frozenset()  # the replica's: Ingress.reconfigure sets it

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self._refused(scope):
            await self._admit(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": REFUSAL["message"]})
        else:
            await JSONResponse({"error": REFUSAL}, 403)(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through; a page of an allowed origin may see what comes of it."""
        asked = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = asked.get("origin", "")
        if not origin or not self.allowed.intersection((origin, "*")):
            return await self._app(scope, receive, send)
        shown = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": SEEN, "Vary": "Origin"}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
            return await Response(None, 204, {**shown, **PREFLIGHT})(scope, receive, send)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in shown.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        await self._app(scope, receive, told)

    def _refused(self, scope: Scope) -> bool:
        reads = scope["type"] == "http" and scope["method"] in READING and not scope["path"].endswith(CHANGING_PATHS)
        return not reads and not same_origin(Headers(scope=scope), self.allowed)


def same_origin(headers: Mapping[str, str], allowed: Iterable[str] = ()) -> bool:
    """Whether a request's page, if it has one, is the server's own, or of one of the `allowed` origins ("*": any)."""
    allowed = set(allowed)
    if "*" in allowed:
        return True
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") != "cross-site"
    # a proxy may have put another host in its place; a page of another origin cannot send X-Forwarded-Host unasked
    hosts = (headers.get("host", ""), *headers.get("x-forwarded-host", "").split(","))
    page = urlsplit(origin)
    own = {_host(page.scheme, host.strip()) for host in hosts if host.strip()}
    return origin in allowed or _host(page.scheme, page.netloc) in own


def _host(scheme: str, host: str) -> str:
    """The host in lower case without its scheme's own port."""
    return host.lower().removesuffix(f":{PORTS.get(scheme, '')}")
