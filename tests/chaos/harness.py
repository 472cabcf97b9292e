"""The chaos graph, and what a test does to it: kill, freeze, scale and replace replicas."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from configs.serve_file import deployment_of
from tests.chaos import faults
from tests.chaos.avatar import NAME, make_avatar
from tests.graph.processes import apply, free_port, replicas
from tests.graph.requests import wait_until
from warmtalk.cli.local_graph import LocalGraph

WORKERS = ("TTS", "AudioFeatures", "LipSync", "Enhance")
STAGES = (*WORKERS, "Stitch", "Ingress", "Avatars", "Chat", "Recognize")
ENGINES: dict[str, dict[str, Any]] = {
    "TTS": {"engine": "tests.chaos.engines:Tone"},
    "AudioFeatures": {},
    "LipSync": {"engine": "tests.chaos.engines:Faces", "batch_size": 16},
    "Enhance": {"engine": "tests.chaos.engines:Restorer", "batch_size": 16},
    "Stitch": {"avatar_id": NAME, "recorded_pause_ms": 0, "preset": "ultrafast", "rest_mouth": "generated"}
    | dict.fromkeys(("color_match", "sharpness_match", "jaw_follow", "steady_crops"), False)
    | {"threads": 2, "chunk_frames": 16, "cached_sessions": 4, "max_live_load": None},
    "Avatars": {"preparation": False},
    "Recognize": {"engine": "tests.chaos.engines:Recognizer"},
    "Chat": {"engine": "offline"},
    "Ingress": {},
}


def with_fake_engines(config: dict[str, Any]) -> None:
    """demo.yaml with fake engines and a fixed number of replicas. Serve's own settings stay as the file has them."""
    application = config["applications"][0]
    application["import_path"] = "tests.chaos.app:build_app"
    application["args"]["recognize"] = True
    application["deployments"].append(deployment_of(config, "Enhance") | {"name": "Recognize"})
    for stage, user_config in ENGINES.items():
        deployment = deployment_of(config, stage)
        deployment["ray_actor_options"] = dict(deployment["ray_actor_options"])  # not that of another stage
        deployment["user_config"] = user_config
        deployment.pop("autoscaling_config", None)
        deployment["num_replicas"] = 1


class ChaosGraph:
    """The graph with fake engines on a Ray of its own."""

    def __init__(self, home: Path, start_cluster: Callable[[], dict[str, Any]] = lambda: {"num_cpus": 32}) -> None:
        """start_cluster: returns arguments of ray.init; called when the environment of Ray's processes is set."""
        self.faults = home / "faults"
        self.faults.mkdir(parents=True)
        make_avatar(home / "results" / "avatars")
        self._patch = pytest.MonkeyPatch()
        self._patch.setenv(faults.VARIABLE, str(self.faults))
        self._patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent / "site")]))
        self._patch.setenv("WARMTALK_HOME", str(home))
        self._patch.setenv("RAY_worker_niceness", "0")  # by default 15: other work on the machine comes first
        self._patch.setenv("MALLOC_ARENA_MAX", "2")  # else glibc keeps up to 16 heaps a process, which look like leaks
        self.running = LocalGraph("demo", free_port(), home, with_fake_engines, start_cluster()).start()

        try:
            self.wait_until_it_speaks()
        except BaseException:
            self.stop()
            raise

    @property
    def home(self) -> Path:
        return self.running.home

    @property
    def url(self) -> str:
        return self.running.url

    def stop(self) -> None:
        self.running.stop()
        self._patch.undo()

    # --- faults

    def inject(self, target: str, **fault: Any) -> float:
        """See faults.put. Returns the time."""
        faults.put(self.faults, target, **fault)
        return time.monotonic()

    def wait_until_taken(self, stage: str) -> float:
        """Wait until a call has taken a hang or a CUDA error; return the time."""
        wait_until(lambda: faults.taken(self.faults, stage), f"a call of {stage} takes the fault", every_s=0.01)
        return time.monotonic()

    # --- replicas

    def kill(self, stage: str, pid: int | None = None, how: signal.Signals = signal.SIGKILL) -> tuple[int, float]:
        """Send a signal to a replica, by default to the oldest one. Returns its process id and the time."""
        pid = pid or min(replicas()[stage], key=lambda one: psutil.Process(one).create_time())
        os.kill(pid, how)
        return pid, time.monotonic()

    def running_replicas(self, stage: str) -> int:
        """The number of replicas that Serve has in service."""
        from ray import serve

        deployment = serve.status().applications["warmtalk"].deployments[stage]
        return int(deployment.replica_states.get("RUNNING", 0))

    def wait_until_replaced(self, stage: str, pid: int, since_s: float, count: int = 1, limit_s: float = 60.0) -> float:
        """Wait until the process has ended and `count` other replicas serve. Returns the seconds since `since_s`."""

        def replaced() -> bool:  # Serve counts a dead replica until it starts another process
            processes = replicas().get(stage, set())
            return pid not in processes and len(processes) >= count and self.running_replicas(stage) >= count

        wait_until(replaced, f"{stage} ({pid}) is replaced", limit_s, every_s=0.1)
        return time.monotonic() - since_s

    def deploy(self, change: Any, wait: bool = True) -> None:
        """Apply `change(config)` in place; with `wait`, return when all replicas are the new ones."""
        config = copy.deepcopy(self.running.config)
        change(config)
        if wait:
            apply(self.running, config)
        else:
            self.running.deploy(config)

    def scale(self, wait: bool = True, **counts: int) -> None:
        """Set the number of replicas per stage."""
        self.deploy(lambda config: _set_replicas(config, counts), wait)

    @contextlib.contextmanager
    def scaled(self, **counts: int) -> Iterator[None]:
        """These numbers of replicas, and one of each afterwards."""
        self.scale(**counts)
        try:
            yield
        finally:
            self.scale(**dict.fromkeys(counts, 1))

    def roll(self, stage: str, wait: bool = True) -> None:
        """Replace all replicas of a stage by a new version, which differs in nothing that matters."""

        def change(config: dict[str, Any]) -> None:
            options = deployment_of(config, stage)["ray_actor_options"]
            options["num_cpus"] = 0.1 if options["num_cpus"] != 0.1 else 0.11

        self.deploy(change, wait)

    def repair(self) -> None:
        """Take back faults and numbers of replicas; return when every stage serves again."""
        faults.clear(self.faults)
        for pids in replicas().values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.scale(**dict.fromkeys(STAGES, 1))

        self.wait_until_it_speaks()

    def wait_until_it_speaks(self) -> None:
        answer = "none"

        def speaks() -> bool:
            nonlocal answer
            with contextlib.suppress(httpx.TransportError):
                body = {"text": "Ready.", "session_id": "ready", "enhance": True}
                response = httpx.post(f"{self.url}/speak", json=body, timeout=30)
                answer = f"{response.status_code} {response.text}"
                return response.status_code == 200
            return False

        try:
            wait_until(speaks, "the graph speaks", timeout_s=60, every_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}; its last answer: {answer}") from error


def _set_replicas(config: dict[str, Any], counts: dict[str, int]) -> None:
    for stage, count in counts.items():
        deployment = deployment_of(config, stage)
        deployment["num_replicas"] = count
        deployment.pop("autoscaling_config", None)  # of a case that ends; Serve allows only one of the two
