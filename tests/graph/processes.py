"""Processes of a graph: replicas of a local Ray, and `warmtalk serve` as a process of its own."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from configs.serve_file import deployment_of
from tests.graph.requests import wait_until
from warmtalk.cli.local_graph import CODE, LocalGraph

PRIORITY = {"RAY_worker_niceness": "0"}  # of replicas; Ray's own 15 is below that of the unit tests beside them
STOP_S = 8.0  # the promised time from SIGINT until no process is left


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_lines() -> dict[int, str]:
    """Process id → command line of each process that this one has started, directly or not."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found[process.pid] = " ".join(process.cmdline())
    return found


def replicas() -> dict[str, set[int]]:
    """Stage → process ids of its replicas, from the titles that Ray gives its worker processes."""
    found: dict[str, set[int]] = {}
    for pid, title in command_lines().items():
        if stage := re.search(r"ServeReplica:warmtalk:(\w+)", title):
            found.setdefault(stage.group(1), set()).add(pid)
    return found


def kill(stage: str) -> int:
    """Kill the only replica of a stage with SIGKILL; return its process id once the process has ended."""
    (pid,) = replicas()[stage]
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)

    def ended() -> bool:
        try:
            return bool(process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    wait_until(ended, f"the end of {stage} ({pid}) after SIGKILL", every_s=0.02)
    return pid


def apply(graph: LocalGraph, config: dict[str, Any]) -> None:
    """Deploy a changed config in place; return when every stage has its new settings and old replicas are gone."""
    from ray import serve

    graph.deploy(config)

    def settled() -> bool:
        application = serve.status().applications["warmtalk"]
        states = [d.replica_states for d in application.deployments.values()]
        healthy = all(d.status == "HEALTHY" for d in application.deployments.values())
        return application.status == "RUNNING" and healthy and all(set(state) == {"RUNNING"} for state in states)

    wait_until(settled, "the graph runs with the changed config", timeout_s=180, every_s=0.1)


@contextlib.contextmanager
def changed(graph: LocalGraph, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The graph with a changed config, in place; as before afterwards."""
    before = graph.config
    config = copy.deepcopy(before)
    change(config)
    try:
        apply(graph, config)
        yield
    finally:
        apply(graph, before)


def user_config(stage: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    """A change for `changed`: some settings of one stage."""

    def change(config: dict[str, Any]) -> None:
        deployment = deployment_of(config, stage)
        deployment["user_config"] = (deployment.get("user_config") or {}) | values

    return change


def set_traps(folder: Path) -> None:
    """A graph.py and a models/ which no process may import."""
    (folder / "models").mkdir()
    for trap in (folder / "graph.py", folder / "models" / "__init__.py"):
        trap.write_text("raise RuntimeError('of the working folder')")


class Server:
    """`warmtalk serve` as a process, in a folder outside the repository whose name has a space.

    program: the `warmtalk` of an environment with the installed wheel, which must not import the modules of that name
    in its working folder; else the checkout's code runs.
    """

    def __init__(self, folder: Path, config: str = "demo", program: Path | None = None) -> None:
        self.folder, self.port, self.config, self.program = folder / "my folder", free_port(), config, program
        self.folder.mkdir()
        if program is not None:
            set_traps(self.folder)
        self.log = self.folder / "log"
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WARMTALK_", "RAY_"))}
        environment["WARMTALK_CACHE"] = str(CODE / ".cache")  # compiled models
        environment |= PRIORITY
        environment.pop("PYTHONPATH", None)
        command = [str(self.program)]
        if self.program is None:
            environment["PYTHONPATH"] = str(CODE)
            command = [sys.executable, "-m", "warmtalk.cli.app"]
        command += ["serve", "--port", str(self.port), "--config", self.config]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until the condition is true; fail at once, with the log, when the process ends."""

        def condition_while_running() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return condition()

        wait_until(condition_while_running, what, timeout_s=180, every_s=0.1)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def interrupt(self) -> float:
        """Send SIGINT; return the seconds until the process and all that it had started are gone."""
        tree, begin_s = self.tree(), time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        gone, alive = psutil.wait_procs(tree, timeout=max(0.1, STOP_S - (time.monotonic() - begin_s)))
        assert not alive, [process.cmdline() for process in alive]
        assert len(gone) == len(tree) > 2
        return time.monotonic() - begin_s

    def kill(self) -> None:
        """End every process at once with SIGKILL, as a power cut does."""
        doomed = [psutil.Process(self.process.pid), *self.tree()]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)
        psutil.wait_procs(doomed, timeout=30)
