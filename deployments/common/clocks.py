"""The clock of a session's host, as seen from other hosts, measured from the calls themselves.

A session's clock is the clock of its Stitch process: the wall clock at the start of that process, advanced by its
host's monotonic clock. Setting the wall clock therefore neither stops speech nor makes it jump. All processes of a host
share the monotonic clock. The offset to another host is measured as in NTP (RFC 5905, sections 8 and 10): the time that
the other host reports is taken as the time in the middle of the call, so the error is at most half of the call's
duration. Of the latest samples, the one with the smallest error is used.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from deployments.common.errors import is_own_cancellation

log = logging.getLogger("ray.serve")

FIRST_CALLS = 4  # samples before a host's clock is used; the first call is slow
REFRESH_S = 15.0  # interval between samples: clocks drift by up to 50 ppm, under 1 ms in this time
KEPT_SAMPLES = 8  # per host: two minutes
CALL_TIMEOUT_S = 2.0  # a slower call is dropped, since its error would be large
WARN_SKEW_S = 0.05  # log hosts whose clocks differ by more than this

CLOCK_OFFSET_S = time.time() - time.monotonic()  # this process's clock = this + its host's monotonic clock

Ask = Callable[[str], Awaitable[tuple[str, float]]]  # session id → the session's host, its monotonic clock in seconds
Now = Callable[[], float]  # a clock: returns seconds


def stable_time_s() -> float:
    """This process's clock: seconds since the epoch, not affected when the wall clock is set."""
    return CLOCK_OFFSET_S + time.monotonic()


@functools.cache
def own_host() -> str:
    """An id of this host: the same for all processes, in any container, that run on one kernel and share its clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True, slots=True)
class ClockSample:
    """One measurement: another host's monotonic clock minus ours is offset_s, within ± error_s."""

    offset_s: float
    error_s: float


class HostClocks:
    """Measured clocks of other hosts. Not thread-safe: use it from one event loop."""

    def __init__(self, ask: Ask | None = None) -> None:
        """ask: calls the host that owns a session; None: take the clocks of all hosts as equal to ours."""
        self._ask = ask
        self._samples: dict[str, deque[ClockSample]] = {}
        self._sampled_s: dict[str, float] = {}  # host → when it was last asked
        self._refreshing: set[asyncio.Task[None]] = set()

    async def clock_of(self, host: str, session_id: str, clock_offset_s: float = 0.0) -> Now:
        """The clock of a process on `host`, as a function. Measures the host when it is new.

        session_id: a session that the host owns. clock_offset_s: CLOCK_OFFSET_S of that process.
        """
        if host == own_host() and clock_offset_s:
            return lambda: clock_offset_s + time.monotonic()
        if self._ask is None or host in ("", own_host()):
            return time.time
        for _ in range(FIRST_CALLS if host not in self._samples else 0):
            await self._sample(session_id)
        if self.best_sample(host):
            skew_s = self.now(host, clock_offset_s) - time.time()
            if abs(skew_s) > WARN_SKEW_S:
                log.warning("The clock of another host differs by %+.3f s from this host's clock.", skew_s)
        else:
            log.warning("The clock of another host could not be measured. It is taken as equal to this host's clock.")
        return functools.partial(self.now, host, clock_offset_s)

    def now(self, host: str, clock_offset_s: float = 0.0) -> float:
        """The time of a process's clock on `host`; this host's wall clock while there is no sample of that host."""
        sample = self.best_sample(host)
        return clock_offset_s + time.monotonic() + sample.offset_s if sample else time.time()

    def best_sample(self, host: str) -> ClockSample | None:
        """The kept sample with the smallest error."""
        return min(self._samples.get(host, ()), key=lambda sample: sample.error_s, default=None)

    def refresh(self, host: str, session_id: str) -> None:
        """Start another measurement of a host if REFRESH_S have passed since the last one. Does not wait for it."""
        due_s = self._sampled_s.get(host, float("-inf")) + REFRESH_S
        if self._ask is None or host in ("", own_host()) or time.monotonic() < due_s:
            return
        self._sampled_s[host] = time.monotonic()
        # in a new context: Serve cancels calls made in a request's context when that request ends
        task = contextvars.Context().run(asyncio.create_task, self._sample(session_id))
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)

    async def _sample(self, session_id: str) -> None:
        assert self._ask is not None
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                host, remote_s = await self._ask(session_id)
        except (Exception, asyncio.CancelledError) as error:  # any failure: the next call may succeed
            if isinstance(error, asyncio.CancelledError) and is_own_cancellation():
                raise
            log.info("The clock of a host could not be measured: %s", type(error).__name__)
            return
        received_s = time.monotonic()
        self._add(host, ClockSample(remote_s - (sent_s + received_s) / 2, (received_s - sent_s) / 2))

    def _add(self, host: str, new: ClockSample) -> None:
        samples = self._samples.setdefault(host, deque(maxlen=KEPT_SAMPLES))
        best = self.best_sample(host)
        if best is not None and abs(new.offset_s - best.offset_s) > new.error_s + best.error_s + WARN_SKEW_S:
            samples.clear()  # that host's clock has jumped, so its earlier samples are wrong
        samples.append(new)
        self._sampled_s[host] = time.monotonic()
