"""Stitch and the ingress scaled under watched, speaking sessions, and a rolling update of each stage."""

from __future__ import annotations

import time

import pytest

from tests.chaos.checks import AGAIN, finished, record, speaks_again
from tests.chaos.engines import FPS, expected_frames
from tests.chaos.harness import STAGES, WORKERS, ChaosGraph
from tests.chaos.results import Row
from tests.chaos.viewers import Audience, Spoken
from tests.graph.processes import replicas
from tests.graph.requests import wait_until

pytestmark = pytest.mark.ray

SESSIONS, ENHANCED = 8, 2  # two cores enhance no more in real time
TEXT = "This sentence is being spoken while the number of replicas changes. " * 2  # 11 s
HANDOVER_S = 1.0
START_S = 8.0  # of a replica, in which a stage with one replica makes nothing
ASK_S = 0.4  # between two questions about replicas: every 50 ms they take a quarter of a core
EXIT_S = 30.0  # of a drained replica, after its last utterance


def assert_nothing_lost(row: Row, pause_s: float = HANDOVER_S) -> None:
    assert (row.seen["failed_utterances"], row.seen["lost_frames"]) == (0, 0), row.notes
    assert row.seen["longest_gap_s"] <= HANDOVER_S and row.seen["longest_pause_s"] <= pause_s, row.seen
    assert row.seen["unheard_s"] <= 0.5, row.seen  # no session is mute


@pytest.mark.promise(
    "Stitch scaled 1 → 2 → 1 under 8 watched, speaking sessions",
    "none mute, no frame lost, gap ≤ 1 s; interrupt reaches a draining owner; it exits ≤ 30 s after its last utterance",
)
def test_stitch_is_scaled_under_speaking_sessions(graph: ChaosGraph, audience: Audience, row: Row, name: str) -> None:
    ids = [f"{name}-{k}" for k in range(SESSIONS)]
    audience.open(*ids)
    first = {session_id: audience.speak(session_id, TEXT) for session_id in ids}
    time.sleep(2.0)
    began_s, old = time.monotonic(), replicas()["Stitch"]
    graph.scale(wait=False, Stitch=2)
    wait_until(lambda: graph.running_replicas("Stitch") == 2, "two replicas of Stitch", every_s=ASK_S)
    record(row, audience, finished(first), began_s, time.monotonic())
    assert_nothing_lost(row)

    fresh = [f"{name}-new-{k}" for k in range(4)]
    audience.open(*fresh)  # they go to the new replica
    second = {session_id: audience.speak(session_id, TEXT) for session_id in (*ids, *fresh)}
    time.sleep(2.0)
    down_s, both = time.monotonic(), replicas()["Stitch"]
    graph.scale(wait=False, Stitch=1)
    time.sleep(3.0)
    cut = (ids[0], fresh[0])  # one session of each replica
    for session_id in cut:
        assert audience.api.post(f"/sessions/{session_id}/interrupt").json()["interrupted"] == 1
        assert second.pop(session_id).result(5).body["interrupted"]
    answers = finished(second)
    ended_s = time.monotonic()
    wait_until(lambda: len(replicas()["Stitch"]) == 1, "the drained replica ends", EXIT_S + 30, ASK_S)
    row.saw(drained_exit_s=time.monotonic() - ended_s)
    assert old <= both and len(both) == 2
    last = finished({session_id: audience.speak(session_id, AGAIN) for session_id in cut})
    time.sleep(1.0)  # the viewers get the end of it
    record_later(row, audience, answers | last, down_s)
    assert_nothing_lost(row)
    assert row.seen["drained_exit_s"] <= EXIT_S


def record_later(row: Row, audience: Audience, answers: dict[str, Spoken], from_s: float) -> None:
    """As `record`, for sessions that have spoken before: all that their files hold was heard by their viewers."""
    row.most(failed_utterances=sum(answer.status != 200 for answer in answers.values()))
    for session_id, answer in answers.items():
        frames, viewer = audience.file_frames(session_id), audience.viewers[session_id]
        viewer.assert_playable()
        heard = viewer.heard(audience.pitches[session_id])
        assert heard.foreign_s == 0, session_id
        row.most(longest_gap_s=viewer.longest_gap_s(from_s, time.monotonic()))
        row.most(unheard_s=max(0.0, frames / FPS - heard.own_s))
        if answer.status == 200:
            row.most(lost_frames=expected_frames(answer.text) - answer.frames)
        else:
            row.note(str(answer.body["error"]))


@pytest.mark.soak
@pytest.mark.promise("{stage} scaled 1 → 2 → 1 under watched, speaking sessions", "none mute, no frame lost, gap ≤ 1 s")
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("Stitch", "Chat", "Recognize")])
def test_another_stage_is_scaled(graph: ChaosGraph, audience: Audience, row: Row, name: str, stage: str) -> None:
    ids = [f"{name}-{k}" for k in range(ENHANCED if stage == "Enhance" else SESSIONS)]
    audience.open(*ids)
    asked = {session_id: audience.speak(session_id, TEXT, enhance=stage == "Enhance") for session_id in ids}
    time.sleep(1.0)
    began_s = time.monotonic()
    graph.scale(wait=False, **{stage: 2})
    wait_until(lambda: graph.running_replicas(stage) == 2, f"two replicas of {stage}", every_s=ASK_S)
    graph.scale(wait=False, **{stage: 1})
    record(row, audience, finished(asked), began_s, time.monotonic())
    assert_nothing_lost(row)


@pytest.mark.soak
@pytest.mark.promise(
    "a rolling update of {stage} (one replica) under watched, speaking sessions",
    "none mute, no frame lost, gap ≤ 1 s; speech waits ≤ 8 s where the stage makes it, else ≤ 1 s",
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_rolling_update(graph: ChaosGraph, audience: Audience, row: Row, name: str, stage: str) -> None:
    ids = [f"{name}-{k}" for k in range(ENHANCED if stage == "Enhance" else 4)]
    audience.open(*ids)
    asked = {session_id: audience.speak(session_id, TEXT, enhance=stage == "Enhance") for session_id in ids}
    time.sleep(1.0)
    began_s, old = time.monotonic(), replicas()[stage]
    graph.roll(stage, wait=False)
    wait_until(
        lambda: replicas().get(stage, set()) - old and graph.running_replicas(stage),
        f"a new {stage} serves",
        every_s=ASK_S,
    )
    row.saw(recovery_s=time.monotonic() - began_s)
    record(row, audience, finished(asked), began_s, time.monotonic())
    assert_nothing_lost(row, START_S if stage in WORKERS else HANDOVER_S)
    speaks_again(row, audience, ids, time.monotonic(), 5.0)
