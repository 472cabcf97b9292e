"""The chat page at `/` and the operator's page at `/admin`: the static files of web/, with security headers."""

# no `from __future__ import annotations`: FastAPI must see the real types

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.common.paths import CODE

FOLDER = CODE / "web"
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",  # no inline scripts, no eval, no other hosts
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
    "Cache-Control": "no-cache",  # a browser revalidates each file, usually with 304, so a new version shows at once
}


class _WithHeaders:
    """Sets HEADERS on every response of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower().encode() for name in HEADERS}
                kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message["headers"] = [*kept, *((n.lower().encode(), v.encode()) for n, v in HEADERS.items())]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def serve_page(api: FastAPI) -> None:
    """Serve the pages, and the other files under `/web/`. Call it before serve.ingress, which copies the app."""

    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=HEADERS)

    async def admin() -> FileResponse:
        return FileResponse(FOLDER / "admin" / "index.html", headers=HEADERS)

    for path, answer in (("/", page), ("/admin", admin)):
        api.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    api.mount("/web", _WithHeaders(StaticFiles(directory=FOLDER, check_dir=False)), name="web")
