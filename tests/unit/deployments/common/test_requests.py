"""What is recorded of a call of a stage: its errors, and its session in the logs."""

import asyncio
import logging

import pytest
from ray.exceptions import RayTaskError

from deployments.common import requests
from deployments.common.messages import ChatRequest
from deployments.common.requests import RECENT_ERRORS, TRACE_PARENT, detached, request_id, stage_call, use_request_id
from models.errors import InputError, MovedError, StageError


class Stage:
    stage = "LipSync"

    @stage_call
    async def generate(self, features: str, session_id: str = "") -> str:
        requests.log.warning("generates")
        if features == "bad":
            raise RayTaskError("windows", "…", StageError("It broke."))
        return features

    @stage_call
    async def speak(self, request: ChatRequest):
        yield request.message
        if request.message == "moved":
            raise MovedError("It moves.")
        raise InputError("Nothing to say.")


@pytest.fixture(autouse=True)
def counted(monkeypatch) -> list[tuple[str, dict[str, str]]]:
    RECENT_ERRORS.clear()
    found: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(requests, "increment", lambda name, **tags: found.append((name, tags)))
    return found


async def test_a_failure_is_counted_by_the_code_of_its_cause_and_kept_with_its_request(counted):
    use_request_id("r-1")
    with pytest.raises(RayTaskError):
        await Stage().generate("bad", session_id="alice")
    assert counted == [("warmtalk_errors_total", {"stage": "LipSync", "code": "stage_failed"})]
    (kept,) = RECENT_ERRORS
    assert kept | {"time_s": 0} == {
        "time_s": 0,
        "stage": "LipSync",
        "code": "stage_failed",
        "message": "It broke.",
        "request_id": "r-1",
        "session_id": "alice",
    }


async def test_what_callers_do_wrong_is_counted_but_not_kept_and_a_move_is_no_error(counted):
    for message in ("hello", "moved"):
        with pytest.raises((InputError, MovedError)):
            async for item in Stage().speak(ChatRequest(message)):
                assert item == message
    assert counted == [("warmtalk_errors_total", {"stage": "LipSync", "code": "bad_input"})]
    assert not RECENT_ERRORS


@pytest.mark.parametrize("arguments", [("x", "alice"), ("x",)])
async def test_log_records_of_a_call_have_its_session(arguments):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    requests.log.addHandler(handler)
    try:
        await Stage().generate(*arguments)
    finally:
        requests.log.removeHandler(handler)
    assert [getattr(record, "session_id", None) for record in records] == ["alice" if len(arguments) > 1 else None]


async def test_work_that_outlives_its_request_keeps_its_id_and_its_trace():
    use_request_id("r-2")
    TRACE_PARENT.set("00-…")

    async def work() -> tuple[str, str]:
        return request_id(), TRACE_PARENT.get()

    assert await detached().run(asyncio.create_task, work()) == ("r-2", "00-…")
