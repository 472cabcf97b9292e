"""Request bodies that are files: limited in number and size, and on disk until the request is answered."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import shutil
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastapi import HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from configs.schema import IngressConfig
from deployments.common.paths import UPLOADS, output_path
from deployments.ingress.limits import ConcurrencyLimit
from deployments.ingress.temp_dirs import TempDirs
from models.errors import InputError
from models.runtime.disk_full import writing_to

NAME = "The upload"  # of the stored file: error messages about a video begin with its file name

T = TypeVar("T")


class Uploads:
    """Stores the uploads of one ingress replica in the folder that all stages share.

    Each has a folder of its own, which `discard` deletes. Those of a replica that died are deleted by the others.
    """

    def __init__(self, config: IngressConfig) -> None:
        self.config = config
        message = "The maximum number of uploads is being received already."
        self._limit = ConcurrencyLimit(lambda: self.config.max_uploads, message)
        self._dirs = TempDirs(output_path(UPLOADS))

    async def store(self, http: Request, remedy: str) -> Path:
        """Store the body at a path that the client cannot choose.

        remedy: of the error for an empty body. Nothing is left of an upload that breaks off. Raises BusyError,
        InputError, DiskFullError, HTTPException 413.
        """
        async with self.receiving(http) as parts:
            path, size = await self.create(), 0
            try:
                async for part in parts:
                    size += len(part)
                    await self.append(path, part)
                if not size:
                    raise InputError("The request has no body.", remedy)
            except BaseException:
                discard(path)
                raise
            return path

    @asynccontextmanager
    async def receiving(self, http: Request) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The parts of a body. Raises BusyError; the parts raise HTTPException 413."""
        with self._limit.acquire():
            async with aclosing(self._parts(http)) as parts:
                yield parts

    async def create(self) -> Path:
        """A new, empty file. Raises DiskFullError."""
        return await _to_end(self._create)

    async def append(self, path: Path, data: bytes) -> None:
        """Raises DiskFullError."""
        await _to_end(lambda: _append(path, data))

    async def copy(self, source: BinaryIO) -> Path:
        """Store a file that is open. Raises DiskFullError."""
        path = await self.create()
        try:
            await _to_end(lambda: _copy(source, path))
        except BaseException:
            discard(path)
            raise
        return path

    def _create(self) -> Path:
        root = output_path(UPLOADS)
        with writing_to(root):
            self._dirs.sweep()
            path = self._dirs.folder() / uuid.uuid4().hex / NAME
            path.parent.mkdir()
            path.touch()
        return path

    async def _parts(self, http: Request) -> AsyncGenerator[bytes, None]:
        size, limit_mb = 0, self.config.max_upload_mb
        async for part in http.stream():
            size += len(part)
            if size > limit_mb * 2**20:
                raise HTTPException(413, f"The upload exceeds {limit_mb:g} MB.")
            yield part


def discard(upload: Path) -> None:
    """Delete an upload."""
    shutil.rmtree(upload.parent, ignore_errors=True)


async def deleting(upload: Path, answer: Coroutine[Any, Any, Response]) -> Response:
    """The response to a request that uses an upload, which is deleted when the response is complete or has failed."""
    try:
        response = await answer
        if not isinstance(response, StreamingResponse):
            discard(upload)
            return response
        return _Deleting(response, upload)
    except BaseException:
        discard(upload)
        raise


class _Deleting(StreamingResponse):
    """A stream that deletes an upload when it ends, also if its client left before the first byte."""

    def __init__(self, response: StreamingResponse, upload: Path) -> None:
        vars(self).update(vars(response))
        self._upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            discard(self._upload)


async def _to_end(function: Callable[[], T]) -> T:
    """Run a function on a thread. If the caller is cancelled, wait for it first, so that it creates nothing later."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _append(path: Path, data: bytes) -> None:
    with writing_to(path.parent), path.open("ab") as file:
        file.write(data)


def _copy(source: BinaryIO, path: Path) -> None:
    with writing_to(path.parent), path.open("wb") as file:
        shutil.copyfileobj(source, file)
