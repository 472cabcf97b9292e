"""Calls of the stages of an utterance: how long they may go without an answer, and which failures are tried again."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.common.errors import (
    RETRY_PAUSE_S,
    ReplicaFailedError,
    cause_of,
    is_replica_failure,
    to_warmtalk_error,
)
from deployments.common.worker import RecentDurations
from models.errors import BusyError, StageError, WarmTalkError

LONGEST_PAUSE_S = 2.0
LONGEST_WAIT = 3  # times the timeout, while others are answered


@dataclass(slots=True, eq=False)
class _Wait:
    """A call that waits for its answer."""

    timeout: asyncio.Timeout
    least_s: float
    end_s: float  # by the clock of the event loop: it is given up then, whatever others get
    overtaken: bool = False  # it will be given up at end_s, because others are answered


class OvertakenError(TimeoutError):
    """A call has waited for long while the stages answered others: they are overloaded, or its answer is lost."""


class Answers:
    """When the stages last answered any utterance of this replica, so that waiting in a queue is not taken for a hang.

    A call of a stage that answers others waits for its turn. A replica that hangs ends itself (common/supervision.py);
    this timeout is for one that cannot even do that, and for an answer that is lost. Not thread-safe: use it from one
    event loop.
    """

    def __init__(self) -> None:
        self._waits: defaultdict[str, set[_Wait]] = defaultdict(set)
        self._computed: defaultdict[str, RecentDurations] = defaultdict(RecentDurations)  # by kind
        self._waited: defaultdict[tuple[str, bool], RecentDurations] = defaultdict(RecentDurations)  # by kind and haste

    @asynccontextmanager
    async def waiting(self, kind: str, timeout_s: float, urgent: bool = True) -> AsyncGenerator[None, None]:
        """Raises TimeoutError when no call of this kind is answered for timeout_s, or longer where they take long.

        Raises OvertakenError when this call waits for LONGEST_WAIT times as long, and longer than its like.
        """
        start_s = asyncio.get_running_loop().time()
        end_s = start_s + self._waited[kind, urgent].limit_s(LONGEST_WAIT * timeout_s)
        timeout = asyncio.timeout(self._computed[kind].limit_s(timeout_s))
        wait = _Wait(timeout, timeout_s, end_s)
        self._waits[kind].add(wait)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if timeout.expired() and wait.overtaken:
                raise OvertakenError from error
            raise
        finally:
            self._waits[kind].discard(wait)
        self._waited[kind, urgent].add(asyncio.get_running_loop().time() - start_s)

    def answered(self, kind: str, compute_s: float) -> None:
        """Count an answer, and let the calls of its kind wait on. compute_s: what it took, without queues."""
        self._computed[kind].add(compute_s)
        now_s = asyncio.get_running_loop().time()
        for wait in self._waits[kind]:
            if not wait.timeout.expired():
                until_s = now_s + self._computed[kind].limit_s(wait.least_s)
                wait.overtaken = until_s >= wait.end_s
                wait.timeout.reschedule(min(until_s, wait.end_s))


BUSY = (BackPressureError, DeploymentUnavailableError, OvertakenError)  # no failures, unless they last


@dataclass(slots=True)
class Attempts:
    """The attempts of one call. stages: in words, for errors. busy_limit_s: how long full queues are waited for."""

    stages: str
    tries: int
    timeout_s: float
    busy_limit_s: float = 0.0
    failed: int = 0
    _began_s: float = field(default_factory=time.monotonic)

    async def pause_after(self, error: BaseException) -> None:
        """Wait before the next attempt, longer each time. Raises errors that another attempt does not fix."""
        cause = cause_of(error)
        if isinstance(cause, WarmTalkError) and not isinstance(cause, ReplicaFailedError):
            raise cause from None
        if not isinstance(error, BUSY) or time.monotonic() - self._began_s > self.busy_limit_s:
            self.failed += 1
        if isinstance(error, OvertakenError) and self.failed >= self.tries:
            raise BusyError(f"The server is overloaded: {self.stages} answer others first.", "Try again in a minute.")
        if isinstance(error, BUSY) and self.failed >= self.tries:
            raise to_warmtalk_error(error) from error
        if self.failed >= self.tries or not (isinstance(error, BUSY) or is_replica_failure(error)):
            raise self._final_error(error, cause) from error
        await asyncio.sleep(min(RETRY_PAUSE_S * 2 ** max(self.failed - 1, 0), LONGEST_PAUSE_S))

    def _final_error(self, error: BaseException, cause: BaseException) -> StageError:
        if isinstance(error, TimeoutError):
            what = f"did not answer for {self.timeout_s:g} s, {self.failed} times"
            return StageError(f"{self.stages} {what}.", "GET /readyz says which stage cannot serve.")
        times = f" in {self.failed} attempts" if self.failed > 1 else ""
        why = cause.message if isinstance(cause, WarmTalkError) else f"{type(cause).__name__}."
        return StageError(f"{self.stages} failed{times}: {why}", "Read the server's log.")
