"""Request bodies that are files: limited in number and size."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextlib
import shutil
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from fastapi import HTTPException, Request

from configs.schema import IngressConfig
from deployments.common.paths import output_path
from deployments.ingress.limits import ConcurrencyLimit
from models.errors import InputError

FOLDER = "results/uploads"
NAME = "The upload"  # of the stored file: error messages about a video begin with its file name
ABANDONED_S = 24 * 3600.0  # an older upload belongs to an ingress that died while it received it


class Uploads:
    """Receives the uploads of one ingress replica."""

    def __init__(self, config: IngressConfig) -> None:
        self.config = config
        message = "The maximum number of uploads is being received already."
        self._limit = ConcurrencyLimit(lambda: self.config.max_uploads, message)

    async def receive(self, http: Request) -> bytes:
        """The body of a request. Raises BusyError, HTTPException 413."""
        with self._limit.acquire():
            async with aclosing(self._parts(http)) as parts:
                return b"".join([part async for part in parts])

    async def store(self, http: Request) -> Path:
        """Store the body at a path that the client cannot choose; delete it with `discard`.

        Nothing is left of an upload that breaks off. Raises BusyError, InputError, HTTPException 413.
        """
        folder = output_path(FOLDER)
        with self._limit.acquire():
            await asyncio.to_thread(_prepare, folder)
            path, size = folder / uuid.uuid4().hex / NAME, 0
            try:
                path.parent.mkdir()
                with path.open("wb") as file:
                    async with aclosing(self._parts(http)) as parts:
                        async for part in parts:
                            size += len(part)
                            await asyncio.to_thread(file.write, part)
                if not size:
                    raise InputError("The request has no body.", "Send a video or a picture as the body.")
            except BaseException:
                discard(path)
                raise
            return path

    async def _parts(self, http: Request) -> AsyncGenerator[bytes, None]:
        size, limit_mb = 0, self.config.max_upload_mb
        async for part in http.stream():
            size += len(part)
            if size > limit_mb * 2**20:
                raise HTTPException(413, f"The upload exceeds {limit_mb:g} MB.")
            yield part


def discard(upload: Path) -> None:
    """Delete what `store` returned."""
    shutil.rmtree(upload.parent, ignore_errors=True)


def _prepare(folder: Path) -> None:
    """Create the folder, and delete abandoned uploads from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
