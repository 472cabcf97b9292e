"""Virtual time: the clock advances only while everything waits, so sleeps cost nothing and nothing is ever late.

For code on one event loop that reads `time` and sleeps with asyncio. Computing takes no virtual time, on the loop or in
an executor's thread (`asyncio.to_thread`, a stage's `Worker`). Processes and sockets do not work with it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

THREAD_TIMEOUT_S = 60.0  # real time; a thread that computes for longer hangs


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the clock instead of waiting, unless a thread computes."""

    passed_s = 0.0
    threads = 0  # executor jobs that are queued or running

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.threads:
            ready = super().select(THREAD_TIMEOUT_S)
            assert ready, f"a thread has computed for {THREAD_TIMEOUT_S:g} s"
            return ready
        assert timeout is not None, "everything waits, and no timer is set"
        self.passed_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _JumpingSelector()
        super().__init__(self.selector)
        self._threads = ThreadPoolExecutor(thread_name_prefix="virtual")

    def time(self) -> float:
        return self.selector.passed_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self.selector.threads += 1
        job = (executor or self._threads).submit(func, *args)
        future = asyncio.wrap_future(job, loop=self)
        job.add_done_callback(self._job_done)  # after the callback of wrap_future: the result is there first
        return future

    def _job_done(self, job: Future[Any]) -> None:
        if not self.is_closed():
            self.call_soon_threadsafe(self._uncount)

    def _uncount(self) -> None:
        self.selector.threads -= 1

    def close(self) -> None:
        super().close()
        self._threads.shutdown(wait=False)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """pytest-asyncio makes its loop with this."""
    return _Policy()


@pytest.fixture(autouse=True)
async def virtual_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`time.time` and `time.monotonic` follow the loop's clock."""
    loop = asyncio.get_running_loop()
    for name in ("time", "monotonic"):
        start_s = getattr(time, name)()
        monkeypatch.setattr(time, name, lambda start_s=start_s: start_s + loop.time())
    yield
    monkeypatch.undo()
