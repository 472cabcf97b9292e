"""A command's graph is stopped when the command is terminated, without Ray's own report of the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

# Starts no Ray, and prints what happens. A real `ray.init` replaces the handler, as this one does.
COMMAND = """
import os, signal, sys
import ray
from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.serving import started_graph

ray.init = lambda **arguments: signal.signal(signal.SIGTERM, lambda *_: print("Ray's stack"))
LocalGraph.start = lambda self, progress: self._start_ray()
LocalGraph.stop = lambda self: print("stopped")
if sys.argv[1:] == ["handles"]:
    signal.signal(signal.SIGTERM, lambda *_: print("handled"))
with started_graph("demo", None):
    os.kill(os.getpid(), signal.SIGTERM)
"""


def terminated(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """The exit status of a command that gets SIGTERM while its graph runs, and what it printed."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    environment = os.environ | {"WARMTALK_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return done.returncode, done.stdout.splitlines()


def test_sigterm_stops_the_graph_of_a_command(tmp_path: Path) -> None:
    assert terminated(tmp_path) == (128 + signal.SIGTERM, ["stopped"])


def test_a_command_that_handles_sigterm_itself_keeps_its_handler(tmp_path: Path) -> None:
    assert terminated(tmp_path, "handles") == (0, ["handled", "stopped"])
