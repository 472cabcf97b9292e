"""Fades the enhancement of live speech out where it cannot keep up, and in again. No Ray imports.

Where Enhance has no replica yet, because it is scaled to zero when unused, live speech begins without it and gains it.
Strength alone costs nothing less, so it is only the way between full enhancement and none: it changes a little with
each frame, so that viewers see no jump.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from cachetools import LRUCache

from models.types import Float32

log = logging.getLogger("ray.serve")

LOW, HIGH = 0.25, 0.6  # of the playing time that is made ahead: below, enhancement fades out if the reserve shrinks
FADE_OUT_S, FADE_IN_S = 1.0, 3.0  # of playing time, for the whole way
FIRST_RETRY_S, MAX_RETRY_S = 5.0, 80.0  # until it fades in again; doubled each time that it has to fade out soon after
TREND_SMOOTHING, MIN_CHUNKS = 0.3, 4  # an utterance has little slack where it begins, but then it grows
KEPT_SESSIONS = 1024
ANSWER_AGE_S = 10.0  # after which it is asked again before it is used; shorter than a downscale_to_zero_delay_s
ASK_AGAIN_S = 5.0  # after an error


@dataclass(slots=True)
class EnhanceFade:
    """Of one session. ahead_s: playing time that is made ahead of the viewers. `share` multiplies the strength.

    contact: with Enhance; while it does not answer, nothing is enhanced.
    """

    ahead_s: float
    contact: Contact
    share: float = 1.0
    _fading_out: bool = False
    _retry_s: float = FIRST_RETRY_S
    _changed_s: float = 0.0  # when it began to fade out or in
    _slack_s: float | None = None
    _trend_s: float = 0.0  # by which the slack grows per chunk
    _chunks: int = 0  # of this utterance

    def made(self, slack_s: float) -> None:
        """A chunk has been made, slack_s seconds before it is due."""
        if self.share:
            self.contact.answered()
        if self._slack_s is not None:
            self._trend_s += TREND_SMOOTHING * (slack_s - self._slack_s - self._trend_s)
        self._slack_s = slack_s
        now_s = time.monotonic()
        self._chunks += 1
        shrinks = self._trend_s < 0 and self._chunks >= MIN_CHUNKS
        if not self._fading_out and slack_s < LOW * self.ahead_s and shrinks:
            soon = now_s - self._changed_s < 2 * self._retry_s + self.ahead_s
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S) if soon else FIRST_RETRY_S
            self._fading_out, self._changed_s = True, now_s
        elif self._fading_out and slack_s > HIGH * self.ahead_s and now_s - self._changed_s >= self._retry_s:
            self._fading_out, self._changed_s = False, now_s

    def next(self, frames: int, fps: int) -> Float32:
        """The shares `(frames,)` of the next chunk."""
        if not self.share and not self._fading_out:
            self.contact.check()  # it may have been scaled to zero since it was used
        if not self.contact.answers:
            self.share = 0.0
            return np.zeros(frames, np.float32)
        step = -1 / (FADE_OUT_S * fps) if self._fading_out else 1 / (FADE_IN_S * fps)
        shares: Float32 = np.clip(self.share + step * np.arange(1, frames + 1), 0, 1).astype(np.float32)
        self.share = float(shares[-1])
        return shares


class Contact:
    """Whether Enhance has a replica that answers. One that is scaled to zero is started by the call.

    ask: calls Enhance, and returns when a replica has answered. None: it always answers.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]] | None = None) -> None:
        self._ask = ask
        self._answered_s = -math.inf
        self._asking: asyncio.Task[None] | None = None

    @property
    def answers(self) -> bool:
        return self._asking is None

    def answered(self) -> None:
        self._answered_s = time.monotonic()

    def check(self) -> None:
        """Ask, unless it answered within ANSWER_AGE_S. Until it answers, nothing is enhanced."""
        if self._ask is not None and self._asking is None and time.monotonic() - self._answered_s > ANSWER_AGE_S:
            # in a new context: Serve cancels the calls of a request that is cancelled, but others want the answer, too
            self._asking = contextvars.Context().run(asyncio.create_task, self._wait_for_answer(self._ask))

    async def _wait_for_answer(self, ask: Callable[[], Awaitable[object]]) -> None:
        try:
            while not await self._try(ask):
                await asyncio.sleep(ASK_AGAIN_S)
            self.answered()
        finally:  # a call that is cancelled is made again by the next `check`
            self._asking = None

    async def _try(self, ask: Callable[[], Awaitable[object]]) -> bool:
        try:
            await ask()
        except Exception as error:  # noqa: BLE001 - live speech goes on without it
            log.warning("Enhance does not answer; live speech goes on without it: %s", error)
            return False
        return True


class EnhanceFades:
    """The fades of the sessions that spoke most recently. ask: see Contact."""

    def __init__(self, ask: Callable[[], Awaitable[object]] | None = None) -> None:
        self._contact = Contact(ask)
        self._by_session: LRUCache[str, EnhanceFade] = LRUCache(KEPT_SESSIONS)

    def begin(self, session_id: str, ahead_s: float) -> EnhanceFade:
        """The fade of a new utterance, which goes on where the session's latest utterance ended."""
        self._contact.check()
        before = self._by_session.get(session_id, EnhanceFade(ahead_s, self._contact))
        fade = self._by_session[session_id] = replace(before, ahead_s=ahead_s, _slack_s=None, _trend_s=0.0, _chunks=0)
        return fade

    def count_faded(self, session_ids: Iterable[str]) -> int:
        """How many of these sessions spoke last with less than the full enhancement."""
        fades = [self._by_session.get(session_id) for session_id in set(session_ids)]
        return sum(fade is not None and fade.share < 1 for fade in fades)
