"""Downloads of sessions: each file is made once, shared by all who request it, and kept for a while."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cachetools import LRUCache

from deployments.ingress.session_views import export_download

FOLDER = "results/.downloads"
KEEP_S = 120.0  # after the last request: a player requests a file range by range
MAX_KEPT = 4  # files

Key = tuple[str, int]  # the session's video tag, and its size in bytes


@dataclass(slots=True)
class _Job:
    task: asyncio.Task[Path]
    waiting: int = 0  # requests
    running: bool = False


@dataclass(slots=True)
class _File:
    path: Path
    expiry: asyncio.TimerHandle


class _KeptFiles(LRUCache[Key, _File]):
    """Deletes a file when it leaves the cache. A reader that has it open reads on."""

    def popitem(self) -> tuple[Key, _File]:
        key, file = super().popitem()
        _delete(file)
        return key, file


class Downloads:
    """Progressive MP4 files of sessions at a given size. Runs on one event loop; copying is done on threads."""

    def __init__(self, folder: Callable[[], Path], max_running: int) -> None:
        """folder: returns the folder of the files. max_running: files made at a time; further requests wait."""
        self._folder = folder
        self._slots = asyncio.Semaphore(max_running)
        self._jobs: dict[Key, _Job] = {}
        self._kept = _KeptFiles(MAX_KEPT)

    async def open(self, facts: dict[str, Any], size: int) -> BinaryIO:
        """The file, opened. facts: Stitch's description of the session. Raises what export_download raises."""
        key = (facts["video_tag"], size)
        while True:
            if (file := self._kept.get(key)) is not None:
                file.expiry.cancel()
                file.expiry = self._expire_later(key)
                return file.path.open("rb")
            if (job := self._jobs.get(key)) is None:
                job = self._jobs[key] = _Job(asyncio.create_task(self._make(key, facts, size)))
                job.task.add_done_callback(functools.partial(self._keep, key, job))
            await self._wait_for(key, job)  # its callback has put the file into _kept; another may have pushed it out

    def close(self) -> None:
        """Delete all files, now or as soon as they are made."""
        self._jobs.clear()
        while self._kept:
            self._kept.popitem()

    async def _wait_for(self, key: Key, job: _Job) -> None:
        """Wait for a file. A running job is finished even if nobody waits any more; one in the queue is then cancelled.

        Otherwise a client that requests and leaves, again and again, would have sessions copied for nobody.
        """
        job.waiting += 1
        try:
            await asyncio.shield(job.task)
        finally:
            job.waiting -= 1
            if not job.waiting and not job.running and self._jobs.get(key) is job:
                del self._jobs[key]
                job.task.cancel()

    async def _make(self, key: Key, facts: dict[str, Any], size: int) -> Path:
        async with self._slots:
            if (job := self._jobs.get(key)) is not None:
                job.running = True
            return await asyncio.to_thread(lambda: export_download(facts, size, self._folder()))

    def _keep(self, key: Key, job: _Job, task: asyncio.Task[Path]) -> None:
        wanted = self._jobs.get(key) is job
        if wanted:
            del self._jobs[key]
        if task.cancelled() or task.exception() is not None:
            return
        if wanted:
            self._kept[key] = _File(task.result(), self._expire_later(key))
        else:
            task.result().unlink(missing_ok=True)

    def _expire_later(self, key: Key) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(KEEP_S, lambda: _delete(self._kept.pop(key)))


def _delete(file: _File) -> None:
    file.expiry.cancel()
    file.path.unlink(missing_ok=True)
