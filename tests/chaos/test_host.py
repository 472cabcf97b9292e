"""Faults of the host: a full disk, a slow disk, a clock that jumps."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.checks import finished, record, speaks_again
from tests.chaos.engines import expected_frames
from tests.chaos.harness import ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience
from tests.graph.processes import changed, user_config
from tests.graph.requests import error_of

pytestmark = [pytest.mark.ray, pytest.mark.soak]

TEXT = "This sentence is being spoken while the host is unwell. " * 3
PACE_S = 0.5


@pytest.fixture
def small_disk(graph: ChaosGraph) -> Iterator[Path]:
    """A file system of 1 MB that holds the sessions."""
    folder = graph.home / "small"
    folder.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with changed(graph.running, user_config("Stitch", sessions_dir="small")):
            yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.promise(
    "the disk of the sessions is full",
    "507 for speech and new sessions; files stay playable; viewers see a picture; goes on when there is room",
)
def test_a_full_disk(graph: ChaosGraph, audience: Audience, row: Row, name: str, small_disk: Path) -> None:
    ids = [f"{name}-{k}" for k in range(2)]
    audience.open(*ids)
    began_s, kept = time.monotonic(), dict.fromkeys(ids, 0)
    answers = {}
    for _ in range(20):
        answers = finished({session_id: audience.speak(session_id, TEXT) for session_id in ids})
        kept = {session_id: kept[session_id] + answer.frames for session_id, answer in answers.items()}
        if all(answer.status != 200 for answer in answers.values()):
            break
    row.note(f"statuses when full: {sorted(answer.status for answer in answers.values())}")
    for session_id in ids:
        assert audience.file_frames(session_id) >= kept[session_id]
        row.most(longest_gap_s=audience.viewers[session_id].longest_gap_s(began_s, time.monotonic()))
    assert {answer.status for answer in answers.values()} == {507}, [answer.body for answer in answers.values()]
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    refused = audience.api.post("/sessions", json={"session_id": f"{name}-late"})
    assert (refused.status_code, error_of(refused)["code"]) == (507, "disk_full"), refused.text
    assert row.seen["longest_gap_s"] <= PACE_S, row.seen
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    speaks_again(row, audience, ids, time.monotonic(), 5.0)


@pytest.mark.promise(
    "each write to the disk takes {ms_per_write} ms longer",
    "no frame lost; the picture stops ≤ 0.5 s, speech ≤ 0.5 s at 20 ms and 5 s at 100 ms",
)
@pytest.mark.parametrize(("ms_per_write", "pause_s"), [(20, 0.5), (100, 5.0)])
def test_a_slow_disk(
    graph: ChaosGraph, audience: Audience, row: Row, name: str, ms_per_write: int, pause_s: float
) -> None:
    ids = [f"{name}-{k}" for k in range(2)]
    audience.open(*ids)
    began_s = graph.inject("disk", ms_per_write=ms_per_write)
    answers = finished({session_id: audience.speak(session_id, TEXT) for session_id in ids})
    record(row, audience, answers, began_s, time.monotonic())
    assert (row.seen["failed_utterances"], row.seen["lost_frames"]) == (0, 0)
    assert row.seen["longest_gap_s"] <= PACE_S and row.seen["longest_pause_s"] <= pause_s, row.seen


@pytest.mark.promise(
    "the wall clock jumps by {hours:+d} h", "nothing expires, no frame lost, picture and speech stop ≤ 0.5 s"
)
@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_jumps(graph: ChaosGraph, audience: Audience, row: Row, name: str, hours: int) -> None:
    ids = [f"{name}-{k}" for k in range(2)]
    with changed(graph.running, user_config("Stitch", session_idle_hours=1)):
        audience.open(*ids)
        audience.open(f"{name}-silent", watched=False)
        asked = {session_id: audience.speak(session_id, TEXT) for session_id in ids}
        time.sleep(2.0)
        began_s = graph.inject("clock", offset_s=hours * 3600)
        record(row, audience, finished(asked), began_s, time.monotonic())
        later = {session_id: audience.speak(session_id, TEXT) for session_id in ids}
        assert all(answer.frames == expected_frames(TEXT) for answer in finished(later).values())
        assert audience.api.get(f"/sessions/{name}-silent").status_code == 200
        assert (row.seen["failed_utterances"], row.seen["lost_frames"]) == (0, 0)
        assert max(row.seen["longest_gap_s"], row.seen["longest_pause_s"]) <= PACE_S, row.seen
