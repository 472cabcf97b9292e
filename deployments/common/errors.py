"""Calls to other stages: turns their errors into WarmTalkErrors with a message and a remedy, and cancels them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Protocol, TypeVar

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from models.errors import BusyError, MovedError, StageError, WarmTalkError
from models.runtime.disk_full import disk_full_error

log = logging.getLogger("ray.serve")

TRIES = 3  # of a call whose replica is lost
RETRY_PAUSE_S = 0.1  # doubled per attempt: 0.1, 0.2, 0.4 … while Serve replaces a lost replica

Item = TypeVar("Item")


class ReplicaFailedError(StageError):
    """A replica that can serve no longer. It is being replaced, so that the same call may succeed."""

    @classmethod
    def of(cls, reason: str) -> ReplicaFailedError:
        return cls(f"A replica failed and is being replaced: {reason}.", "Send the request again in a few seconds.")


def to_warmtalk_error(error: Exception) -> WarmTalkError:
    """The WarmTalkError that caused this error, or one that describes it. Unexpected errors are logged."""
    cause = getattr(error, "cause", None)  # of a RayTaskError
    if isinstance(cause, WarmTalkError):
        return cause
    if isinstance(error, WarmTalkError):
        return error
    if (full := disk_full_error(cause or error)) is not None:
        return full
    if isinstance(error, BackPressureError):
        return BusyError(
            "The server is overloaded: the queues of its replicas are full.", "Try again in a few seconds."
        )
    if isinstance(error, DeploymentUnavailableError):
        return BusyError("A stage has no running replica at the moment.", "Try again in a few seconds.")
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return replica_lost_error()
    log.error("Unexpected error from a stage", exc_info=error)
    return StageError(
        "A stage failed while it processed the request.", "Send the request again; the server's log has the details."
    )


def is_moved(error: BaseException) -> bool:
    """Whether a call was refused because its session moves to another replica."""
    return isinstance(getattr(error, "cause", error), MovedError)  # `cause`: of a RayTaskError


def cause_of(error: BaseException) -> BaseException:
    """The error that was raised in a replica. It is nested where a stage awaited the result of another one."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def is_replica_failure(error: BaseException) -> bool:
    """Whether a call failed only because a replica, or an object that it needed, was lost: another try may succeed."""
    cause = cause_of(error)
    if isinstance(cause, ReplicaFailedError):  # before the next test: Ray's error of a task is one of its cause's class
        return True
    if isinstance(error, BackPressureError | DeploymentUnavailableError | WarmTalkError):
        return False
    if isinstance(error, asyncio.CancelledError):
        return not is_own_cancellation()
    if not isinstance(error, RayTaskError) or isinstance(error, TaskCancelledError):
        return True
    return isinstance(cause, RayError) and not isinstance(cause, RayTaskError)


async def with_retry(call: Callable[[], Awaitable[Item]]) -> Item:
    """The result of `call()`, a call of a stage that changes nothing. It is made again if its replica is lost.

    A replica that has failed may take the next call, too, before it ends; hence TRIES.
    """
    for attempt in range(TRIES):
        try:
            return await call()
        except (RayError, RayServeException, ReplicaFailedError, asyncio.CancelledError) as error:
            if attempt == TRIES - 1 or not is_replica_failure(error):
                raise
        await asyncio.sleep(RETRY_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def is_own_cancellation() -> bool:
    """Whether a CancelledError is for the running task itself.

    Ray 2.60 also raises CancelledError from a call whose replica was lost; then the running task is not cancelled.
    """
    task = asyncio.current_task()
    return task is None or bool(task.cancelling())


class Cancellable(Protocol):
    """A response of Serve, or a SpeechCall."""

    def cancel(self) -> None: ...


def cancel_call(response: Cancellable) -> None:
    """Cancel a call of a stage. Serve's own `cancel` raises if the call could not be sent to a replica."""
    with contextlib.suppress(RayError, RayServeException):
        response.cancel()


async def stream_items(response: AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    """The items of a streaming call. Raises what the call raises, and StageError when its replica is lost."""
    try:
        async for item in response:
            yield item
    except asyncio.CancelledError as error:
        if is_own_cancellation():
            raise
        raise replica_lost_error() from error


def replica_lost_error() -> StageError:
    return StageError("A stage lost its replica while it processed the request.", "Send the request again.")
