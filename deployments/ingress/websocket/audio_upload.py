"""A recording that arrives over a WebSocket in parts, on disk until it was used."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
from pathlib import Path

from deployments.ingress.uploads import Uploads, discard
from models.errors import BusyError, InputError
from models.runtime.disk_full import writing_to
from models.speech.audio import write_wav

MAX_BYTES = 32 * 2**20  # of one recording
MAX_HELD_BYTES = 256 * 2**20  # of all recordings that this process receives


class AudioUpload:
    """The recording of one WebSocket. After a part was refused, the rest of that recording is dropped."""

    held_bytes = 0  # by all recordings that this process receives, on its one event loop

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._path: Path | None = None
        self._size = 0
        self._refused = False

    async def add(self, data: bytes, last: bool, pcm_hz: int | None = None) -> Path | None:
        """The whole recording after its last part, which the caller must discard; None before, or if it was refused.

        pcm_hz: with the last part, the sample rate of raw PCM. Raises InputError, BusyError, DiskFullError.
        """
        refused, self._refused = self._refused, self._refused and not last
        if refused:
            return None
        try:
            await self._append(data)
            if not last:
                return None
            path, size = self._path, self._size
            assert path is not None
            if pcm_hz:
                await asyncio.to_thread(_add_header, path, pcm_hz)
        except BaseException:
            self.clear()
            self._refused = not last
            raise
        self._path, self._size = None, 0
        AudioUpload.held_bytes -= size
        return path

    def clear(self) -> None:
        """Delete what has arrived."""
        AudioUpload.held_bytes -= self._size
        if self._path is not None:
            discard(self._path)
        self._path, self._size = None, 0

    async def _append(self, data: bytes) -> None:
        if self._size + len(data) > MAX_BYTES:
            raise InputError(f"The recording exceeds {MAX_BYTES // 2**20} MB.", "Send a shorter recording.")
        if AudioUpload.held_bytes + len(data) > MAX_HELD_BYTES:
            raise BusyError("Too much audio is being received already.", "Try again in a few seconds.")
        self._size += len(data)
        AudioUpload.held_bytes += len(data)
        if self._path is None:
            self._path = await self._uploads.create()
        await self._uploads.append(self._path, data)


def _add_header(path: Path, pcm_hz: int) -> None:
    with writing_to(path.parent):
        write_wav(path, pcm_hz)
