"""Request bodies that stop, or arrive too slowly, are refused; in virtual time."""

import asyncio
import json

import pytest

from deployments.common.messages import SpeakEvent
from deployments.ingress.body_limit import IDLE_TIMEOUT_S, MIN_RATE_BYTES_S
from tests.support.ingress import (
    SUMMARY,
    EndlessStitch,
    Handle,
    make_replica,
    send_partly,
)
from tests.support.uploads import left_uploads
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """serve(stitch=…, …) binds the routes to a replica over fake stages."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    return lambda *stages, **options: make_replica(monkeypatch, *stages, **options)


def message_of(body: bytes) -> str:
    return json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        *((path, None) for path in ("/speak", "/chat", "/sessions", "/login", "/v1/audio/speech", "/speak/audio")),
        ("/avatars?avatar_id=me", None),
        ("/sessions/alice/whep", {"content-type": "application/sdp"}),
        ("/v1/audio/transcriptions", FORM),
    ],
)
async def test_a_body_that_stops_is_refused_after_the_timeout_and_leaves_nothing(serve, path, headers):
    stitch, avatars = EndlessStitch(), Handle()
    replica = serve(stitch, avatars, recognize=Handle())
    began_s = asyncio.get_running_loop().time()
    status, body = await send_partly(path, b"--x\r\n" if headers is FORM else b'{"text": "Hel', headers=headers)
    assert (status, message_of(body)) == (408, "Nothing more of the request arrived for 60 s.")
    assert asyncio.get_running_loop().time() - began_s == pytest.approx(IDLE_TIMEOUT_S, abs=0.1)
    assert avatars.calls == [] and all(speech.cancelled for speech in stitch.speeches)
    assert left_uploads() == [] and replica._uploads._limit.active == 0


@pytest.mark.parametrize("path", ["/speak", "/speak/audio", "/avatars?avatar_id=me"])
async def test_a_body_that_arrives_byte_by_byte_is_refused(serve, path):
    """Eight such clients would otherwise hold all upload slots for days."""
    serve(Handle(speak=[]), Handle())
    status, body = await send_partly(path, b" ", repeat_s=1.0)
    assert (status, message_of(body)) == (408, "The request arrives at less than 8 KB/s.")
    assert left_uploads() == []


async def test_a_body_at_the_minimum_rate_is_accepted_however_long_it_takes(serve):
    serve(Handle(speak=[SpeakEvent(summary=SUMMARY)]))
    part = b"x" * MIN_RATE_BYTES_S
    assert (await send_partly("/speak/audio", part, repeat_s=1.0, repeats=200))[0] == 200


async def test_only_a_limited_number_of_uploads_is_received_at_a_time(serve):
    serve(Handle(), config={"max_uploads": 2})
    for _ in range(2):  # refused uploads give their slots back
        answers = await asyncio.gather(*(send_partly("/speak/audio", b"RIFF") for _ in range(5)))
        assert sorted(status for status, _ in answers) == [408, 408, 429, 429, 429]


@pytest.mark.parametrize("path", ["/speak", "/chat", "/speak/audio", "/avatars?avatar_id=me", "/sessions/alice/say"])
async def test_a_client_that_leaves_during_its_body_leaves_no_file_and_logs_no_error(serve, path, monkeypatch):
    errors: list[object] = []
    monkeypatch.setattr("deployments.common.errors.log.error", lambda *message, **more: errors.append(message))
    avatars = Handle()
    replica = serve(Handle(speak=[], feed=None), avatars)
    status, _ = await send_partly(path, b"RIFF", leaves=True)
    assert status in (0, 400, 422, 499)  # nobody reads it
    assert avatars.calls == errors == [] and replica._uploads._limit.active == 0
    assert left_uploads() == []
