"""Authentication: where API keys are configured, every request needs one of

- `Authorization: Bearer <key>`, for programs, including OpenAI's clients
- the login cookie, for the page: POST /login exchanges a key for it
- `?token=…`, for players that can send neither: from POST /sessions/{id}/token, valid for one session and limited time

The page's own files, /login, /healthz and /readyz are open to everybody.
"""

# no `from __future__ import annotations`: FastAPI must see the real types

import json
import re
import time
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Body, FastAPI, Query, Request
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.common.requests import sent_error
from deployments.ingress.schemas import LoginBody, SessionId
from deployments.ingress.security.allowed_hosts import route_path
from deployments.ingress.security.keys import Keys
from deployments.ingress.security.keys import Scope as TokenScope
from deployments.ingress.settings import GetSettings

COOKIE = "warmtalk"
UNAUTHORIZED = 401
SESSION_PATH = re.compile(r"/sessions/([a-z0-9_-]{1,64})(/.*)?")
READ_METHODS = ("GET", "HEAD")
ACT_PATHS = ("say", "interrupt", "ws")  # below a session: what a token of scope `act` opens in addition
MAX_TOKEN_MINUTES = 24 * 60


class Access:
    """Refuses with 401 a request without valid credentials, if keys are configured."""

    def __init__(self, app: ASGIApp, settings: GetSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        keys = self._settings().keys
        if not keys or _is_public(scope) or _has_access(scope, keys):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(sent_error(refusal(_has_credentials(scope))), receive, send)
        else:
            await unauthorized(_has_credentials(scope))(scope, receive, send)


def serve_login(api: FastAPI, settings: GetSettings) -> None:
    """Add the routes for login and tokens. Call it before serve.ingress, which copies the app."""

    async def login(http: Request, body: Annotated[LoginBody, Body()]) -> Response:
        keys, lifetime_s = settings().keys, settings().login_s
        if not keys:
            return Response(status_code=204)
        if not keys.is_valid(body.key):
            return unauthorized(has_credentials=True)
        response = Response(status_code=204)
        _set_cookie(response, http, keys.sign_cookie(body.key, lifetime_s), int(lifetime_s))
        return response

    async def logout(http: Request) -> Response:
        response = Response(status_code=204)
        _set_cookie(response, http, "", 0)
        return response

    async def token(
        session_id: SessionId,
        act: Annotated[bool, Query(description="The token may also speak and interrupt, not only watch.")] = False,
        minutes: Annotated[float, Query(gt=0, le=MAX_TOKEN_MINUTES, description="Lifetime of the token.")] = 60.0,
    ) -> dict[str, Any]:
        scope: TokenScope = "act" if act else "watch"
        signed = settings().keys.sign_token(session_id, scope, minutes * 60)
        return {"token": signed, "session_id": session_id, "act": act, "expires_s": int(time.time() + minutes * 60)}

    log_in = "Exchange an API key for a login cookie, which scripts of a page cannot read"
    api.add_api_route("/login", login, methods=["POST"], status_code=204, summary=log_in)
    api.add_api_route("/login", logout, methods=["DELETE"], status_code=204, summary="Delete the login cookie")
    sign = "Sign a token for the URLs of one session: `?token=…` to watch, with `act` also to speak"
    api.add_api_route("/sessions/{session_id}/token", token, methods=["POST"], status_code=201, summary=sign)


# --- what a request may do


def _is_public(scope: Scope) -> bool:
    path = route_path(scope)
    if path == "/login":
        return True
    reads = scope["type"] == "http" and scope["method"] in READ_METHODS
    return reads and (path in ("/", "/healthz", "/readyz", "/web") or path.startswith("/web/"))


def _has_access(scope: Scope, keys: Keys) -> bool:
    headers = Headers(scope=scope)
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and keys.is_valid(key.strip()):
        return True
    cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
    if cookie is not None and keys.is_valid_cookie(cookie):
        return True
    token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
    return bool(token) and _token_gives_access(scope, keys, token)


def _token_gives_access(scope: Scope, keys: Keys, token: str) -> bool:
    match = SESSION_PATH.fullmatch(route_path(scope))
    if match is None:
        return False
    method, rest = scope.get("method", ""), (match[2] or "").strip("/")
    is_whep = method in ("POST", "DELETE", "OPTIONS") and rest.partition("/")[0] == "whep"
    watches = method in READ_METHODS or is_whep
    acts = rest in ACT_PATHS and (scope["type"] == "websocket" or method == "POST")
    return (watches or acts) and keys.is_valid_token(token, match[1], "watch" if watches else "act")


def _has_credentials(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "authorization" in headers or COOKIE in cookie_parser(headers.get("cookie", ""))


# --- responses


def refusal(has_credentials: bool) -> dict[str, str]:
    """The error for missing credentials, or for credentials that are not valid."""
    return {
        "code": "unauthorized",
        "message": "The API key is not valid, or has expired." if has_credentials else "An API key is required.",
        "remedy": "Send it as `Authorization: Bearer <key>` (clients: $WARMTALK_API_KEY). The page asks for it.",
    }


def unauthorized(has_credentials: bool) -> Response:
    """401 with a challenge as in RFC 6750: credentials that are not valid are `invalid_token`."""
    challenge = 'Bearer realm="warmtalk"' + (', error="invalid_token"' if has_credentials else "")
    return JSONResponse({"error": sent_error(refusal(has_credentials))}, UNAUTHORIZED, {"WWW-Authenticate": challenge})


async def _refuse_websocket(error: dict[str, str], receive: Receive, send: Send) -> None:
    """Accept the WebSocket, then close it with a reason: a page cannot read why a handshake was refused."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps({"type": "failed", "error": error})})
    await send({"type": "websocket.close", "code": 4000 + UNAUTHORIZED, "reason": error["message"]})


def _set_cookie(response: Response, http: Request, value: str, lifetime_s: int) -> None:
    """SameSite=strict: requests of other sites' pages do not carry it. Secure over https, also behind a TLS proxy."""
    forwarded = http.headers.get("x-forwarded-proto", "").split(",")[0].strip()
    secure = "https" in (http.url.scheme, forwarded)
    response.set_cookie(COOKIE, value, max_age=lifetime_s, path="/", secure=secure, httponly=True, samesite="strict")
    response.headers["Cache-Control"] = "no-store"
