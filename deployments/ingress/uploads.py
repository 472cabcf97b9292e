"""Bodies that are files: so many at a time, each of a limited size. Belongs to the ingress; knows no stage."""

# no `from __future__ import annotations`: part of what serve.ingress looks at

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
from deployments.ingress.limits import Places
from models.errors import InputError

FOLDER = "results/uploads"
NAME = "The upload"  # of the file: what is wrong with it is told in sentences that begin with its name
ABANDONED_S = 24 * 3600.0  # an upload this old belongs to an ingress that died over it


class Uploads:
    """What an ingress replica receives of files."""

    def __init__(self, config: IngressConfig) -> None:
        self.config = config
        full = "As many files are being received as this server allows."
        self._places = Places(lambda: self.config.max_uploads, full)

    async def received(self, http: Request) -> bytes:
        """A request's body. Raises BusyError, HTTPException 413."""
        with self._places.taken():
            async with aclosing(self._parts(http)) as parts:
                return b"".join([part async for part in parts])

    async def stored(self, http: Request) -> Path:
        """The body as a file at a path that the caller cannot choose, for `discard`; none is left where it breaks off.

        Raises BusyError, InputError, HTTPException 413.
        """
        folder = output_path(FOLDER)
        with self._places.taken():
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
                    raise InputError("The request has no body.", "Send a video or a picture as the request's body.")
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
    """Remove what `stored` gave."""
    shutil.rmtree(upload.parent, ignore_errors=True)


def _prepare(folder: Path) -> None:
    """Make the folder, and remove from it what nobody is going to read."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
