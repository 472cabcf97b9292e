"""One server over sockets: crowds, clients that never read, cycles that must leak nothing, and a power cut.

The tests share the server and go on where the one before left it; the last ones end it, start it anew, and stop it.
"""

import concurrent.futures
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import yaml

from benchmarks.crowded import media_of
from configs.serve_file import FOLDER, deployment_of
from tests.graph.conftest import STOP_S, Server, decode

pytestmark = pytest.mark.ray

MANY = 1000
CYCLES, AT_ONCE = 50, 10
# glibc gives threads heaps of their own, up to eight a core, each of which keeps what was freed in it: what a process
# takes would grow by tens of megabytes for no leak
FEW_HEAPS = {"MALLOC_ARENA_MAX": "2"}
STUCK = 4  # clients of each kind that never read
STUCK_FOR_S = 22.0  # more than the 3 s after which a connection counts as congested and the 15 s for which it may
LONG = "This sentence is a rather long one, which goes on and on, and in whose midst somebody pulls the plug. " * 2


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("resilience")
    config = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    deployment_of(config, "Stitch")["user_config"] |= {"max_sessions": MANY, "recorded_pause_ms": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    server = Server(folder, str(folder / "config.yaml"), FEW_HEAPS)
    server.wait(server.answers, 120)
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server.url, timeout=120, limits=limits) as client:
        yield client


def takes(client: httpx.Client) -> dict[str, dict]:
    """Stage → what its process takes."""
    stages: dict[str, dict] = client.get("/footprint").raise_for_status().json()["stages"]
    return stages


def viewers(client: httpx.Client) -> int:
    return int(client.get("/footprint").json()["live"]["viewers"])


SPARE = {"tasks": 0, "open_files": 2, "threads": 8}  # a connection may come, and threads, of Ray's own


def over(before: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """What the stages take more of than before, but for SPARE."""
    return [
        f"{stage}: {now[stage][key]} {key} instead of {then[key]}"
        for stage, then in before.items()
        for key, spare in SPARE.items()
        if now[stage][key] > then[key] + spare
    ]


def settled(client: httpx.Client, before: dict[str, dict], timeout_s: float = 30.0) -> dict[str, dict]:
    """What the stages take as soon as tasks, files and threads are back to where they were, or at last."""
    end_s = time.monotonic() + timeout_s
    while over(before, now := takes(client)) and time.monotonic() < end_s:
        time.sleep(0.5)
    return now


def refuse_a_leak(before: dict[str, dict], after: dict[str, dict], spare_mb: float) -> None:
    assert over(before, after) == []
    told = {stage: {key: (before[stage][key], after[stage][key]) for key in after[stage]} for stage in before}
    for stage, then in before.items():
        assert after[stage]["pid"] == then["pid"], told
        assert after[stage]["rss_mb"] <= then["rss_mb"] + spare_mb, told


def proxy(server: Server) -> psutil.Process:
    return next(p for p in server.tree() if "ProxyActor" in " ".join(p.cmdline()))


class Watcher(threading.Thread):
    """Watches a session until `stop`, and notes when bytes came."""

    def __init__(self, client: httpx.Client, session_id: str) -> None:
        super().__init__(daemon=True)
        self._client, self._url, self._stopped = client, f"/sessions/{session_id}/live.mp4", False
        self.begun, self.data, self.came_s, self.ended = threading.Event(), b"", [], False
        self.start()
        assert self.begun.wait(30)

    def run(self) -> None:
        try:
            with self._client.stream("GET", self._url) as answer:
                for part in answer.iter_raw():
                    self.data += part
                    self.came_s.append(time.monotonic())
                    self.begun.set()
                    if self._stopped:
                        return
        except httpx.TransportError:
            pass
        self.ended = True

    def stop(self) -> None:
        self._stopped = True
        self.join(10)


# --- clients that do not do their part


def connected(server: Server, request: str) -> socket.socket:
    """A client with a small window that has sent a request, and has read nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n".encode())
    return client


def never_reads(server: Server, session_id: str) -> socket.socket:
    client = connected(server, f"GET /sessions/{session_id}/live.mp4")
    client.sendall(b"\r\n")
    return client


def opened_socket(server: Server, session_id: str) -> socket.socket:
    """A WebSocket, by hand: upgraded, nothing sent yet."""
    client = connected(server, f"GET /sessions/{session_id}/ws")
    client.sendall(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
    client.sendall(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 101"
    return client


def frame(message: bytes) -> bytes:
    """A masked text message; the mask is zero."""
    return bytes([0x81, 0x80 | len(message)]) + bytes(4) + message


def test_clients_that_never_read_cost_no_memory_and_hold_up_nobody(server, client):
    client.post("/speak", json={"text": "Warm up.", "session_id": "warm"}).raise_for_status()
    client.post("/sessions", json={"session_id": "slow"}).raise_for_status()
    watcher = Watcher(client, "slow")
    time.sleep(1)
    before, processes = takes(client), [proxy(server)]
    rss_mb = [process.memory_info().rss / 1e6 for process in processes]
    stuck = [never_reads(server, "slow") for _ in range(STUCK)]
    sockets = [opened_socket(server, "slow") for _ in range(STUCK)]
    for opened in sockets:
        opened.sendall(frame(b'{"type": "watch"}'))
    halves = [opened_socket(server, "slow") for _ in range(STUCK)]
    for opened in halves:
        opened.sendall(frame(b'{"type": "speak", "text": "Hello."}')[:12])
    pausing, paused_s = never_reads(server, "slow"), time.monotonic()
    time.sleep(0.5)
    assert viewers(client) == 2 * STUCK + 2
    time.sleep(7.5)
    seen = read_for(pausing, 4.0)
    time.sleep(1)
    live = watcher.data
    pausing.close()
    time.sleep(max(0.0, STUCK_FOR_S - (time.monotonic() - paused_s)))
    grown = takes(client)
    for stage in ("Ingress", "Stitch"):
        assert grown[stage]["rss_mb"] < before[stage]["rss_mb"] + 12, (before, grown)
    for process, then_mb in zip(processes, rss_mb, strict=True):
        assert process.memory_info().rss / 1e6 < then_mb + 40
    assert viewers(client) == 1  # those that never read are let go
    assert np.diff(watcher.came_s).max() < 1.0  # four pieces: a player has two, and half a second of patience
    watcher.stop()
    back_at_the_edge(seen, live)
    for opened in (*stuck, *sockets, *halves):
        opened.close()
    time.sleep(1)
    refuse_a_leak(before, settled(client, before), spare_mb=12)


def read_for(client: socket.socket, seconds: float) -> bytes:
    """The body of a chunked answer, as far as it comes in that time."""
    client.settimeout(1.0)
    raw, end_s = b"", time.monotonic() + seconds
    while time.monotonic() < end_s:
        raw += client.recv(2**16)
    body, rest = b"", raw.partition(b"\r\n\r\n")[2]
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def back_at_the_edge(data: bytes, live: bytes) -> None:
    """What a viewer got that has paused is decodable, without a gap, and ends where `live`, another's bytes, ends."""
    whole, seen, _ = media_of(data)
    video = decode(whole)
    np.testing.assert_allclose(np.diff(video.times), 0.04, atol=1e-3)
    shown = media_of(live)[1]
    behind = next(k for k, picture in enumerate(reversed(shown)) if picture == seen[-1])  # the same bytes for all
    assert behind / 25 < 2.0  # and a second has passed since


# --- a crowd


def test_a_thousand_sessions_are_opened_and_the_next_one_is_told_why_not(client):
    known = len(client.get("/sessions").json())
    for name in (f"early-{k}" for k in range(10)):
        client.post("/sessions", json={"session_id": name}).raise_for_status()
        client.delete(f"/sessions/{name}").raise_for_status()
    before, took_s = takes(client), {}

    def opened(name: str) -> None:
        begin_s = time.perf_counter()
        answer = client.post("/sessions", json={"session_id": name})
        took_s[name] = time.perf_counter() - begin_s
        assert answer.status_code == 201, answer.text

    names = [f"crowd-{k}" for k in range(MANY - known)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(opened, names))
        refused = client.post("/sessions", json={"session_id": "one-too-many"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "quota"), refused.text
        assert refused.json()["error"]["message"] == f"There are {MANY} sessions already, and no more may be opened."
        spoken = client.post("/speak", json={"text": "Me, too.", "session_id": "one-too-many"})
        assert spoken.json()["error"] == refused.json()["error"]
        assert len(client.get("/sessions").json()) == MANY
        list(pool.map(lambda name: client.delete(f"/sessions/{name}").raise_for_status(), names))
    assert len(client.get("/sessions").json()) == known
    spent_s = [took_s[name] for name in names]
    assert statistics.median(spent_s[-100:]) < 2.5 * statistics.median(spent_s[100:200])
    refuse_a_leak(before, settled(client, before), spare_mb=25)


# --- leaks


def cycle(client: httpx.Client, name: str) -> None:
    """A visit: open, watch, speak, interrupt, close, delete."""
    client.post("/sessions", json={"session_id": name}).raise_for_status()
    watcher = Watcher(client, name)
    said: list[httpx.Response] = []
    speaking = threading.Thread(
        target=lambda: said.append(client.post("/speak", json={"text": LONG, "session_id": name}))
    )
    speaking.start()
    time.sleep(1.2)
    assert client.post(f"/sessions/{name}/interrupt").raise_for_status().json()["interrupted"] == 1
    speaking.join(30)
    assert said[0].status_code in (200, 409), said[0].text  # cut while it was shown, or before that
    client.post(f"/sessions/{name}/close").raise_for_status()
    watcher.join(30)
    assert watcher.ended and len(watcher.data) > 10_000
    client.delete(f"/sessions/{name}").raise_for_status()


def test_fifty_visits_leave_nothing_behind(client):
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda k: cycle(client, f"warm-{k}"), range(2 * AT_ONCE)))
        time.sleep(13)  # hubs stay for ten seconds
        before = takes(client)
        list(pool.map(lambda k: cycle(client, f"visit-{k}"), range(CYCLES)))
    refuse_a_leak(before, settled(client, before), spare_mb=80)  # measured: 30


# --- a power cut


def test_all_that_was_said_outlives_a_power_cut_and_goes_on(server, client):
    client.post("/sessions", json={"session_id": "lasting"}).raise_for_status()
    said = client.post("/speak", json={"text": "This was said before.", "session_id": "lasting"}).raise_for_status()
    job = client.post("/chat", json={"message": "Who are you?", "session_id": "chatting"}).json()["job_id"]
    while (done := client.get(f"/status/{job}").json())["status"] not in ("done", "failed"):
        time.sleep(0.2)
    assert done["status"] == "done"
    vtt, talk = client.get("/sessions/lasting/captions.vtt").text, client.get("/chat/chatting").json()
    watcher = Watcher(client, "lasting")
    open_job = client.post("/chat", json={"message": "Tell me a long story.", "session_id": "chatting"}).json()[
        "job_id"
    ]
    gone = pulled_while_it_is_written(server, client, "lasting")
    watcher.join(30)
    assert watcher.ended
    server.start()
    server.wait(server.answers, 120)
    assert client.get(f"/status/{job}").json() == done
    assert client.get("/chat/chatting").json()[: len(talk)] == talk
    half = client.get(f"/status/{open_job}").json()
    assert half["status"] in ("failed", "done") and (half["status"] == "done" or half["error"]["message"])
    facts = client.get("/sessions/lasting").json()
    assert facts["frames"] >= said.json()["frames"] + gone["frames"] and gone["frames"] > 0
    left = decode(client.get("/sessions/lasting/video.mp4").content)
    assert len(left.frames) == facts["frames"]
    assert client.get("/sessions/lasting/captions.vtt").text.startswith(vtt.rstrip())
    again = Watcher(client, "lasting")  # the viewer comes back under the same session
    more = client.post("/speak", json={"text": "And this afterwards.", "session_id": "lasting"}).raise_for_status()
    again.stop()
    whole = decode(client.get("/sessions/lasting/video.mp4").content)
    assert len(whole.frames) == facts["frames"] + more.json()["frames"]
    np.testing.assert_array_equal(whole.frames[: len(left.frames)], left.frames)
    np.testing.assert_allclose(np.diff(whole.times), 0.04, atol=1e-3)
    lines = client.get("/sessions/lasting").json()["utterances"]
    assert [line["text"] for line in lines] == ["This was said before.", LONG, "And this afterwards."]
    assert lines[1]["end_s"] is None and lines[2]["start_s"] == pytest.approx(facts["frames"] / 25, abs=1e-3)
    assert "And this afterwards." in client.get("/sessions/lasting/captions.vtt").text


def pulled_while_it_is_written(server: Server, client: httpx.Client, session_id: str) -> dict[str, int]:
    """Kill every process while an utterance grows, with half a fragment behind its file; how far it had come."""
    folder = server.folder / "results" / "sessions" / session_id
    begins = client.get(f"/sessions/{session_id}").json()["frames"]
    body = {"text": LONG, "session_id": session_id}
    speaking = threading.Thread(target=lambda: answer_or_nothing(server, body))
    speaking.start()
    while (now := client.get(f"/sessions/{session_id}").json())["frames"] < begins + 18:
        time.sleep(0.05)
    server.kill()
    speaking.join(30)
    with (folder / "full_session.mp4").open("ab") as file:  # the moment between the file's bytes and its index
        file.write(struct.pack(">I4s", 4000, b"moof") + os.urandom(500))
    with (folder / "index.jsonl").open("ab") as file:
        file.write(b'{"type": "fragment", "at"')
    return {"frames": now["frames"] - begins}


def answer_or_nothing(server: Server, body: dict) -> None:
    try:
        httpx.post(f"{server.url}/speak", json=body, timeout=120)
    except httpx.TransportError:
        return


def test_sigint_stops_the_server_and_its_ray_within_eight_seconds(server, client):
    answer = client.post("/speak", json={"text": "Hello.", "session_id": "last"})
    assert Path(answer.json()["video_path"]).is_relative_to(server.folder / "results" / "sessions")
    assert server.interrupt() < STOP_S
    assert server.process.returncode == 0
    log = server.log.read_text()
    assert server.url in log and "Traceback" not in log
