"""One utterance as a trace for ui.perfetto.dev or chrome://tracing, from the calls that Stitch has recorded.

The format: Google, "Trace Event Format". Each replica is a process of the trace; calls that overlap are on rows of
their own. A call has the parts transfer, queue, compute and transfer back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from models.errors import InputError
from warmtalk.cli.tables import STAGES

US = 1e6


def chrome_trace(summary: dict[str, Any]) -> dict[str, Any]:
    """The trace of an utterance's summary, which has its calls. Raises InputError."""
    calls = [call for call in summary.get("calls", ()) if call.get("received_s")]
    if not calls:
        raise InputError("The utterance has no recorded calls.", "Profile a graph, not a stage alone.")
    request_id = str(summary.get("request_id") or summary["session_id"])
    zero_s = min(call["start_s"] for call in calls)
    events: list[dict[str, Any]] = []
    for pid, ((stage, replica), own) in enumerate(_by_replica(calls), 1):
        name = f"{stage} {replica}".strip()
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}})
        free_s: list[float] = []  # by row: when its last call ended
        for call in sorted(own, key=lambda call: call["start_s"]):
            end_s = call["start_s"] + call["wall_ms"] / 1e3
            row = next((k for k, free in enumerate(free_s) if free <= call["start_s"]), len(free_s))
            free_s[row : row + 1] = [end_s]
            events += _events(call, pid, row, zero_s, request_id)
    facts = {"request_id": request_id, "session_id": summary["session_id"], "avatar_id": summary.get("avatar_id", "")}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}


def _by_replica(calls: list[dict[str, Any]]) -> list[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """The calls of each replica, stages in the order of the data."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for call in calls:
        groups.setdefault((call["stage"], call["replica"]), []).append(call)
    return sorted(groups.items(), key=lambda group: (STAGES.index(group[0][0]), group[0][1]))


def _events(call: dict[str, Any], pid: int, row: int, zero_s: float, request_id: str) -> Iterator[dict[str, Any]]:
    """The call, and its parts inside it. Clocks of two hosts may differ, so the parts are kept within the call."""
    start_s, end_s = call["start_s"], call["start_s"] + call["wall_ms"] / 1e3
    place = {"ph": "X", "cat": call["stage"], "pid": pid, "tid": row}
    times = {key: round(call[key], 3) for key in ("queue_ms", "transfer_ms", "compute_ms", "wall_ms", "busy_ms")}
    facts = {"request_id": request_id, "replica": call["replica"], "frames": call["frames"], **times}
    name = f"{call['stage']} {call['frames']} frames" if call["frames"] else call["stage"]
    yield {**place, "name": name, **_span(start_s, end_s, zero_s), "args": facts}
    received_s = min(max(call["received_s"], start_s), end_s)
    computing_s = min(received_s + call["queue_ms"] / 1e3, end_s)
    done_s = min(computing_s + call["compute_ms"] / 1e3, end_s)
    ends = {"transfer": received_s, "queue": computing_s, "compute": done_s, "transfer back": end_s}
    for part, until_s in ends.items():
        if until_s - start_s > 1e-6:
            yield {**place, "name": part, **_span(start_s, until_s, zero_s), "args": {"request_id": request_id}}
        start_s = max(start_s, until_s)


def _span(start_s: float, end_s: float, zero_s: float) -> dict[str, float]:
    return {"ts": round((start_s - zero_s) * US, 1), "dur": round(max(0.0, end_s - start_s) * US, 1)}
