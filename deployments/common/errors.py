"""What a call of another stage raised, as an error in words. Knows Ray's errors and ours; no stage and no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from models.errors import BusyError, StageError, WarmTalkError

log = logging.getLogger("ray.serve")


def known_error(error: Exception) -> WarmTalkError:
    """The WarmTalkError behind whatever a handle raised."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, WarmTalkError):
        return cause
    if isinstance(error, WarmTalkError):
        return error
    if isinstance(error, BackPressureError):
        return BusyError("All replicas are busy and their queues are full.", "Try again in a few seconds.")
    if isinstance(error, DeploymentUnavailableError):
        return BusyError("A stage has no running replica at the moment.", "Try again in a few seconds.")
    log.error("unexpected error", exc_info=error)
    return StageError("A stage failed while it served the request.", "Send it again; the server's log has the details.")


def own_cancellation() -> bool:
    """Whether the running task itself is to end, and not only what it waits for: Ray 2.60 raises CancelledError, too,
    where a replica goes away (told apart from Python 3.11 on).
    """
    task: Any = asyncio.current_task()
    return bool(task.cancelling()) if hasattr(task, "cancelling") else True


async def items_of(events: Any) -> AsyncGenerator[Any, None]:
    """The items of a streaming call. Raises what it raises, and StageError where its replica goes away."""
    try:
        async for event in events:
            yield event
    except asyncio.CancelledError as error:
        if own_cancellation():
            raise
        raise gone() from error


def gone() -> StageError:
    return StageError("A stage's replica went away while it served the request.", "Send it again.")
