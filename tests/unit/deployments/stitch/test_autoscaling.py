"""The number of Stitch replicas follows speech and hardly idle viewers. Serve applies the policy itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from configs.serve_file import deployment_of, load_serve_config
from deployments.common.messages import SpeakRequest
from deployments.stitch.autoscaling import SPEAKING, WATCHED, BySpeech
from tests.support.stitch import summary_of
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def context(metrics: dict[str, dict[str, float]], now: int = 1, target: float = 4) -> Any:
    given = dict.fromkeys(AutoscalingContext.__init__.__code__.co_varnames[1:])
    given = {key: given[key] for key in list(given)[:17]}
    config = AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=target)
    given |= {"current_num_replicas": now, "target_num_replicas": now, "aggregated_metrics": metrics, "config": config}
    return AutoscalingContext(**given)


@pytest.mark.parametrize(
    ("speaking", "watched", "replicas"),
    [
        ([4], [0], 1.0),
        ([8], [0], 2.0),
        ([6, 2], [0, 0], 2.0),  # on two replicas
        ([0], [100], 0.25),  # a hundred watched sessions that do not speak
        ([4], [104], 1.25),
        ([8], [8], 2.0),  # a watched session that speaks counts once
        ([0], [0], 0.0),
    ],
)
def test_an_utterance_counts_one_and_a_silent_watched_session_a_hundredth(speaking, watched, replicas):
    metrics = {SPEAKING: dict(zip("ab", speaking, strict=False)), WATCHED: dict(zip("ab", watched, strict=False))}
    assert BySpeech()(context(metrics))[0] == pytest.approx(replicas)
    assert BySpeech(idle_share=0)(context(metrics))[0] == pytest.approx(sum(speaking) / 4)


@pytest.mark.parametrize("metrics", [{}, None, {SPEAKING: {}}])
def test_without_metrics_the_number_of_replicas_stays(metrics):
    assert BySpeech()(context(metrics, now=3))[0] == 3


async def test_a_replica_reports_its_utterances_and_watched_sessions(make_stitch):
    stitch, live, _ = await make_stitch(delay_s=0.1)
    viewer = await live.view("alice")
    assert await stitch.record_autoscaling_stats() == {"speaking": 0, "watched": 1}
    speaking = [asyncio.create_task(summary_of(stitch.speak(SpeakRequest(name, "words")))) for name in ("a", "b")]
    await asyncio.sleep(0.1)
    assert await stitch.record_autoscaling_stats() == {"speaking": 2, "watched": 1}
    await asyncio.gather(*speaking)
    viewer.close()
    assert (await stitch.record_autoscaling_stats())["speaking"] == 0


@pytest.mark.parametrize("name", ["gpu", "cluster"])
def test_serve_can_load_the_policy_that_the_configs_name(name):
    given = deployment_of(load_serve_config(name), "Stitch")["autoscaling_config"]
    config = AutoscalingConfig(**given)
    policy = _resolve_policy_callable(config.policy)
    metrics = {SPEAKING: {"a": 2 * config.target_ongoing_requests}, WATCHED: {"a": 0.0}}
    assert type(policy).__name__ == "BySpeech"
    assert policy(context(metrics, target=config.target_ongoing_requests))[0] == pytest.approx(2.0)
