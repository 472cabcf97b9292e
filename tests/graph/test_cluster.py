"""configs/cluster.yaml on a local Ray with a simulated GPU: fractions share it, and a change touches one stage only.

The graph runs with demo.yaml until then. The embedded CPU engines replace those of the GPU; resources, replicas and
limits stay as the file has them.
"""

import copy
import itertools
from typing import Any

import av
import numpy as np
import psutil
import pytest

from configs.serve_file import deployment_of, load_serve_config
from models.restore.video import EnhanceOptions
from tests.graph.media import EMBEDDED
from tests.graph.processes import apply, replicas
from tests.graph.requests import wait_until
from tests.support.video import picture_of, sound_of, uneven, write_video
from warmtalk.cli.enhance import ClusterBackend, LocalBackend, enhance_video

pytestmark = pytest.mark.ray

FRAMES = 24  # of the video that is enhanced

ON_CPU: dict[str, dict[str, Any]] = {
    "AudioFeatures": {"context_s": 8.0},
    "LipSync": {"engine": "openvino", "threads": 1, "batch_size": 8, "batch_wait_ms": 2.0},
    "Enhance": {"engine": "small", "options": {"threads": 1}},
    "Avatars": {},
}


@pytest.fixture(scope="module", autouse=True)
def cluster(graph) -> None:
    """The shared graph with the deployments of cluster.yaml; it is not used for anything else after this module."""
    config = copy.deepcopy(graph.config)
    config["applications"] = load_serve_config("cluster")["applications"]
    for stage, user_config in ON_CPU.items():
        deployment_of(config, stage)["user_config"] = copy.deepcopy(user_config)
    apply(graph, config)


def others(found: dict[str, set[int]], stage: str) -> dict[str, set[int]]:
    return {name: pids for name, pids in found.items() if name != stage}


def test_the_fractions_share_one_gpu(graph):
    import ray

    config = load_serve_config("cluster")["applications"][0]["deployments"]
    used = sum(d["ray_actor_options"].get("num_gpus", 0) * d.get("num_replicas", 1) for d in config)
    assert 0 < used <= 1
    assert ray.cluster_resources()["GPU"] == 1
    wait_until(lambda: 1 - ray.available_resources().get("GPU", 0) == pytest.approx(used), "the shares are taken")
    counts = {stage: len(pids) for stage, pids in replicas().items()}
    ones = ("TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch", "Avatars", "Chat")
    assert counts == {**dict.fromkeys(ones, 1), "Ingress": 2}


def test_more_replicas_of_enhance_change_enhance_only(graph):
    before = replicas()
    config = copy.deepcopy(graph.config)
    deployment_of(config, "Enhance")["autoscaling_config"]["min_replicas"] = 2
    apply(graph, config)
    wait_until(lambda: len(replicas()["Enhance"]) == 2, "two replicas of Enhance")
    after = replicas()
    assert before["Enhance"] < after["Enhance"] and others(after, "Enhance") == others(before, "Enhance")


class Killed(Exception):
    """Stands for the end of the process."""


def test_both_replicas_enhance_a_video_and_a_second_run_resumes_it(graph, tmp_path):
    """`warmtalk enhance --address`, compared with an enhancement in this process: same picture, times and sound."""
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

    how = {"options": EnhanceOptions(batch=2), "piece_s": 0.32, "crf": 3.0}
    with pytest.raises(Killed):
        enhance_video(source, output, backend, **how, progress=progress)
    assert not output.exists()
    report = enhance_video(source, output, backend, **how)
    assert (report.frames, report.resumed) == (FRAMES, 18)  # two parts of nine frames were there
    assert all(worker.cpu_times().user - begun > 0.1 for worker, begun in zip(workers, before, strict=True))

    (times, enhanced), (wanted_times, shown) = picture_of(output), picture_of(source)
    assert times == wanted_times and sound_of(output) == sound_of(source)
    enhance_video(source, tmp_path / "here.mp4", LocalBackend.load("small"), **how)
    here = picture_of(tmp_path / "here.mp4")[1]
    change = min(np.abs(a.astype(int) - b).mean() for a, b in zip(here, shown, strict=True))
    error = max(np.abs(a.astype(int) - b).mean() for a, b in zip(enhanced, here, strict=True))
    assert error < 0.25 * change  # the engines of both processes may round differently


def presenter(count: int) -> list[av.VideoFrame]:
    with av.open(str(EMBEDDED / "presenter" / "presenter.mp4")) as container:
        return list(itertools.islice(container.decode(video=0), count))


def test_a_tunable_of_one_stage_is_applied_without_a_restart(graph):
    from ray import serve

    handle = serve.get_deployment_handle("LipSync", "warmtalk")
    before = replicas()
    assert handle.stats.remote().result()["config"]["batch_size"] == 8
    config = copy.deepcopy(graph.config)
    deployment_of(config, "LipSync")["user_config"]["batch_size"] = 4
    apply(graph, config)
    assert replicas() == before
    assert handle.stats.remote().result()["config"]["batch_size"] == 4


def test_a_change_of_resources_restarts_that_stage_only(graph):
    before = replicas()
    config = copy.deepcopy(graph.config)
    deployment_of(config, "TTS")["ray_actor_options"]["num_cpus"] = 2
    apply(graph, config)
    after = wait_until(lambda: (now := replicas())["TTS"].isdisjoint(before["TTS"]) and now, "TTS is replaced")
    assert others(after, "TTS") == others(before, "TTS")
