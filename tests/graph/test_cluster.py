"""configs/cluster.yaml on a local Ray with a pretended GPU: fractions share it, and a change touches one stage alone.

The embedded engines on the CPU are swapped in; resources, replicas and limits stay as the file has them.
"""

import copy
import time
from typing import Any

import psutil
import pytest

from configs.serve_file import deployment_of, load_serve_config
from launch import LocalGraph
from tests.graph.conftest import free_port

pytestmark = pytest.mark.ray

ON_CPU: dict[str, dict[str, Any]] = {
    "AudioFeatures": {"context_s": 8.0},
    "LipSync": {"engine": "openvino", "threads": 1, "batch_size": 8, "batch_wait_ms": 2.0},
    "Enhance": {"engine": "small", "options": {"threads": 1}},
    "Avatars": {},
}


def use_cpu_engines(config: dict[str, Any]) -> None:
    config["http_options"]["host"] = "127.0.0.1"
    for stage, user_config in ON_CPU.items():
        deployment_of(config, stage)["user_config"] = copy.deepcopy(user_config)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    resources = {"num_cpus": 32, "num_gpus": 1}
    graph = LocalGraph("cluster", free_port(), tmp_path_factory.mktemp("home"), use_cpu_engines, resources)
    with graph:
        yield graph


def replicas() -> dict[str, set[int]]:
    """Stage → process ids of its replicas."""
    found: dict[str, set[int]] = {}
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if "ServeReplica:warmtalk:" in title:
            found.setdefault(title.split("ServeReplica:warmtalk:")[1].split(":")[0].strip(), set()).add(process.pid)
    return found


def settle(graph: LocalGraph, config: dict[str, Any]) -> None:
    from ray import serve

    graph.deploy(config)
    end_s = time.monotonic() + 90
    while time.monotonic() < end_s:
        application = serve.status().applications["warmtalk"]
        if application.status == "RUNNING" and all(d.status == "HEALTHY" for d in application.deployments.values()):
            return
        time.sleep(0.5)
    raise AssertionError(serve.status())


def test_the_fractions_share_one_gpu(graph):
    import ray

    config = load_serve_config("cluster")["applications"][0]["deployments"]
    used = sum(d["ray_actor_options"].get("num_gpus", 0) * d.get("num_replicas", 1) for d in config)
    assert 0 < used <= 1
    assert ray.cluster_resources()["GPU"] == 1
    assert ray.cluster_resources()["GPU"] - ray.available_resources().get("GPU", 0) == pytest.approx(used)
    assert replicas().keys() == {"TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch", "Avatars", "Chat", "Ingress"}


def test_more_replicas_of_enhance_change_enhance_alone(graph):
    before = replicas()
    config = copy.deepcopy(graph.config)
    deployment_of(config, "Enhance")["autoscaling_config"]["min_replicas"] = 2
    settle(graph, config)
    end_s = time.monotonic() + 60
    while len(replicas()["Enhance"]) < 2 and time.monotonic() < end_s:
        time.sleep(0.5)
    after = replicas()
    assert len(after["Enhance"]) == 2 and before["Enhance"] < after["Enhance"]
    assert {s: p for s, p in after.items() if s != "Enhance"} == {s: p for s, p in before.items() if s != "Enhance"}


def test_a_tunable_of_one_stage_is_applied_without_any_restart(graph):
    from ray import serve

    handle = serve.get_deployment_handle("LipSync", "warmtalk")
    before = replicas()
    assert handle.stats.remote().result()["config"]["batch_size"] == 8
    config = copy.deepcopy(graph.config)
    deployment_of(config, "LipSync")["user_config"]["batch_size"] = 4
    settle(graph, config)
    assert replicas() == before
    assert handle.stats.remote().result()["config"]["batch_size"] == 4


def test_a_change_of_resources_restarts_that_stage_alone(graph):
    before = replicas()
    config = copy.deepcopy(graph.config)
    deployment_of(config, "TTS")["ray_actor_options"]["num_cpus"] = 2
    settle(graph, config)
    after = replicas()
    assert after["TTS"].isdisjoint(before["TTS"])
    assert {s: p for s, p in after.items() if s != "TTS"} == {s: p for s, p in before.items() if s != "TTS"}
