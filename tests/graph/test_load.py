"""The graph under load: clients that never read, the limit of sessions, and visits that must leave nothing behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.live_overload import media_of
from tests.graph.media import assert_without_gaps, decode
from tests.graph.processes import changed, command_lines, user_config
from tests.graph.requests import error_of, speak, wait_until
from warmtalk.cli.local_graph import LocalGraph

pytestmark = pytest.mark.ray

STUCK = 4  # clients of each kind that never read
PAUSE_S = 8.0  # of a client that stops reading: above the 3 s after which its connection counts as congested
VISITS, AT_ONCE = 100, 3  # one visit shows what is left of tasks, files and threads; memory needs many
SPARE_MB = 80  # a session takes up to 6 MB (encoder, frames in flight, viewer's queue)
LONG = "Somebody interrupts this. " * 12


def footprints(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """Stage → process id, memory (also `own_mb`: without what is shared), open files, threads and tasks."""
    stages: dict[str, dict[str, Any]] = client.get("/footprint").raise_for_status().json()["stages"]
    return {stage: facts | {"own_mb": facts["rss_mb"] - facts["shared_mb"]} for stage, facts in stages.items()}


def live_counts(client: httpx.Client) -> dict[str, int]:
    """Numbers of hubs and viewers."""
    return dict(client.get("/footprint").json()["live"])


SPARE = {"tasks": 0, "open_files": 2, "threads": 8}  # Ray may open a connection and start threads of its own


def excess(before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> list[str]:
    """What the stages hold more of than before, beyond SPARE."""
    return [
        f"{stage}: {now[stage][key]} {key} instead of {then[key]}"
        for stage, then in before.items()
        for key, spare in SPARE.items()
        if now[stage][key] > then[key] + spare
    ]


def assert_no_leak(client: httpx.Client, before: dict[str, dict[str, Any]], spare_mb: float) -> None:
    """Tasks, files and threads return to where they were; memory grows by no more than `spare_mb`."""
    end_s = time.monotonic() + 30
    while excess(before, after := footprints(client)) and time.monotonic() < end_s:
        time.sleep(0.2)
    assert excess(before, after) == []
    for stage, then in before.items():
        assert after[stage]["pid"] == then["pid"], (before, after)
        assert after[stage]["own_mb"] <= then["own_mb"] + spare_mb, (before, after)


class Watcher(threading.Thread):
    """Watches a session until `stop`."""

    def __init__(self, client: httpx.Client, session_id: str) -> None:
        super().__init__(daemon=True)
        self._client, self._url, self._stopped = client, f"/sessions/{session_id}/live.mp4", False
        self.begun, self.data, self.ended = threading.Event(), b"", False
        self.start()
        assert self.begun.wait(60)

    def run(self) -> None:
        with contextlib.suppress(httpx.TransportError), self._client.stream("GET", self._url) as answer:
            for part in answer.iter_raw():
                self.data += part
                self.begun.set()
                if self._stopped:
                    return
        self.ended = True

    def stop(self) -> None:
        self._stopped = True
        self.join(10)


# --- clients that do not read


def connected(graph: LocalGraph, request: str) -> socket.socket:
    """A client with a small receive window that has sent a request and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", graph.port))
    client.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n".encode())
    return client


def never_reads(graph: LocalGraph, session_id: str) -> socket.socket:
    client = connected(graph, f"GET /sessions/{session_id}/live.mp4")
    client.sendall(b"\r\n")
    return client


def opened_socket(graph: LocalGraph, session_id: str) -> socket.socket:
    """An upgraded WebSocket on which nothing has been sent yet."""
    client = connected(graph, f"GET /sessions/{session_id}/ws")
    client.sendall(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
    client.sendall(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 101"
    return client


def frame(message: bytes) -> bytes:
    """A masked text message; the mask is zero."""
    return bytes([0x81, 0x80 | len(message)]) + bytes(4) + message


@pytest.fixture
def proxy() -> psutil.Process:
    """Serve's HTTP proxy."""
    return psutil.Process(next(pid for pid, title in command_lines().items() if "ProxyActor" in title))


def test_clients_that_never_read_are_dropped_and_neither_take_memory_nor_delay_others(
    graph: LocalGraph, client: httpx.Client, proxy: psutil.Process
) -> None:
    speak(client, "Warm up.", session_id="warm-up")
    client.post("/sessions", json={"session_id": "slow"}).raise_for_status()
    wait_until(lambda: live_counts(client)["viewers"] == 0, "the viewers of earlier tests have left")
    watcher = Watcher(client, "slow")
    before, proxy_mb = footprints(client), proxy.memory_info().rss / 1e6
    stuck = [never_reads(graph, "slow") for _ in range(STUCK)]
    for message in (frame(b'{"type": "watch"}'), frame(b'{"type": "speak", "text": "Hello."}')[:12]):
        for _ in range(STUCK):
            stuck.append(opened_socket(graph, "slow"))
            stuck[-1].sendall(message)
    paused = never_reads(graph, "slow")
    wait_until(lambda: live_counts(client)["viewers"] == 2 * STUCK + 2, "all but half messages are viewers")
    before_s = seconds_of(watcher)
    time.sleep(PAUSE_S)
    wait_until(
        lambda: seconds_of(watcher) >= before_s + PAUSE_S,
        f"the watcher gets {PAUSE_S:g} s of stream while the others are stuck",
        PAUSE_S + 5,
    )
    seen = read_for(paused, 3.0)
    assert_back_at_the_live_edge(seen, watcher)
    paused.close()
    wait_until(lambda: live_counts(client)["viewers"] == 1, "those that never read are dropped")
    received = len(watcher.data)
    wait_until(lambda: len(watcher.data) > received, "the watcher is still served")
    grown = footprints(client)
    # 200 kbit/s for 20 s to 13 clients would be 6 MB, and several times that with what the allocator keeps
    for stage in ("Ingress", "Stitch"):
        assert grown[stage]["own_mb"] < before[stage]["own_mb"] + 30, (before, grown)
    assert proxy.memory_info().rss / 1e6 < proxy_mb + 60
    watcher.stop()
    assert_without_gaps(decode(media_of(watcher.data)[0]))
    for opened in stuck:
        opened.close()
    assert_no_leak(client, before, spare_mb=30)


def read_for(client: socket.socket, seconds: float) -> bytes:
    """The body of a chunked answer, as far as it comes in that time."""
    client.settimeout(5.0)
    raw, end_s = b"", time.monotonic() + seconds
    while time.monotonic() < end_s:
        raw += client.recv(2**16)
    body, rest = b"", raw.partition(b"\r\n\r\n")[2]
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def seconds_of(watcher: Watcher) -> float:
    """The seconds of stream that it has received."""
    return len(media_of(watcher.data)[1]) / 25


def assert_back_at_the_live_edge(data: bytes, watcher: Watcher) -> None:
    """A viewer that paused got a decodable stream without gaps, whose end another viewer has only just seen."""
    whole, seen, _ = media_of(data)
    assert_without_gaps(decode(whole))

    def shown_after() -> list[bytes]:
        shown = media_of(watcher.data)[1]
        return shown[shown.index(seen[-1]) :] if seen[-1] in shown else []  # coded pictures are equal for all viewers

    assert len(wait_until(shown_after, "another viewer sees the same picture")) / 25 < PAUSE_S / 2


# --- the limit of sessions


def test_sessions_beyond_the_limit_are_refused_and_removed_ones_make_room(
    graph: LocalGraph, client: httpx.Client
) -> None:
    known = len(client.get("/sessions").json())
    limit = known + 40
    names = [f"crowd-of-sessions-{k}" for k in range(40)]
    with (
        changed(graph, user_config("Stitch", max_sessions=limit)),
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        opened = list(pool.map(lambda name: client.post("/sessions", json={"session_id": name}), names))
        assert {answer.status_code for answer in opened} == {201}
        refused = client.post("/sessions", json={"session_id": "one-too-many"})
        assert (refused.status_code, error_of(refused)["code"]) == (507, "quota"), refused.text
        assert str(limit) in error_of(refused)["message"]
        spoken = client.post("/speak", json={"text": "Me, too.", "session_id": "one-too-many"})
        assert error_of(spoken) | {"request_id": ""} == error_of(refused) | {"request_id": ""}
        assert len(client.get("/sessions").json()) == limit
        list(pool.map(lambda name: client.delete(f"/sessions/{name}").raise_for_status(), names))
        assert client.post("/sessions", json={"session_id": "one-too-many"}).status_code == 201
        client.delete("/sessions/one-too-many").raise_for_status()
    assert len(client.get("/sessions").json()) == known


# --- leaks


def visit(client: httpx.Client, name: str) -> None:
    """Open a session, watch it, speak, interrupt, close, delete."""
    client.post("/sessions", json={"session_id": name}).raise_for_status()
    watcher = Watcher(client, name)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        body = {"text": LONG, "session_id": name}
        speaking = pool.submit(lambda: client.post("/speak", json=body))
        wait_until(lambda: client.get(f"/sessions/{name}").json()["frames"], "its speech is shown")
        assert client.post(f"/sessions/{name}/interrupt").raise_for_status().json()["interrupted"] == 1
        assert speaking.result(60).json()["interrupted"]
    client.post(f"/sessions/{name}/close").raise_for_status()
    watcher.join(60)
    assert watcher.ended and len(watcher.data) > 10_000
    client.delete(f"/sessions/{name}").raise_for_status()


@pytest.fixture
def without_recorded_pauses(graph: LocalGraph) -> Iterator[None]:
    with changed(graph, user_config("Stitch", recorded_pause_ms=0, max_live_load=None)):
        yield


@pytest.mark.usefixtures("without_recorded_pauses")
def test_a_visit_leaves_nothing_behind(client: httpx.Client) -> None:
    visit(client, "visit-1")  # caches, threads and connections reach what a visit needs
    wait_until(lambda: live_counts(client)["hubs"] == 0, "the hub is gone", every_s=0.2)
    before = footprints(client)
    visit(client, "visit-2")
    wait_until(lambda: live_counts(client)["hubs"] == 0, "the hub is gone", every_s=0.2)
    assert_no_leak(client, before, spare_mb=30)


@pytest.mark.full
@pytest.mark.usefixtures("without_recorded_pauses")
def test_many_visits_leave_nothing_behind(client: httpx.Client) -> None:
    def make(kind: str, count: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda k: visit(client, f"{kind}-{k}"), range(count)))
        wait_until(lambda: live_counts(client)["hubs"] == 0, "hubs are gone", every_s=0.2)

    make("first", AT_ONCE)  # caches, threads and connections reach what AT_ONCE visits need
    before = footprints(client)
    make("later", VISITS)
    assert_no_leak(client, before, spare_mb=SPARE_MB)
