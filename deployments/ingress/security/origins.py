"""Middleware against cross-site requests: pages of other origins may read, but not change anything.

A browser lets any page send simple requests, and open WebSockets, to any server that it can reach, including one on the
user's own machine. It names the page's origin in `Origin` (RFC 6454), or in `Sec-Fetch-Site` (W3C Fetch Metadata).
Requests that only read pass: without CORS headers the other page does not see the response. Programs other than
browsers send neither header. Pages of configured origins may do everything; Starlette's CORSMiddleware adds their CORS
headers.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.common.requests import sent_error
from deployments.ingress.settings import ANY, GetSettings

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CHANGING_PATHS = ("/reset",)  # a GET that changes something, as in the manual
DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
REFUSAL = {
    "code": "cross_origin",
    "message": "The request comes from a page of another origin.",
    "remedy": "Add that origin to allowed_origins of Ingress.",
}
POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1
CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST", "DELETE", "OPTIONS"),
    "allow_headers": ("Authorization", "Content-Type", "If-Match", "Range", "X-Request-ID", "traceparent"),
    "expose_headers": (
        *("Accept-Post", "Allow", "ETag", "Link", "Location", "Retry-After", "X-Request-ID", "X-WarmTalk-Session"),
    ),
}


class CrossOrigin:
    """Refuses with 403 a request that changes something and comes from a page of an origin that is not allowed."""

    def __init__(self, app: ASGIApp, settings: GetSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers, allowed = Headers(scope=scope), self._settings().allowed_origins
        if not _is_read(scope) and not is_same_origin(headers, allowed):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": REFUSAL["message"]})
            else:
                await JSONResponse({"error": sent_error(REFUSAL)}, 403)(scope, receive, send)
        elif allowed.intersection((headers.get("origin", ""), ANY)):
            # made for each request, because a new config may change the origins; making it costs microseconds
            await CORSMiddleware(self._app, tuple(allowed), **CORS)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_read(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in SAFE_METHODS and not scope["path"].endswith(CHANGING_PATHS)


def is_same_origin(headers: Mapping[str, str], allowed: Collection[str] = ()) -> bool:
    """Whether a request comes from no page, the server's own page, or a page of an `allowed` origin ("*": any)."""
    if ANY in allowed:
        return True
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") != "cross-site"
    # A proxy may replace Host. Another site's page cannot send X-Forwarded-Host without a preflight.
    hosts = (headers.get("host", ""), *headers.get("x-forwarded-host", "").split(","))
    page = urlsplit(origin)
    own = {_host(page.scheme, host.strip()) for host in hosts if host.strip()}
    return origin in allowed or _host(page.scheme, page.netloc) in own


def _host(scheme: str, host: str) -> str:
    """The host in lower case, without the default port of its scheme."""
    return host.lower().removesuffix(f":{DEFAULT_PORTS.get(scheme, '')}")
