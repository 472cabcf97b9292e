"""A live graph: rows from what replicas report, over HTTP as the page of the operator gets it."""

from __future__ import annotations

import httpx
import pytest

from deployments.common.recent_calls import RecentCalls
from models.errors import ConfigError, StageError
from warmtalk.cli.profile import live


def stats(replica: str, compute_ms: float, calls: int, gpu_mb: float = 0.0, queued: int = 0) -> dict:
    recent = RecentCalls()
    for _ in range(calls):
        recent.add(8, queue_ms=compute_ms / 2, compute_ms=compute_ms, busy_ms=compute_ms)
    transfer = RecentCalls()
    transfer.add(0, transfer_ms=4.0)
    memory = {"rss_mb": 500.0, "gpu_mb": gpu_mb, "gpu_reserved_mb": gpu_mb, "gpu_peak_mb": gpu_mb}
    return {
        "replica": replica, **memory, "start_s": 2.0, "queued": queued, "recent": recent.summary(),
        "transfer": {"LipSync": transfer.summary()}, "config": {"batch_size": 8},
    }  # fmt: skip


def test_replicas_are_merged_by_their_calls_and_the_worst_percentiles() -> None:
    first = {"LipSync": [stats("a", 10.0, 30), stats("b", 40.0, 10, gpu_mb=900)], "Stitch": [stats("s", 5.0, 1)]}
    later = {"LipSync": [stats("a", 10.0, 30, queued=3), stats("b", 40.0, 10, gpu_mb=900)], "Stitch": first["Stitch"]}
    row = live.rows_of([first, later])["LipSync"]
    assert (row["calls"], row["frames"], row["replicas"], row["queued"]) == (40, 320, 2, 3)
    assert row["compute_ms"] == {"p50": 17.5, "p95": 40.0, "p99": 40.0} and row["queue_ms"]["p50"] == 8.75
    assert row["transfer_ms"]["p50"] == 4.0 and row["memory"]["gpu_mb"] == 900
    assert row["medians"]["compute_ms"]["n"] == 2


def test_a_stage_without_calls_has_only_its_memory_and_start() -> None:
    row = live.rows_of([{"LipSync": [stats("a", 10.0, 0)]}])["LipSync"]
    assert row["memory"]["rss_mb"] == 500 and row["start_s"] == 2.0 and row["calls"] == 0
    assert "compute_ms" not in row and "medians" not in row


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """Answers /admin/state with what the test sets, and keeps the requests."""
    seen: list[httpx.Request] = []
    answer: dict = {"status": 200, "json": {"stages": {"LipSync": {"replicas": [stats("a", 10.0, 2)]}}}}

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(answer["status"], json=answer["json"])

    client = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **options: client(transport=httpx.MockTransport(handle), **options)
    )
    return seen, answer


def test_a_server_is_only_read_and_gets_the_key(server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMTALK_API_KEY", "secret")
    rows = live.profile_live("http://host:8000", 0.0)
    (request,) = server[0]
    assert (request.method, str(request.url)) == ("GET", "http://host:8000/admin/state")
    assert request.headers["authorization"] == "Bearer secret" and rows["LipSync"]["compute_ms"]["p50"] == 10.0


def test_errors_of_a_server_say_what_to_do(server) -> None:
    server[1]["status"] = 401
    with pytest.raises(ConfigError, match="requires an API key"):
        live.profile_live("http://host:8000", 0.0)
    server[1]["status"] = 404
    with pytest.raises(StageError, match="answered 404"):
        live.profile_live("http://host:8000", 0.0)
