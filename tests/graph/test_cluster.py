"""configs/cluster.yaml on a local Ray with a pretended GPU: fractions share it, and a change touches one stage alone.

The embedded engines on the CPU are swapped in; resources, replicas and limits stay as the file has them.
"""

import copy
import itertools
import re
import time
from typing import Any

import av
import numpy as np
import psutil
import pytest

from configs.serve_file import deployment_of, load_serve_config
from models.restore.video import VideoOptions
from tests.graph.conftest import EMBEDDED, free_port
from tests.support.video import picture_of, sound_of, uneven, write_video
from warmtalk.cli.enhance import ClusterBackend, LocalBackend, enhance_video
from warmtalk.cli.local_graph import LocalGraph

pytestmark = pytest.mark.ray

FRAMES = 24  # of the video that is enhanced

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
        if stage := re.search(r"ServeReplica:warmtalk:(\w+)", title):  # behind it, the method that is being run
            found.setdefault(stage.group(1), set()).add(process.pid)
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


class Killed(Exception):
    """Stands for the end of the process."""


def test_both_replicas_enhance_a_video_and_a_rerun_goes_on(graph, tmp_path):
    """`warmtalk enhance --address`, with what it does here: the same picture, times and sound."""
    import ray

    frames = [frame.to_ndarray(format="rgb24") for frame in presenter(FRAMES)]
    source, output = write_video(tmp_path / "in.mp4", frames, uneven(FRAMES)), tmp_path / "out.mp4"
    backend = ClusterBackend.connect(ray.get_runtime_context().gcs_address)
    assert not backend.template  # the small restorer's
    workers = [psutil.Process(pid) for pid in replicas()["Enhance"]]
    assert len(workers) == 2
    before = [worker.cpu_times().user for worker in workers]

    def progress(done: int, of: int) -> None:
        if done == FRAMES - 2:
            raise Killed

    how = {"options": VideoOptions(batch=2), "piece_s": 0.32, "crf": 3.0}
    with pytest.raises(Killed):
        enhance_video(source, output, backend, **how, progress=progress)
    assert not output.exists()
    report = enhance_video(source, output, backend, **how)
    assert (report.frames, report.resumed) == (FRAMES, 18)  # two pieces of nine frames were there
    assert all(worker.cpu_times().user - begun > 0.1 for worker, begun in zip(workers, before, strict=True))

    (times, enhanced), (wanted_times, shown) = picture_of(output), picture_of(source)
    assert times == wanted_times and sound_of(output) == sound_of(source)
    enhance_video(source, tmp_path / "here.mp4", LocalBackend.load("small"), **how)
    here = picture_of(tmp_path / "here.mp4")[1]
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(enhanced, here, strict=True)) < 0.5
    assert min(np.abs(a.astype(int) - b).max() for a, b in zip(enhanced, shown, strict=True)) > 10


def presenter(count: int) -> list[av.VideoFrame]:
    with av.open(str(EMBEDDED / "presenter" / "presenter.mp4")) as container:
        return list(itertools.islice(container.decode(video=0), count))


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
