"""Who may come in, where a key is wanted: asks each request for one of three things. Belongs to the ingress.

- `Authorization: Bearer <key>`: programs, OpenAI's clients among them
- a cookie, for the page: POST /login trades a key for it
- `?token=…`, for players that can send neither: bound to one session and short-lived; POST /sessions/{id}/token

Open to all are the page's own files, /login and /healthz.
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

from deployments.ingress.schemas import LoginBody
from deployments.ingress.security.allowed_hosts import route_path
from deployments.ingress.security.keys import Keys
from deployments.ingress.security.keys import Scope as TokenScope
from models.runtime.ids import check_id

COOKIE = "warmtalk"
UNAUTHORIZED = 401
OF_SESSION = re.compile(r"/sessions/([a-z0-9_-]{1,64})(/.*)?")
READING = ("GET", "HEAD")
ACTS = ("say", "interrupt", "ws")  # what a token to act opens beside what is watched
LONGEST_TOKEN_MINUTES = 24 * 60


class Access:
    """Refuses with 401 whoever has no key, where one is wanted."""

    keys = Keys()  # the replica's: Ingress.reconfigure sets them
    login_s = 30 * 86400.0  # how long a cookie is good, likewise

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self.keys or _open(scope) or self._admitted(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await _turn_away(refusal(_given(scope)), receive, send)
        else:
            await unauthorized(_given(scope))(scope, receive, send)

    def _admitted(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.keys.opens(key.strip()):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        if cookie is not None and self.keys.knows(cookie):
            return True
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        return bool(token) and self._token_opens(token, scope)

    def _token_opens(self, token: str, scope: Scope) -> bool:
        match = OF_SESSION.fullmatch(route_path(scope))
        if match is None:
            return False
        method, rest = scope.get("method", ""), (match[2] or "").strip("/")
        watches = method in READING or (method in ("POST", "DELETE", "OPTIONS") and rest.partition("/")[0] == "whep")
        acts = rest in ACTS and (scope["type"] == "websocket" or method == "POST")
        if not (watches or acts):
            return False
        return self.keys.admits(token, match[1], "watch" if watches else "act")


def serve_login(api: FastAPI) -> None:
    """Add the routes that give a key's cookie, and tokens. Before serve.ingress, which freezes the routes."""

    async def login(http: Request, body: Annotated[LoginBody, Body()]) -> Response:
        if not Access.keys:
            return Response(status_code=204)
        if not Access.keys.opens(body.key):
            return unauthorized(given=True)
        answer = Response(status_code=204)
        _set_cookie(answer, http, Access.keys.cookie(body.key, Access.login_s), int(Access.login_s))
        return answer

    async def logout(http: Request) -> Response:
        answer = Response(status_code=204)
        _set_cookie(answer, http, "", 0)
        return answer

    async def token(
        session_id: str,
        act: bool = False,
        minutes: Annotated[float, Query(gt=0, le=LONGEST_TOKEN_MINUTES)] = 60.0,
    ) -> dict[str, Any]:
        check_id(session_id, "session id")
        scope: TokenScope = "act" if act else "watch"
        made = Access.keys.token(session_id, scope, minutes * 60)
        return {"token": made, "session_id": session_id, "act": act, "expires_s": int(time.time() + minutes * 60)}

    one, two = "Trade a key for a cookie, which a browser keeps where no page can read it", "Forget the cookie"
    api.add_api_route("/login", login, methods=["POST"], status_code=204, summary=one)
    api.add_api_route("/login", logout, methods=["DELETE"], status_code=204, summary=two)
    three = "Sign a token for the addresses of one session: `?token=…` to watch; with `act`, also to speak"
    api.add_api_route("/sessions/{session_id}/token", token, methods=["POST"], status_code=201, summary=three)


def refusal(given: bool) -> dict[str, str]:
    """given: whether something was shown, which does not open."""
    return {
        "code": "unauthorized",
        "message": "The key is not one of this server's, or has ended." if given else "This server wants a key.",
        "remedy": "Send one as `Authorization: Bearer <key>` (clients: $WARMTALK_API_KEY); the page asks for it.",
    }


def unauthorized(given: bool) -> Response:
    """RFC 6750: what was shown and does not open is `invalid_token`."""
    challenge = 'Bearer realm="warmtalk"' + (', error="invalid_token"' if given else "")
    return JSONResponse({"error": refusal(given)}, UNAUTHORIZED, {"WWW-Authenticate": challenge})


async def _turn_away(error: dict[str, str], receive: Receive, send: Send) -> None:
    """Say on the socket itself why it is closed: a browser tells its page nothing of a refused handshake."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps({"type": "failed", "error": error})})
    await send({"type": "websocket.close", "code": 4000 + UNAUTHORIZED, "reason": error["message"]})


def _given(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "authorization" in headers or COOKIE in cookie_parser(headers.get("cookie", ""))


def _open(scope: Scope) -> bool:
    path = route_path(scope)
    if path == "/login":
        return True
    reads = scope["type"] == "http" and scope["method"] in READING
    return reads and (path in ("/", "/healthz", "/web") or path.startswith("/web/"))


def _set_cookie(answer: Response, http: Request, value: str, for_s: int) -> None:
    """Strict: no other page's request carries it. Over https, also where a proxy has ended that, only there."""
    forwarded = http.headers.get("x-forwarded-proto", "").split(",")[0].strip()
    secure = "https" in (http.url.scheme, forwarded)
    answer.set_cookie(COOKIE, value, max_age=for_s, path="/", secure=secure, httponly=True, samesite="strict")
    answer.headers["Cache-Control"] = "no-store"
