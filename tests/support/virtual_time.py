"""Time that passes only while everybody waits: what is due in a second happens at once, and never a moment late.

For code of one event loop that asks `time` and sleeps by asyncio. Computing takes no time there; threads, processes and
sockets that answer later have no place in it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

import pytest


class _Jump(selectors.DefaultSelector):
    """Where nothing is ready, the clock is put forward instead of waiting."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        ready = super().select(0)
        if not ready:
            self.passed_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.passed_s


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """pytest-asyncio makes its loop with this."""
    return _Policy()


@pytest.fixture(autouse=True)
async def virtual_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`time.time` and `time.monotonic` go by the loop's clock."""
    loop = asyncio.get_running_loop()
    for name in ("time", "monotonic"):
        began_s = getattr(time, name)()
        monkeypatch.setattr(time, name, lambda began_s=began_s: began_s + loop.time())
    yield
    monkeypatch.undo()
