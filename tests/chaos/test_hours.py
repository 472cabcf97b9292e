"""Hours of sessions: memory, tasks, descriptors and the offset of sound and picture stay flat.

$WARMTALK_SOAK_HOURS is the duration, by default three minutes; `make soak HOURS=1` sets it.
"""

from __future__ import annotations

import io
import os
import time

import av
import numpy as np
import psutil
import pytest

from tests.chaos.checks import finished, record
from tests.chaos.harness import ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience, Viewer
from tests.graph.processes import replicas
from tests.graph.test_load import footprints

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(0)]

HOURS = float(os.environ.get("WARMTALK_SOAK_HOURS", "0.05"))
TEXT = "This sentence is spoken again and again, for hours, by four sessions. " * 2
SESSIONS = 4
KEYS = ("own_mb", "open_files", "threads", "tasks")
GROWTH = {"own_mb": 40.0, "open_files": 4, "threads": 8, "tasks": 3}  # from the first fifth to the last
APART_S = 0.08


@pytest.mark.promise("{hours:g} h of sessions", "memory, tasks, descriptors and A/V offset stay flat; no frame lost")
@pytest.mark.parametrize("hours", [HOURS])
def test_hours_of_sessions(
    graph: ChaosGraph, audience: Audience, row: Row, name: str, hours: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each round opens sessions, watches them, speaks in them, and deletes them; two sessions stay all the time."""
    staying = [f"{name}-stays-{k}" for k in range(2)]
    audience.open(*staying)
    samples: list[dict[str, float]] = []
    begin_s, number, lost = time.monotonic(), 0, 0.0
    while (elapsed_s := time.monotonic() - begin_s) < hours * 3600 or number < 5:
        visiting = [f"{name}-{number}-{k}" for k in range(SESSIONS)]
        audience.open(*visiting)
        from_s = time.monotonic()
        answers = finished({s: audience.speak(s, TEXT) for s in (*visiting, *staying)})
        time.sleep(1.0)
        record(row, audience, {s: answers[s] for s in visiting}, from_s, time.monotonic())
        lost += row.seen["lost_frames"] + row.seen["failed_utterances"]
        for session_id in (*visiting, *staying):
            row.most(av_offset_s=tracks_apart_s(audience.viewers[session_id]))
        for session_id in visiting:
            audience.delete(session_id)
        audience.watch_again(*staying)  # so that a viewer's data does not grow for hours
        samples.append(sample(audience))
        number += 1
        with capsys.disabled():
            print(f"\r{elapsed_s / 60:5.1f} of {hours * 60:g} min, round {number}: {samples[-1]}", end="", flush=True)
    row.saw(rounds=number, lost_frames=lost)
    for key in KEYS:
        fifth = max(1, len(samples) // 5)
        early, late = (np.median([s[key] for s in part]) for part in (samples[fifth : 2 * fifth], samples[-fifth:]))
        row.saw(**{f"growth_of_{key}": float(late - early)})
    assert lost == 0 and row.seen["av_offset_s"] <= APART_S, row.seen
    for key, limit in GROWTH.items():
        assert row.seen[f"growth_of_{key}"] <= limit, row.seen


def sample(audience: Audience) -> dict[str, float]:
    """Memory of all replicas; files, threads and tasks of those that hold sessions."""
    memory = [psutil.Process(pid).memory_info() for pids in replicas().values() for pid in pids]
    own_mb = sum(m.rss - m.shared for m in memory) / 1e6  # shared: Ray's object store, of which each maps what it reads
    stages = footprints(audience.api)
    return {"own_mb": round(own_mb), **{key: sum(s[key] for s in stages.values()) for key in KEYS[1:]}}


def tracks_apart_s(viewer: Viewer) -> float:
    """The difference of the ends of sound and picture in a viewer's stream."""
    ends, data = [], viewer.connections[0].whole()  # once: more arrives meanwhile
    for kind in ("video", "audio"):
        with av.open(io.BytesIO(data)) as file:
            stream = getattr(file.streams, kind)[0]
            last = max((p for p in file.demux(stream) if p.pts is not None), key=lambda p: p.pts)
            ends.append(float((last.pts + (last.duration or 0)) * last.time_base))
    return abs(ends[0] - ends[1])
