"""Middleware that limits the size and the duration of request bodies."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import time

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress.settings import GetSettings

UPLOAD_PATHS = ("/speak/audio", "/avatars", "/v1/audio/transcriptions")  # uploads.py limits the size of these bodies
TEXT_STREAM_PATH = "/say"  # its body is a text that is still being written: text_stream.py limits its pauses
IDLE_TIMEOUT_S = 60.0  # between two parts of a body
MIN_RATE_BYTES_S = 8 * 2**10  # of the whole body, after the first IDLE_TIMEOUT_S


class BodyLimit:
    """Refuses a body while it arrives: 413 for JSON beyond the limit, 408 for any body that stops or is too slow.

    Without the minimum rate, a client that sends one byte at a time would hold an upload slot and its file for days.
    """

    def __init__(self, app: ASGIApp, settings: GetSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        size, more = 0, True
        max_bytes = self._settings().max_json_bytes
        written = scope["path"].endswith(TEXT_STREAM_PATH)
        limit = float("inf") if scope["path"].endswith(UPLOAD_PATHS) else max_bytes
        part_s = time.monotonic()  # when the latest part arrived
        due_s = part_s + IDLE_TIMEOUT_S

        async def limited_receive() -> Message:
            nonlocal size, more, part_s
            timeout_s = min(IDLE_TIMEOUT_S, max(0.01, due_s + size / MIN_RATE_BYTES_S - time.monotonic()))
            try:
                async with asyncio.timeout(timeout_s if more and not written else None):
                    message = await receive()
            except TimeoutError:
                stopped = f"Nothing more of the request arrived for {IDLE_TIMEOUT_S:g} s."
                slow = f"The request arrives at less than {MIN_RATE_BYTES_S // 2**10} KB/s."
                detail = stopped if time.monotonic() - part_s > IDLE_TIMEOUT_S / 2 else slow
                raise HTTPException(408, detail) from None
            part_s = time.monotonic()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            if size > limit:
                raise HTTPException(413, f"The request exceeds {max_bytes / 2**10:g} KB.")
            return message

        await self._app(scope, limited_receive, send)
