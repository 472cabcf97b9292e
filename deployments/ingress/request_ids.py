"""Gives each request an id, in its errors, logs and spans, and takes a trace context from its headers.

Serve's proxy takes the id from X-Request-ID, or makes one, and sets that header of the response.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.common.requests import REQUEST_ID, TRACE_PARENT, TRACE_PARENT_FORM, request_id, use_request_id

HEADER = "X-Request-ID"
STARTS = ("http.response.start", "websocket.accept")


class RequestIds:
    """Replaces an id that logs cannot carry, and sets the header where Serve's proxy does not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        sent, by_proxy = headers.get(HEADER, ""), request_id()
        known = by_proxy or sent
        own = known if REQUEST_ID.fullmatch(known) else str(uuid.uuid4())
        use_request_id(own)
        trace_parent = headers.get("traceparent", "")
        TRACE_PARENT.set(trace_parent if TRACE_PARENT_FORM.fullmatch(trace_parent) else "")

        async def send_with_id(message: Message) -> None:
            if message["type"] in STARTS and (message["type"] != STARTS[0] or own != by_proxy):
                message.setdefault("headers", [])
                MutableHeaders(scope=message)[HEADER] = own
            await send(message)

        await self._app(scope, receive, send_with_id)
