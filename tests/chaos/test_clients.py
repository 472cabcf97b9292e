"""More clients than the graph can serve, and clients that vanish."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import numpy as np
import pytest

from tests.chaos.checks import finished, record
from tests.chaos.engines import expected_frames
from tests.chaos.harness import ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience
from tests.graph.processes import changed, user_config
from tests.graph.requests import wait_until
from tests.graph.test_load import footprints, live_counts

pytestmark = pytest.mark.ray

CLIENTS, EVERY_S = 50, 0.1
MS_PER_FRAME = 8.0  # of LipSync: 125 frames/s, which is five sessions at 25 fps
TEXT = "There are more of us than this server is able to serve at once. " * 2
REFUSED_S = 0.1
PACE_S = 0.5  # longest pause in the speech of an accepted session


@pytest.mark.soak
@pytest.mark.promise(
    "50 watched sessions begin to speak within 5 s on a graph that can serve 5",
    "accepted ones keep their pace (pause ≤ 0.5 s); the others get 429 with Retry-After in < 100 ms",
)
def test_clients_over_capacity(graph: ChaosGraph, audience: Audience, row: Row, name: str) -> None:
    ids = [f"{name}-{k}" for k in range(CLIENTS)]
    with changed(graph.running, user_config("Stitch", max_live_load=0.9)):
        graph.inject("LipSync", kind="slow", ms_per_item=MS_PER_FRAME)
        audience.open("measures", "measures-too")
        finished({session_id: audience.speak(session_id, TEXT) for session_id in ("measures", "measures-too")})
        audience.open(*ids)
        began_s = time.monotonic()
        asked = {}
        for session_id in ids:
            asked[session_id] = audience.speak(session_id, TEXT)
            time.sleep(EVERY_S)
        answers = finished(asked)
    accepted = {session_id: answer for session_id, answer in answers.items() if answer.status == 200}
    refused = [answer for answer in answers.values() if answer.status == 429]
    waits_s = [answer.answered_s - answer.sent_s for answer in refused]
    retry_s = [int(answer.retry_after) for answer in refused]
    row.saw(accepted=len(accepted), refused=len(refused), refused_after_s=float(np.median(waits_s or [0.0])))
    row.saw(longest_retry_after_s=max(retry_s, default=0))
    record(row, audience, accepted, began_s, time.monotonic())
    assert len(accepted) + len(refused) == CLIENTS, [a.body for a in answers.values() if a.status not in (200, 429)]
    assert 2 <= len(accepted) <= 8, row.seen
    assert row.seen["refused_after_s"] < REFUSED_S, row.seen
    assert all(1 <= seconds <= 60 for seconds in retry_s) and len(set(retry_s)) > 1, retry_s
    assert row.seen["lost_frames"] == 0 and row.seen["longest_pause_s"] <= PACE_S, row.seen


def kept(audience: Audience, before: dict[str, dict[str, Any]]) -> list[str]:
    """What stages hold more of than before. Ten clients of each kind vanished twice; Ray opens a few files itself."""
    now = resources(audience)
    limits = {"tasks": 3, "open_files": 8, "own_mb": 15.0, "stored_mb": 25.0}
    return [
        f"{s}: {then[k]:.1f} → {now[s][k]:.1f} {k}"
        for s, then in before.items()
        for k, spare in limits.items()
        if k in then and now[s][k] > then[k] + spare
    ]


def resources(audience: Audience) -> dict[str, dict[str, Any]]:
    """The footprints of the stages, and the size of all objects in Ray's object store."""
    import ray

    size, free = (source()["object_store_memory"] for source in (ray.cluster_resources, ray.available_resources))
    return {**footprints(audience.api), "Ray": {"stored_mb": (size - free) / 1e6}}


def vanish(graph: ChaosGraph, request: bytes, read: int = 1) -> None:
    """Send a request, read a little, and reset the connection, as a phone without a network does."""
    with socket.create_connection(("127.0.0.1", graph.running.port)) as client:
        client.sendall(request)
        client.settimeout(20)
        if read:
            client.recv(read)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


@pytest.mark.soak
@pytest.mark.promise(
    "40 clients vanish: while they watch, listen, upload, and write; and 80 more",
    "their work ends, the 80 leave nothing behind; a session beside them speaks on, with pauses ≤ 1 s",
)
def test_clients_that_vanish(graph: ChaosGraph, audience: Audience, row: Row, name: str) -> None:
    """The first 40 show how much memory such a load takes: the allocators keep that. A leak grows with the others."""
    stays = f"{name}-stays"
    audience.open(stays)
    audience.open(f"{name}-watched", watched=False)
    vanish_and_speak(graph, audience, row, f"{name}-0")
    before = resources(audience)
    for number in (1, 2):
        vanish_and_speak(graph, audience, row, f"{name}-{number}")
    try:
        wait_until(lambda: not kept(audience, before), "nothing of those clients is kept", 30, every_s=0.2)
    except AssertionError as error:
        raise AssertionError(f"{error}: {kept(audience, before)}") from error
    now = resources(audience)
    row.saw(grown_mb=max(now[stage]["own_mb"] - then["own_mb"] for stage, then in before.items() if stage != "Ray"))
    assert row.seen["longest_gap_s"] <= PACE_S and row.seen["longest_pause_s"] <= 1.0, row.seen


def vanish_and_speak(graph: ChaosGraph, audience: Audience, row: Row, name: str) -> None:
    """Ten clients of each kind vanish while another session speaks; return when their work has ended."""
    stays, watched = (f"{name.rpartition('-')[0]}-{kind}" for kind in ("stays", "watched"))
    audience.watch_again(stays)
    began_s, asked = time.monotonic(), {stays: audience.speak(stays, TEXT)}
    long = TEXT * 10
    for k in range(10):
        body = f'{{"text": "{long}", "session_id": "{name}-gone-{k}", "stream": true}}'.encode()
        vanish(graph, post("/speak", body), read=4000)
        vanish(graph, f"GET /sessions/{watched}/live.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), read=2000)
        vanish(graph, post("/speak/audio?session_id=upload", b"RIFF" + bytes(10_000), length=10**7), read=0)
        vanish(graph, post(f"/sessions/{name}-gone-{k}/say", b"Half a sen", length=10**5), read=0)
        time.sleep(EVERY_S)
    answers = finished(asked)
    record(row, audience, answers, began_s, time.monotonic())
    assert answers[stays].frames == expected_frames(TEXT)
    wait_until(lambda: live_counts(audience.api)["viewers"] == 1, "those that watched have left", 30)
    for k in range(10):
        assert audience.api.get(f"/sessions/{name}-gone-{k}").json()["frames"] < expected_frames(long)
