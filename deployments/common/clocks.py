"""What time it is at other hosts, measured by the calls themselves: a session's clock is its Stitch process's.

That is the wall clock as the process found it, carried on by its host's monotonic clock: setting the wall clock neither
stops speech nor lets it leap. All processes of a host share the monotonic one; the way from another host's is measured
as NTP does (RFC 5905, 8 and 10): the other's time belongs to the middle of a call, and is wrong by half of it at most;
of the latest calls the quickest counts. Knows neither stages nor sessions; a way to ask is given to it.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

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

log = logging.getLogger("ray.serve")

FIRST_CALLS = 4  # before a host's time is used: the first one is slow
REFRESH_S = 15.0  # clocks drift by 50 ppm and less: under a millisecond in so long
KEPT_CALLS = 8  # two minutes
PATIENCE_S = 2.0  # a call that takes longer says nothing
NOTED_S = 0.05  # hosts whose clocks differ by more are worth a line in the log

ZERO_S = time.time() - time.monotonic()  # of this process: what its clock adds to its host's monotonic one

Ask = Callable[[str], Awaitable[tuple[str, float]]]  # session id → host, its monotonic clock in seconds
Now = Callable[[], float]


def steady_s() -> float:
    """Seconds since the epoch, as this process found them at its start: setting the wall clock does not change them."""
    return ZERO_S + time.monotonic()


@functools.cache
def own_host() -> str:
    """The same for all processes that have one wall clock: those of one running kernel, in whatever containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True, slots=True)
class Reading:
    """offset_s: what is to be added to this process's monotonic clock, right within error_s."""

    offset_s: float
    error_s: float


class HostClocks:
    """The clocks of the hosts that were asked for. Not thread-safe: one event loop."""

    def __init__(self, ask: Ask | None = None, monotonic: Now = time.monotonic) -> None:
        """ask: goes to whichever host has the session now. None: all hosts are taken to be in step."""
        self._ask, self._monotonic = ask, monotonic
        self._readings: dict[str, deque[Reading]] = {}
        self._asked_s: dict[str, float] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def at(self, host: str, session_id: str, zero_s: float = 0.0) -> Now:
        """A function that tells the time of a process there. session_id: of a session that the host has.

        zero_s: the process's ZERO_S.
        """
        if host == own_host() and zero_s:
            return lambda: zero_s + time.monotonic()
        if self._ask is None or host in ("", own_host()):
            return time.time
        for _ in range(FIRST_CALLS if host not in self._readings else 0):
            await self._measure(session_id)
        if self.reading(host):
            ahead_s = self.now(host, zero_s) - time.time()
            if abs(ahead_s) > NOTED_S:
                log.warning("the clock of another host is %+.3f s off this one's, and is followed as it is", ahead_s)
        else:
            log.warning("the clock of another host could not be asked for: it is taken to be in step")
        return functools.partial(self.now, host, zero_s)

    def now(self, host: str, zero_s: float = 0.0) -> float:
        """What time it is for a process at a host; by this one's wall clock where the host has not told."""
        reading = self.reading(host)
        return zero_s + self._monotonic() + reading.offset_s if reading else time.time()

    def reading(self, host: str) -> Reading | None:
        """The most certain of its latest."""
        return min(self._readings.get(host, ()), key=lambda reading: reading.error_s, default=None)

    def refresh(self, host: str, session_id: str) -> None:
        """Ask a host again if it is time; does not wait for it."""
        due_s = self._asked_s.get(host, float("-inf")) + REFRESH_S
        if self._ask is None or host in ("", own_host()) or self._monotonic() < due_s:
            return
        self._asked_s[host] = self._monotonic()
        # in a context of its own: what is called in a request's ends with it
        task = contextvars.Context().run(asyncio.create_task, self._measure(session_id))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _measure(self, session_id: str) -> None:
        assert self._ask is not None
        sent_s = self._monotonic()
        try:
            host, there_s = await asyncio.wait_for(self._ask(session_id), PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - whatever it is: the next call may get through
            log.info("a host's clock could not be asked for: %s", type(error).__name__)
            return
        came_s = self._monotonic()
        self._take(host, Reading(there_s - (sent_s + came_s) / 2, (came_s - sent_s) / 2))

    def _take(self, host: str, new: Reading) -> None:
        readings = self._readings.setdefault(host, deque(maxlen=KEPT_CALLS))
        best = self.reading(host)
        if best is not None and abs(new.offset_s - best.offset_s) > new.error_s + best.error_s + NOTED_S:
            readings.clear()  # the clock there was set: what was measured before is of no use
        readings.append(new)
        self._asked_s[host] = self._monotonic()
