"""An utterance follows its session while that moves to another replica."""

import asyncio
import contextvars
import time
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from deployments.common import speech_call
from deployments.common.messages import SpeakEvent, SpeakRequest
from deployments.common.speech_call import SpeechCall
from models.errors import MovedError, StageError
from tests.support.ingress import Events
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

MOVED = MovedError("The session moves.", "Send the request again.")
SPOKEN = [SpeakEvent(b"init"), SpeakEvent(summary={"frames": 1})]
WHERE = contextvars.ContextVar("WHERE", default="")


class Stitch:
    """A handle whose calls give these streams, one after another."""

    def __init__(self, *streams: list[Any]) -> None:
        self.left, self.streams = list(streams), []
        self.requests: list[SpeakRequest] = []
        self.contexts: list[str] = []

    def options(self, **options: Any) -> "Stitch":
        assert options == {"stream": True, "_by_reference": False, "session_id": "alice"}
        return self

    @property
    def speak(self) -> "Stitch":
        return self

    def remote(self, request: SpeakRequest) -> Events:
        self.requests.append(request)
        self.contexts.append(WHERE.get())
        self.streams.append(Events(self.left.pop(0)))
        return self.streams[-1]


async def test_a_request_is_sent_again_until_its_session_has_moved():
    stitch = Stitch([MOVED], [RayTaskError("speak", "", MOVED)], SPOKEN)
    before_s = time.time()
    assert [event async for event in SpeechCall(stitch, SpeakRequest("alice", "Hello."))] == SPOKEN
    assert [request.moves for request in stitch.requests] == [0, 1, 2]
    assert {request.sent_s for request in stitch.requests} == {before_s}  # it keeps its place in the session's order
    assert [stream.cancelled for stream in stitch.streams] == [True, True, False]


async def test_the_caller_can_change_the_request_that_is_sent_again():
    async def with_key(request: SpeakRequest) -> SpeakRequest:
        return SpeakRequest("alice", text_stream_key=f"key {request.moves}", moves=request.moves)

    stitch = Stitch([MOVED], [MOVED], SPOKEN)
    assert [event async for event in SpeechCall(stitch, SpeakRequest("alice"), with_key)] == SPOKEN
    assert [request.text_stream_key for request in stitch.requests] == ["", "key 1", "key 2"]


async def test_it_gives_up_after_a_while():
    stitch = Stitch(*([MOVED] for _ in range(100)))
    begin_s = time.monotonic()
    with pytest.raises(MovedError):
        await anext(SpeechCall(stitch, SpeakRequest("alice")))
    assert len(stitch.requests) == 1 + speech_call.MAX_MOVES
    assert 8 < time.monotonic() - begin_s < 14


@pytest.mark.parametrize("error", [StageError("It failed.", ""), asyncio.CancelledError()])
async def test_other_errors_are_raised_at_once(error):
    stitch = Stitch([error], SPOKEN)
    with pytest.raises(type(error)):
        await anext(SpeechCall(stitch, SpeakRequest("alice")))
    assert len(stitch.requests) == 1


async def test_an_utterance_that_has_begun_is_not_spoken_twice():
    stitch = Stitch([SPOKEN[0], MOVED], SPOKEN)
    call = SpeechCall(stitch, SpeakRequest("alice"))
    assert await anext(call) == SPOKEN[0]
    with pytest.raises(MovedError):
        await anext(call)


async def test_all_its_calls_are_made_in_the_context_of_the_first():
    """Serve cancels the calls of a request's context when the request ends."""
    stitch = Stitch([MOVED], SPOKEN)
    WHERE.set("first")
    call = SpeechCall(stitch, SpeakRequest("alice"))
    WHERE.set("second")
    await anext(call)
    assert stitch.contexts == ["first", "first"]


async def test_a_cancel_ends_the_call_that_is_running():
    stitch = Stitch([MOVED], SPOKEN)
    call = SpeechCall(stitch, SpeakRequest("alice"))
    await anext(call)
    call.cancel()
    assert stitch.streams[1].cancelled
