"""Errors of calls to other stages: what callers get instead of Ray's errors."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.common.errors import (
    ReplicaFailedError,
    cancel_call,
    is_replica_failure,
    stream_items,
    to_warmtalk_error,
    with_retry,
)
from models.errors import BusyError, StageError, TextError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TextError("Empty.", "Send text."), TextError),
        (RayTaskError("speak", "…", TextError("Empty.", "Send text.")), TextError),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), BusyError),
        (DeploymentUnavailableError(None), BusyError),
        (RayActorError(), StageError),
        (RuntimeError("a bug"), StageError),
    ],
)
def test_an_error_is_translated(error, kind):
    translated = to_warmtalk_error(error)
    assert type(translated) is kind and translated.message and translated.remedy


def test_an_unexpected_error_is_logged_and_not_shown(caplog):
    assert "secret" not in str(to_warmtalk_error(RuntimeError("secret")))
    assert "secret" in caplog.text


def test_a_poisoned_replica_is_retried_and_a_wrong_text_is_not():
    """As Ray raises them: the error of a task is also an instance of its cause's class."""
    poisoned = RayTaskError("generate", "…", ReplicaFailedError.of("the device is lost")).as_instanceof_cause()
    assert isinstance(poisoned, StageError) and is_replica_failure(poisoned)
    assert is_replica_failure(RayTaskError("restore", "…", poisoned))  # of the stage that awaited it
    assert not is_replica_failure(RayTaskError("speak", "…", TextError("Empty.", "Send text.")).as_instanceof_cause())


@pytest.mark.parametrize("error", [RayActorError(), TaskCancelledError()])
def test_a_replica_that_was_killed_is_named_as_the_cause_and_is_no_bug(error, caplog):
    assert to_warmtalk_error(error).message == "A stage lost its replica while it processed the request."
    assert not caplog.records


@pytest.mark.parametrize("error", [BackPressureError(num_queued_requests=1, max_queued_requests=1), RayActorError()])
def test_cancelling_a_call_that_was_not_sent_raises_nothing(error):
    def cancel():
        cancelled.append(True)
        raise error

    cancelled = []
    cancel_call(SimpleNamespace(cancel=cancel))
    assert cancelled


async def items(*values):
    for value in values:
        if isinstance(value, BaseException):
            raise value
        yield value


async def test_the_items_of_a_stream_are_passed_on_and_so_are_its_errors():
    assert [item async for item in stream_items(items(1, 2))] == [1, 2]
    with pytest.raises(TextError):
        [item async for item in stream_items(items(1, TextError("Empty.", "Send text.")))]


async def test_a_lost_replica_is_an_error_and_does_not_cancel_the_caller():
    """Ray 2.60 raises CancelledError from the streams of a replica that it lost."""
    with pytest.raises(StageError, match="lost its replica"):
        [item async for item in stream_items(items(1, asyncio.CancelledError()))]


async def test_a_cancelled_caller_stays_cancelled():
    async def endless():
        yield 1
        await asyncio.Event().wait()

    async def read():
        return [item async for item in stream_items(endless())]

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "lost",
    [
        RayActorError(),
        RayTaskError("a", "…", ReplicaFailedError.of("the device is lost")),
        RayTaskError("a", "…", RayTaskError("b", "…", RayActorError())),
        asyncio.CancelledError(),  # by Ray, of a call whose replica was lost
        ReplicaFailedError.of("the device is lost"),  # Serve raises it as it is from a call by value
    ],
)
async def test_a_call_whose_replica_is_lost_is_made_again(monkeypatch, lost):
    monkeypatch.setattr("deployments.common.errors.RETRY_PAUSE_S", 0.0)
    outcomes = [lost, lost, "text"]

    async def call():
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert await with_retry(call) == "text"
    outcomes += [lost, lost, lost]
    with pytest.raises(type(lost)):
        await with_retry(call)
    assert outcomes == []


@pytest.mark.parametrize(
    "error",
    [
        BackPressureError(num_queued_requests=1, max_queued_requests=1),
        DeploymentUnavailableError(None),
        RayTaskError("a", "…", TextError("Empty.")),
        RayTaskError("a", "…", ValueError()),
    ],
)
async def test_a_call_that_another_attempt_would_not_help_is_made_once(error):
    calls = []

    async def call():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        await with_retry(call)
    assert calls == [1]


async def test_a_caller_that_is_cancelled_does_not_try_again():
    calls = []

    async def call():
        calls.append(1)
        await asyncio.sleep(60)

    task = asyncio.create_task(with_retry(call))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls == [1]
