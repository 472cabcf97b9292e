"""Responses of the routes: ranges of a growing file, and streams of video, sound and progress."""

# no `from __future__ import annotations`: FastAPI must see the real types

import codecs
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentResponseGenerator

from deployments.common.errors import cancel_call, to_warmtalk_error
from deployments.common.messages import SpeakEvent
from deployments.common.requests import sent_error
from deployments.common.speech_call import SpeechCall
from deployments.ingress.backpressure import paced_file
from deployments.ingress.live.hub import Viewer
from deployments.ingress.tcp_tables import Client
from models.errors import WarmTalkError

NO_CACHE = {"Cache-Control": "no-cache"}


def client_of(http: Request) -> Client | None:
    return (http.client.host, http.client.port) if http.client else None


# --- files


def open_tagged(path: Path, tag: str) -> BinaryIO | None:
    """Open the file with this tag; None if the path holds another file by now. Raises OSError."""
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
    request_headers: Mapping[str, str],
    head: bool = False,
    name: str = "",
    client: Client | None = None,
) -> Response:
    """The first `size` bytes of a growing file, or one range of them. What follows may be half a fragment.

    tag: the ETag. It stays the same while the file grows, because bytes already written never change. So ranges read at
    different times fit together, and `If-Range` with another tag gives the whole file. `If-None-Match` is ignored: a
    known tag does not prove that nothing was appended. head: only headers. name: the file name for saving. client: the
    file is read no faster than this client receives (backpressure.py). Closes the file.
    """
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache", "ETag": f'"{tag}"'}
    headers |= {"Content-Disposition": f'attachment; filename="{name}"'} if name else {}
    fits = request_headers.get("if-range", headers["ETag"]) == headers["ETag"]
    wanted = request_headers.get("range", "") if fits else ""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted.strip())
    status, begin, end = 200, 0, size
    if match and match.group(0) != "bytes=-":  # otherwise no range or several: the whole file is a valid response
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
    return StreamingResponse(paced_file(file, begin, end, client), status, headers, "video/mp4")


# --- streams. A stage's stream is cancelled when the client leaves


async def video_stream(first: SpeakEvent, events: SpeechCall) -> AsyncIterator[bytes]:
    try:
        yield first.data
        async for event in events:
            if event.data:
                yield event.data
    finally:
        cancel_call(events)


async def live_stream(viewer: Viewer) -> AsyncIterator[bytes]:
    try:
        async for data in viewer:
            yield data
    finally:
        viewer.close()


async def sound_stream(first: bytes, parts: DeploymentResponseGenerator) -> AsyncIterator[bytes]:
    try:
        yield first
        async for part in parts:
            yield part.data
    finally:
        cancel_call(parts)


async def progress_lines(first: dict[str, Any], events: DeploymentResponseGenerator) -> AsyncIterator[bytes]:
    """Progress as JSON lines. An error after the status was sent is the last line."""
    try:
        yield json.dumps(first).encode() + b"\n"
        async for event in events:
            yield json.dumps(event).encode() + b"\n"
    except (RayError, RayServeException, WarmTalkError) as error:
        yield json.dumps({"error": sent_error(to_warmtalk_error(error))}).encode() + b"\n"
    finally:
        cancel_call(events)


async def decoded_text(parts: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The text of a UTF-8 body while it arrives. Invalid bytes become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
