"""The number of replicas follows the work that is due. A model of replicas in virtual time shows what that gives."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import TimeStampedValue
from ray.serve.autoscaling_policy import _apply_delay_logic, default_autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from configs.serve_file import deployment_of, load_serve_config
from deployments.batching import FrameBatcher
from deployments.common.autoscaling import FILES, LATE_S, LOAD, NEED, OVERDUE_S, START_S, ByDeadline, ReplicaLoad
from deployments.common.messages import SpeakRequest
from deployments.common.urgency import Urgency
from tests.support.stitch import summary_of

CONFIG = AutoscalingConfig(
    min_replicas=1, max_replicas=8, target_ongoing_requests=8, upscale_delay_s=0.5, downscale_delay_s=10
)


def context(
    reports: list[dict[str, list[float]]], now: int, target: int | None = None, requests: float = 0,
    state: dict[str, Any] | None = None, first_s: float = 0.0,
) -> Any:  # fmt: skip
    """reports: per replica, the values of each metric, one per second from first_s on."""
    given = dict.fromkeys(list(AutoscalingContext.__init__.__code__.co_varnames)[1:18])
    raw: dict[str, dict[str, list[TimeStampedValue]]] = {}
    for number, replica in enumerate(reports):
        for name, values in replica.items():
            raw.setdefault(name, {})[f"r{number}"] = [TimeStampedValue(first_s + t, v) for t, v in enumerate(values)]
    given |= {"current_num_replicas": now, "target_num_replicas": target or now, "raw_metrics": raw, "config": CONFIG}
    given |= {"total_num_requests": requests, "policy_state": state or {}}
    return AutoscalingContext(**given)


def needed(*reports: dict[str, list[float]], now: int | None = None) -> float:
    return ByDeadline(busy=0.7, reserve_s=2.0)(context(list(reports), now or len(reports)))[0]


def steady(load: float = 0.0, **others: float) -> dict[str, list[float]]:
    values = {NEED: 0.0, OVERDUE_S: 0.0, LATE_S: 0.0, FILES: 0.0, START_S: 5.0} | others
    return {LOAD: [load] * 3} | {name: [value] * 3 for name, value in values.items()}


def test_replicas_are_busy_for_the_wanted_share_of_their_time():
    assert needed(steady(0.7)) == pytest.approx(1)
    assert needed(steady(0.95), steady(0.95)) == pytest.approx(1.9 / 0.7)


def test_sessions_that_one_replica_cannot_serve_count_at_once_by_what_they_need():
    assert needed(steady(1.0, need=3.5)) == pytest.approx(5)
    assert needed(steady(0.9, need=1.4), steady(0.9, need=1.3)) == pytest.approx(1.8 / 0.7)  # the same ones, seen twice


def test_work_that_is_late_asks_for_another_replica_whatever_the_load():
    assert needed(steady(0.1, late_s=0.1)) == pytest.approx(2)
    assert needed(steady(0.7, late_s=1.0, overdue_s=2.8)) == pytest.approx(3)


def test_demand_that_has_grown_for_seconds_asks_for_replicas_as_early_as_they_take_to_start():
    def after_growth(start_s: float, loads: list[float]) -> float:
        state: dict[str, Any] = {}
        for second, load in enumerate(loads):
            report = {name: values[:1] for name, values in steady(load, start_s=start_s).items()}
            wanted, state = ByDeadline(busy=0.7)(context([report], 1, state=state, first_s=float(second)))
        return wanted

    growing = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert after_growth(0.0, growing) == pytest.approx(1)
    assert after_growth(2.0, growing) == pytest.approx((0.7 + 0.2) / 0.7)
    assert after_growth(60.0, growing) == pytest.approx(1.5)  # at most half as much again
    assert after_growth(60.0, [0.7, 0.68, 0.71, 0.69, 0.72, 0.7]) == pytest.approx(1)  # no growth


def test_utterances_that_nobody_watches_count_by_their_number_not_by_their_speed():
    assert needed(steady(0.0, files=8), now=1) == pytest.approx(1)
    assert needed(steady(0.35, files=8)) == pytest.approx(1.5)


@pytest.mark.parametrize(("load", "replicas"), [(0.6, 2), (0.5, 2), (0.25, 1)])
def test_a_replica_is_given_up_when_the_others_have_room_to_spare(load, replicas):
    assert needed(steady(load), steady(load)) == replicas


@pytest.mark.parametrize("reports", [[], [{LOAD: []}]])
def test_without_reports_the_number_of_replicas_stays(reports):
    assert ByDeadline()(context(reports, now=3))[0] == 3


def test_idle_replicas_are_given_up():
    assert needed(steady(0.0), steady(0.0)) == 0  # Serve's min_replicas is the limit


def test_a_replica_reports_what_its_live_sessions_need_at_their_pace(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("deployments.common.autoscaling.time.monotonic", lambda: now_s)
    load = ReplicaLoad()
    load.seen("ahead", 25, made=100)  # it makes its reserve
    load.seen("steady", 25, made=25)
    load.seen("waits", 25)
    now_s = 1.0
    first = load.metrics(0.01, 0, -3.0, 2, 7.0)
    assert first == {LOAD: pytest.approx(0.01 * (27.5 + 25)), NEED: pytest.approx(0.75), OVERDUE_S: 0.0, LATE_S: 0.0,
                     FILES: 2.0, START_S: 7.0}  # fmt: skip
    now_s = 3.5
    assert load.metrics(0.01, 10, 0.4, 0, 7.0) | {FILES: 0.0, START_S: 7.0} == {
        LOAD: 0.0, NEED: 0.0, OVERDUE_S: pytest.approx(0.1), LATE_S: 0.4, FILES: 0.0, START_S: 7.0,
    }  # fmt: skip


def test_sessions_are_forgotten_where_nobody_asks_for_reports(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("deployments.common.autoscaling.time.monotonic", lambda: now_s)
    load = ReplicaLoad()
    for number in range(1000):
        now_s = float(number)
        load.seen(f"s{number}", 25)
    assert len(load._sessions) == 61


# --- a model: sessions bring work, replicas do it, new ones take a while to start


@dataclass
class Outcome:
    late_s: float  # session-seconds of speech that was late
    replica_s: float
    changes: int
    replicas: list[int]


def play(policy: Any, sessions: list[int], frame_s: float = 1 / 100, start_s: int = 5) -> Outcome:
    """`sessions[t]` live sessions in second t, each with a chunk of 16 frames in flight; Serve decides each second.

    A session needs 25 frames/s; what is not made in time is late.
    """
    running, target, starting, state, own = 1, 1, list[int](), {}, {}
    waiting, out = 0.0, Outcome(0.0, 0.0, 0, [])
    history: list[list[dict[str, float]]] = []
    for second, count in enumerate(sessions):
        running += sum(at == second for at in starting)
        waiting += count * 25 * frame_s
        done = min(waiting, running)
        waiting -= done
        late_s = max(0.0, waiting / max(running, 1) - 1.0)
        out.late_s += count * (late_s > 0)
        history.append([{LOAD: done / running, NEED: count * 25 * frame_s, OVERDUE_S: late_s, LATE_S: late_s,
                         FILES: 0.0, START_S: float(start_s)}] * running)  # fmt: skip
        window = [reports for reports in history[-3:] if len(reports) == running] or [history[-1]]
        series = [{name: [r[number][name] for r in window] for name in window[0][0]} for number in range(running)]
        calls = count * (1 + waiting)  # a chunk in flight per session, and those that pile up
        given = context(series, running, target, calls, own, float(second))
        asked, own = policy(given)
        wanted = min(max(1, math.ceil(asked)), 8)
        wanted, state = _apply_delay_logic(wanted, target, CONFIG, state, _now=float(second + 1))
        if wanted > target:
            starting += [second + start_s] * (wanted - target)
        elif wanted < target:
            kept = [at for at in starting if at > second]
            running, starting = min(running, wanted), kept[: max(0, wanted - running)]
        out.changes += wanted != target
        target = wanted
        out.replica_s += running
        out.replicas.append(running)
    return out


BURST = [2] * 20 + [14] * 60 + [2] * 60


def test_a_burst_is_served_with_less_late_speech_than_by_counting_calls():
    ours, counted = (play(policy, BURST) for policy in (ByDeadline(), default_autoscaling_policy))
    assert max(ours.replicas) >= 14 * 25 / 100 / 0.9
    assert ours.late_s < 0.5 * counted.late_s
    assert ours.replicas[-1] <= 2


@pytest.mark.parametrize("noise", [0, 1, 2])
def test_steady_sessions_do_not_make_the_number_of_replicas_go_up_and_down(noise):
    sessions = [8 + (noise if (second // 3) % 2 else -noise) for second in range(240)]
    outcome = play(ByDeadline(), sessions)
    late = outcome.replicas[60:]
    assert max(late) - min(late) == 0, late


# --- where the reports come from


async def test_stitch_reports_live_speech_as_load_and_other_speech_as_files(make_stitch):
    stitch, live, _ = await make_stitch(delay_s=0.1)
    viewer = await live.view("alice")
    idle = await stitch.record_autoscaling_stats()
    assert 0 < idle[LOAD] < 0.01 and idle[FILES] == 0  # a watched session that does not speak
    speaking = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest(name, "words")))) for name in ("a", "b")]
    await asyncio.sleep(0.1)
    assert (await stitch.record_autoscaling_stats())[FILES] == 2
    await asyncio.gather(*speaking)
    await summary_of(stitch.speak(SpeakRequest("alice", "words")))
    report = await stitch.record_autoscaling_stats()
    assert report[FILES] == 0 and report[START_S] > 0
    viewer.close()


async def test_a_batcher_reports_what_waits_of_live_speech_and_how_late_it_is():
    release = threading.Event()

    def compute(items: list[int]) -> list[int]:
        release.wait(5)
        return items

    thread = ThreadPoolExecutor(1)

    async def run(function: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(thread, function)

    batcher: FrameBatcher[int, int] = FrameBatcher(compute, run, 4, 0.0)
    due = [Urgency(-0.5, 60.0, background=False), *[Urgency(1e-9, background=False)] * 2]  # the first arrives late
    live = [asyncio.create_task(batcher.submit([1] * 4, urgency, f"live{k}")) for k, urgency in enumerate(due)]
    files = [asyncio.create_task(batcher.submit([1] * 4, Urgency(1.0), "file")) for _ in range(2)]
    while batcher.waiting() != 16:  # one batch is in the thread
        await asyncio.sleep(0)
    report = batcher.load_metrics(3.0)
    assert 0 < report[LATE_S] < 0.5 and report[FILES] == 1 and report[START_S] == 3.0
    release.set()
    await asyncio.gather(*live, *files)
    report = batcher.load_metrics(3.0)
    assert 0 < report[LOAD] <= 1 and report[LATE_S] == report[OVERDUE_S] == report[FILES] == 0 < report[NEED]


@pytest.mark.parametrize("name", ["gpu", "node", "cluster"])
@pytest.mark.parametrize("stage", ["LipSync", "Enhance", "Stitch"])
def test_serve_can_load_the_policy_that_the_configs_name(name, stage):
    config = AutoscalingConfig(**deployment_of(load_serve_config(name), stage)["autoscaling_config"])
    policy = _resolve_policy_callable(config.policy)
    assert type(policy).__name__ == "ByDeadline"
    assert policy(context([steady(1.0), steady(1.0)], 2))[0] == pytest.approx(2 / 0.7)
