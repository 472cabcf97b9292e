"""One utterance as a call of Stitch that follows its session when that moves to another replica."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.common.errors import cancel_call, is_moved
from deployments.common.messages import SpeakEvent, SpeakRequest

MAX_MOVES = 30
MAX_PAUSE_S = 0.5  # between two attempts; 30 of them take 13 s


class SpeechCall:
    """The events of an utterance. Use it like Serve's response to a streaming call.

    Stitch raises MovedError before an utterance begins. Then it is sent again, and the router finds the new owner.
    """

    def __init__(
        self,
        stitch: DeploymentHandle,
        request: SpeakRequest,
        on_move: Callable[[SpeakRequest], Awaitable[SpeakRequest]] | None = None,
    ) -> None:
        """on_move: called before the request is sent again, which it may change."""
        self._stitch, self._on_move = stitch, on_move
        self._request = replace(request, sent_s=request.sent_s or time.time())
        self._begun = False
        self._context = contextvars.copy_context()  # of the first call, also for the later ones
        self._response = self._send()

    def _send(self) -> Any:
        request = self._request
        handle = self._stitch.options(stream=True, _by_reference=False, session_id=request.session_id)
        return self._context.run(handle.speak.remote, request)

    def __aiter__(self) -> SpeechCall:
        return self

    async def __anext__(self) -> SpeakEvent:
        while True:
            try:
                event: SpeakEvent = await anext(self._response)
            except Exception as error:
                if not is_moved(error) or self._begun or self._request.moves >= MAX_MOVES:
                    raise
                await self._send_again()
                continue
            self._begun = True
            return event

    async def _send_again(self) -> None:
        moves = self._request.moves + 1
        cancel_call(self._response)
        await asyncio.sleep(min(MAX_PAUSE_S, 0.02 * (moves - 1)))  # the first time at once
        self._request = replace(self._request, moves=moves)
        if self._on_move is not None:
            self._request = await self._on_move(self._request)
        self._response = self._send()

    def cancel(self) -> None:
        self._response.cancel()
