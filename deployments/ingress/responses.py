"""What the ingress's routes are made of: errors as JSON, bounded bodies, ranges of a growing file, streamed answers.

Belongs to the ingress; knows no stage and no media.
"""

# no `from __future__ import annotations`: FastAPI must see the real types

import asyncio
import codecs
import difflib
import json
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI, Request
from fastapi import HTTPException as HTTPError
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.schema import IngressConfig
from deployments.common.errors import replica_lost_error, to_warmtalk_error, is_own_cancellation
from deployments.common.patience import within
from deployments.ingress.backpressure import file_parts
from deployments.ingress.security.allowed_hosts import KnownHosts
from deployments.ingress.security.auth import Access
from deployments.ingress.security.origins import SameOrigin
from deployments.ingress.send_queues import Client
from deployments.ingress.uploads import discard
from models.errors import InputError, WarmTalkError
from models.runtime.ids import MAX_QUOTED_CHARS

NO_CACHE = {"Cache-Control": "no-cache"}
UPLOADS = (
    "/speak/audio",
    "/avatars",
    "/v1/audio/transcriptions",
)  # their bodies are files, and have a limit of their own
PAUSE_S = 60.0  # a body of which nothing has come for so long has been given up
SLOWEST_BYTES_S = 8 * 2**10  # of a body, on the whole, after the first PAUSE_S: byte by byte it could be sent for days
WRITTEN = "/say"  # its body is a text that is still being written: that takes as long as it takes
CLIENT_GONE = 499  # as nginx has it in its log
REMEDIES = {
    400: "See /docs for its form.",
    404: "See /docs for what there is.",
    405: "See /docs for what there is.",
    408: "Send it again, without a pause.",
    413: "Send less at a time.",
}
SENTENCES = {404: "There is nothing at this path.", 405: "This path does not take that method."}
DETAILS = 5  # of what is wrong with a request that its answer tells

api = FastAPI(
    title="WarmTalk",
    version="0.1.0",
    summary="Text or speech in, a talking-head video stream out.",
    description='Every error is JSON: `{"error": {"code", "message", "remedy"}}`.',
)

# --- errors, mapped once. serve.ingress freezes `api` as it is when the class is made: handlers come first


def error_response(error: WarmTalkError) -> JSONResponse:
    headers = {"Retry-After": "2"} if error.status == 429 else None
    return JSONResponse({"error": error.to_dict()}, error.status, headers)


class _Route(APIRoute):
    """Makes a WarmTalkError of what a handle raises. Serve sets its own handlers for some of its errors: plain text.

    A POST with an option that it does not have is refused, as a body with one is: it would do something else unnoticed.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        # `self` of a method looks like one until Serve has bound it
        options = [entry.alias for entry in self.dependant.query_params if entry.alias != "self"]

        async def handle(http: Request) -> Response:
            try:
                if http.method == "POST":
                    _refuse_unknown(http.query_params, options)
                return await inner(http)
            except (RayError, RayServeException) as error:
                raise to_warmtalk_error(error) from error
            except asyncio.CancelledError as error:
                if is_own_cancellation():
                    raise
                raise replica_lost_error() from error

        return handle


def _refuse_unknown(query: Mapping[str, str], options: list[str]) -> None:
    """Raises InputError for an option of a request's address that its route does not have."""
    for name in query:
        if name not in (*options, "token"):  # access.py takes that one
            known = f"It has {', '.join(options)}." if options else "It has none."
            near = difflib.get_close_matches(name, options, n=1)
            remedy = f"Did you mean {near[0]!r}? {known}" if near else known
            raise InputError(f"This request has no option {name[:MAX_QUOTED_CHARS]!r}.", remedy)


api.router.route_class = _Route


@api.exception_handler(WarmTalkError)
async def _on_error(http: Request, error: Exception) -> JSONResponse:
    return error_response(to_warmtalk_error(error))


@api.exception_handler(RequestValidationError)
async def _on_invalid(http: Request, error: RequestValidationError) -> JSONResponse:
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        place, why = found[0]["loc"][-1], found[0].get("ctx", {}).get("error", "it cannot be read")
        return error_response(InputError(f"The body is not JSON: {why} at character {place}.", REMEDIES[400]))
    if found[0]["type"] == "model_attributes_type" and len(found[0]["loc"]) == 1:
        remedy = f"Send Content-Type: application/json, and an object. {REMEDIES[400]}"
        return error_response(InputError("The body is no JSON object.", remedy))
    details = "; ".join(_detail(item) for item in found[:DETAILS])
    more = f"; and {len(found) - DETAILS} more" if len(found) > DETAILS else ""
    return error_response(InputError(f"The request is not valid: {details}{more}.", REMEDIES[400]))


def _detail(item: dict[str, Any]) -> str:
    """Where it is wrong, and what is wrong there; a name that the caller made up is cut short."""
    place = ".".join(map(str, item["loc"][1:]))
    place = place if len(place) <= MAX_QUOTED_CHARS else f"{place[:MAX_QUOTED_CHARS]}…"
    return f"{place}: {item['msg']}".lstrip(": ")


@api.exception_handler(HTTPException)
async def _on_http(http: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    if status == 400:  # FastAPI, of a body that Python's own reader gives up: nested too deep, a number too long
        return error_response(InputError("The body cannot be read as JSON.", REMEDIES[400]))
    message = SENTENCES.get(status, str(error.detail))
    answer = {"code": f"http_{status}", "message": message, "remedy": REMEDIES.get(status, "")}
    return JSONResponse({"error": answer}, status, error.headers)


@api.exception_handler(ClientDisconnect)
async def _on_gone(http: Request, error: Exception) -> Response:
    """A client that left while it sent its body: nobody is there to be told, and nothing is wrong here."""
    return Response(status_code=CLIENT_GONE)


@api.exception_handler(Exception)
async def _on_bug(http: Request, error: Exception) -> JSONResponse:
    return error_response(to_warmtalk_error(error))


class BoundedJson:
    """Refuses a body of JSON beyond `max_bytes` while it comes, so that it never fills the memory; any that stops, too,
    or comes by the byte: it would keep its place, and its file, for as long as the client likes.
    """

    max_bytes = int(IngressConfig().max_json_kb * 2**10)  # the replica's: Ingress.reconfigure sets it

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        size, more = 0, True
        limit = float("inf") if scope["path"].endswith(UPLOADS) else self.max_bytes
        came_s = time.monotonic()
        latest_s = float("inf") if scope["path"].endswith(WRITTEN) else came_s + PAUSE_S

        async def bounded() -> Message:
            nonlocal size, more, came_s
            wait_s = min(PAUSE_S, max(0.01, latest_s + size / SLOWEST_BYTES_S - time.monotonic()))
            try:
                message = await within(wait_s if more else None, receive())
            except TimeoutError:
                stopped = f"Nothing more of the request came for {PAUSE_S:g} s."
                slow = f"The request comes at less than {SLOWEST_BYTES_S // 2**10} KB/s."
                raise HTTPError(408, stopped if time.monotonic() - came_s > PAUSE_S / 2 else slow) from None
            came_s = time.monotonic()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            if size > limit:
                raise HTTPError(413, f"The request exceeds {self.max_bytes / 2**10:g} KB.")
            return message

        await self._app(scope, bounded, send)


api.add_middleware(BoundedJson)
api.add_middleware(Access)
api.add_middleware(SameOrigin)
api.add_middleware(KnownHosts)  # the last that is added is the first that is asked

# --- answers that come in pieces


def open_tagged(path: Path, tag: str) -> BinaryIO | None:
    """The file of this tag, opened; None where another has been put in its place since. Raises OSError."""
    file = path.open("rb")
    if tag.endswith(f"-{os.fstat(file.fileno()).st_ino:x}"):
        return file
    file.close()
    return None


def length_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def file_range(
    file: BinaryIO,
    size: int,
    tag: str,
    asked: Mapping[str, str],
    head: bool = False,
    name: str = "",
    client: Client | None = None,
) -> Response:
    """The first `size` bytes of a growing file, or one range of them: what lies behind may be half a fragment.

    tag: the file's, the same while it grows, since what is there never changes: so ranges taken at different times fit
    together, and `If-Range` gives the whole where they would not. A known tag is no proof that nothing was added, so
    `If-None-Match` is passed over. asked: the request's headers. head: only the answer's headers. name: to be saved
    under. client: for whom no more is read than it takes (sending.py). Closes the file.
    """
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache", "ETag": f'"{tag}"'}
    headers |= {"Content-Disposition": f'attachment; filename="{name}"'} if name else {}
    wanted = asked.get("range", "") if asked.get("if-range", headers["ETag"]) == headers["ETag"] else ""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    status, begin, end = 200, 0, size
    if match and match.group(0) != "bytes=-":  # else no range, or several: the whole is a valid answer
        first, last = match.groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        if begin >= end:
            file.close()
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - begin)
    if head:
        file.close()
        return Response(None, status, headers, "video/mp4")
    return StreamingResponse(file_parts(file, begin, end, client), status, headers, "video/mp4")


def client_of(http: Request) -> Client | None:
    return (http.client.host, http.client.port) if http.client else None


class Cancel:
    """Cancels a streaming call when closed; a finished one does not mind."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def close(self) -> None:
        self._events.cancel()


async def video_parts(first: list[Any], events: Any) -> AsyncIterator[bytes]:
    try:
        for event in first:
            yield event.data
        async for event in events:
            if event.data:
                yield event.data
    finally:
        events.cancel()


async def live_parts(viewer: Any) -> AsyncIterator[bytes]:
    """A viewer's bytes for as long as it watches."""
    try:
        async for data in viewer:
            yield data
    finally:
        viewer.close()


async def written(parts: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The text of a body of UTF-8 while it comes; bytes that are none become �."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


async def sound_parts(first: bytes, parts: Any) -> AsyncIterator[bytes]:
    try:
        yield first
        async for part in parts:
            yield part
    finally:
        parts.cancel()


async def progress_lines(first: dict[str, Any], events: Any, upload: Path) -> AsyncIterator[bytes]:
    """Progress as JSON lines; an error that comes after the status was sent is the last line."""
    try:
        yield json.dumps(first).encode() + b"\n"
        async for event in events:
            yield json.dumps(event).encode() + b"\n"
    except (RayError, RayServeException, WarmTalkError) as error:
        yield json.dumps({"error": to_warmtalk_error(error).to_dict()}).encode() + b"\n"
    finally:
        events.cancel()
        discard(upload)
