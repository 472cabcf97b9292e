"""The trace of an utterance: one process per replica, rows without overlaps, parts within their call."""

from __future__ import annotations

import json

import pytest

from models.errors import InputError
from warmtalk.cli.profile.trace import chrome_trace


def call(stage, start_s, wall_ms, replica="a", queue_ms=1.0, transfer_ms=2.0, frames=8) -> dict:
    compute_ms = wall_ms - queue_ms - transfer_ms
    return {
        "stage": stage, "frames": frames, "queue_ms": queue_ms, "transfer_ms": transfer_ms, "compute_ms": compute_ms,
        "wall_ms": wall_ms, "busy_ms": compute_ms, "start_s": start_s, "received_s": start_s + 0.001,
        "done_s": start_s + (wall_ms - 1) / 1e3, "replica": replica,
    }  # fmt: skip


SUMMARY = {
    "session_id": "s", "avatar_id": "presenter", "request_id": "r-1",
    "calls": [call("LipSync", 100.02, 30), call("LipSync", 100.03, 30), call("LipSync", 100.06, 30, "b"),
              call("TTS", 100.0, 20, frames=0)],
}  # fmt: skip


def test_each_replica_is_a_process_in_the_order_of_the_data_and_every_event_has_the_request_id() -> None:
    trace = json.loads(json.dumps(chrome_trace(SUMMARY)))
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == ["TTS a", "LipSync a", "LipSync b"]
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["args"]["request_id"] for event in spans} == {trace["otherData"]["request_id"]} == {"r-1"}
    first = next(event for event in spans if event["name"] == "TTS")
    assert (first["ts"], first["dur"]) == (0.0, 20_000.0)


def test_calls_that_overlap_are_on_rows_of_their_own_and_parts_fill_their_call() -> None:
    spans = [event for event in chrome_trace(SUMMARY)["traceEvents"] if event["ph"] == "X"]
    calls = [event for event in spans if event["name"] == "LipSync 8 frames"]
    assert [(event["pid"], event["tid"]) for event in calls] == [(2, 0), (2, 1), (3, 0)]
    parts = [e for e in spans if (e["pid"], e["tid"]) == (2, 0) and e["name"] != "LipSync 8 frames"]
    assert [part["name"] for part in parts] == ["transfer", "queue", "compute", "transfer back"]
    assert sum(part["dur"] for part in parts) == pytest.approx(30_000, abs=1)
    assert [part["dur"] for part in parts] == pytest.approx([1000, 1000, 27_000, 1000], abs=1)


def test_a_profile_without_calls_has_no_trace() -> None:
    with pytest.raises(InputError, match="no recorded calls"):
        chrome_trace({"session_id": "s", "calls": []})
