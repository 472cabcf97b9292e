"""Downloads of sessions: each is made once, a few at a time, and kept for a while. Knows no stage and no HTTP."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deployments.ingress.session_views import faststart

FOLDER = "results/.downloads"
KEPT_S = 120.0  # a file that nobody has asked for so long is removed: a player asks for it range by range
KEPT = 4  # files


@dataclass(slots=True)
class _Made:
    path: asyncio.Task[Path]
    asking: int = 0  # who wait for it
    begun: bool = False
    forget: asyncio.TimerHandle | None = None


class Downloads:
    """Progressive files of sessions as they were at a size. One event loop; copying is done on threads.

    A session of the same size is the same file, so several viewers, and the ranges of one, share it.
    """

    def __init__(self, folder: Callable[[], Path], at_once: int) -> None:
        """folder: gives where they lie. at_once: files that are made at a time; who asks for a further one waits."""
        self._folder = folder
        self._room = asyncio.Semaphore(at_once)
        self._made: OrderedDict[tuple[str, int], _Made] = OrderedDict()

    async def open(self, facts: dict[str, Any], size: int) -> BinaryIO:
        """The file, opened. `facts`: what Stitch says of the session. Raises what views.faststart raises."""
        key = (facts["video_tag"], size)
        while True:
            made = self._made.get(key)
            if made is None:
                made = self._made[key] = _Made(asyncio.create_task(self._make(key, facts, size)))
                made.path.add_done_callback(functools.partial(self._done, key, made))
            path = await self._path_of(key, made)
            if self._made.get(key) is made:  # else it made room for others in this very moment
                self._keep(key, made)
                return path.open("rb")

    def close(self) -> None:
        """Remove all files."""
        for key in list(self._made):
            self._forget(key)

    async def _path_of(self, key: tuple[str, int], made: _Made) -> Path:
        """Wait for a file. One that is being made is made whoever leaves; one that waits for its turn ends with the
        last who wants it: else, who asks and leaves again and again would have sessions copied for nobody.
        """
        made.asking += 1
        try:
            return await asyncio.shield(made.path)
        finally:
            made.asking -= 1
            if not made.asking and not made.begun and self._made.get(key) is made:
                del self._made[key]
                made.path.cancel()

    async def _make(self, key: tuple[str, int], facts: dict[str, Any], size: int) -> Path:
        async with self._room:
            if (made := self._made.get(key)) is not None:
                made.begun = True
            return await asyncio.to_thread(lambda: faststart(facts, size, self._folder()))

    def _done(self, key: tuple[str, int], made: _Made, task: asyncio.Task[Path]) -> None:
        known = self._made.get(key) is made
        if task.cancelled() or task.exception() is not None:
            if known:
                del self._made[key]
        elif known:
            self._keep(key, made)
        else:
            task.result().unlink(missing_ok=True)

    def _keep(self, key: tuple[str, int], made: _Made) -> None:
        if made.forget is not None:
            made.forget.cancel()
        made.forget = asyncio.get_running_loop().call_later(KEPT_S, self._forget, key)
        self._made.move_to_end(key)
        for old in [key for key, other in self._made.items() if other.forget is not None][:-KEPT]:
            self._forget(old)

    def _forget(self, key: tuple[str, int]) -> None:
        made = self._made.pop(key)
        if made.forget is not None:
            made.forget.cancel()
            made.path.result().unlink(missing_ok=True)  # who reads it has it open
