"""Ends the process of a replica that can serve no longer, so that Serve replaces it.

Serve replaces a replica that fails three health checks, but lets it finish its calls first, and a call that hangs never
finishes. The end of the process frees its share of the GPU and fails its calls at once, so that callers try another
replica.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("ray.serve")

CHECK_S = 0.5  # interval of looking for a fault
STDERR = 2  # a file descriptor: Ray replaces sys.stderr
STALL_LIMIT_S = 10.0  # an event loop that does not run for this long hangs: a library blocks it, or holds the GIL


def replica_resources() -> dict[str, float] | None:
    """The resources that Ray has assigned to this replica; None outside an actor, as in tests and notebooks."""
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_assigned_resources() if context.get_actor_id() is not None else None


class Supervision:
    """Watches the event loop and the fault of one replica, from the first `start` on. Does nothing outside an actor."""

    def __init__(self, stage: str, fault: Callable[[], str] = lambda: "") -> None:
        """fault: why the replica can serve no longer, or ""."""
        self._stage, self._fault = stage, fault
        self._stall_limit_s = STALL_LIMIT_S
        self._task: asyncio.Task[None] | None = None
        self._failed = ""  # the error of the latest check

    def start(self) -> None:
        if self._task is None and replica_resources() is not None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    @contextmanager
    def loading(self, limit_s: float) -> Iterator[None]:
        """While an engine is loaded, which may block the event loop for long."""
        self.start()
        self._stall_limit_s = limit_s
        self._restart_timer()
        try:
            yield
        finally:
            self._stall_limit_s = STALL_LIMIT_S

    async def _watch(self) -> None:
        while True:
            self._restart_timer()
            if reason := self._checked_fault():
                self._end(reason)
            await asyncio.sleep(CHECK_S)

    def _checked_fault(self) -> str:
        """The fault. A check that fails is no fault; without another one, the timer would end the process."""
        try:
            reason, self._failed = self._fault(), ""
            return reason
        except Exception as error:
            if repr(error) != self._failed:  # once, not twice per second
                self._failed = repr(error)
                log.exception("The state of a replica of %s cannot be checked", self._stage)
            return ""

    def _restart_timer(self) -> None:
        """Let a thread of C, which needs no GIL, print all stacks and end the process if this is not called again."""
        if self._task is not None:
            faulthandler.dump_traceback_later(self._stall_limit_s, exit=True, file=STDERR)

    def _end(self, reason: str) -> None:
        log.error("A replica of %s ends and will be replaced: %s.", self._stage, reason)
        faulthandler.dump_traceback(file=STDERR)
        for handler in log.handlers:
            handler.flush()
        os._exit(1)  # no clean-up: a thread that hangs, or a device that is lost, would block it
