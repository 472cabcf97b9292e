"""The chat page at `/`: static files of web/, with headers that let a browser run nothing else. Knows no stage."""

# no `from __future__ import annotations`: FastAPI must see the real types

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.common.paths import CODE

FOLDER = CODE / "web"
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",  # no inline script, no eval, nobody else's
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' blob:",
    "connect-src": "'self'",
    "font-src": "'self'",
    "manifest-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'self'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",  # asked for each time, answered 304: a new version is seen at once
}


class _Page:
    """Adds HEADERS to whatever `app` answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower().encode() for name in HEADERS}
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message["headers"] = [*kept, *((n.lower().encode(), v.encode()) for n, v in HEADERS.items())]
            await send(message)

        await self._app(scope, receive, with_headers)


def serve_page(api: FastAPI) -> None:
    """Serve FOLDER's index.html at `/` and the rest under `/web/`. Before serve.ingress, which freezes the routes."""

    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=HEADERS)

    api.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    api.mount("/web", _Page(StaticFiles(directory=FOLDER, check_dir=False)), name="web")
