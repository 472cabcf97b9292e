"""One real local Ray with the embedded default for all modules of SHARED_GRAPH, one after another.

A test that needs another setting deploys it in place (`processes.changed`) and restores it. Each test uses sessions and
avatars of its own. Modules that test starting and stopping run before the shared graph starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import chromium as browser
from tests.browser.chromium import chromium, tab
from tests.graph.processes import PRIORITY, free_port
from warmtalk.cli import CODE
from warmtalk.cli.local_graph import LocalGraph

__all__ = ["chromium", "tab"]

# in this order: overload wants Stitch without viewers; the last two kill replicas and deploy another config
SHARED_GRAPH = (
    "test_overload",
    "test_sessions_live",
    "test_speak",
    "test_monitoring",
    "test_speech_api",
    "test_refusals",
    "test_load",
    "test_page_live",
    "test_failures",
    "test_cluster",
)
KEY = "0123456789abcdef-graph"
ENVIRONMENT = PRIORITY | {  # of all replicas
    "GRAPH_KEYS": KEY,  # no config names it, until a test does
    "WARMTALK_CACHE": str(CODE / ".cache"),  # compiled models, which are otherwise in `home`
    "MALLOC_ARENA_MAX": "2",  # else glibc keeps up to 16 heaps a process, which look like leaks
}
RESOURCES = {"num_cpus": 32, "num_gpus": 1}  # declared to Ray, not real: for configs/cluster.yaml


def with_user_configs(config: dict[str, Any]) -> None:
    """Serve keeps the last user_config of a stage that no longer has one; an empty one takes a change back.

    Requests are logged, for test_monitoring.
    """
    config["logging_config"] = {"log_level": "INFO"}
    for deployment in config["applications"][0]["deployments"]:
        deployment.setdefault("user_config", {})


class SharedGraph:
    """The graph that all modules of SHARED_GRAPH use: to start and stop one takes half a minute."""

    def __init__(self) -> None:
        self.running: LocalGraph | None = None
        self._patch = pytest.MonkeyPatch()

    def get(self, home: Path) -> LocalGraph:
        if self.running is None:
            for name, value in ENVIRONMENT.items():
                self._patch.setenv(name, value)
            self.running = LocalGraph("demo", free_port(), home, with_user_configs, RESOURCES).start()
        return self.running

    def stop(self) -> None:
        if self.running is not None:
            running, self.running = self.running, None
            running.stop()
            self._patch.undo()


SHARED = SharedGraph()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules of SHARED_GRAPH after all others of this folder, in that order."""
    here = [k for k, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    rank = {name: k for k, name in enumerate(SHARED_GRAPH)}
    ordered = sorted((items[k] for k in here), key=lambda item: rank.get(item.path.stem, -1))
    for k, item in zip(here, ordered, strict=True):
        items[k] = item


@pytest.hookimpl(trylast=True)  # after the module's fixtures, some of which call the graph
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or "graph" not in getattr(nextitem, "fixturenames", ()):
        SHARED.stop()
    if nextitem is None or nextitem.path != item.path:
        browser.SHARED.stop()


def pytest_sessionfinish() -> None:
    SHARED.stop()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def graph(home: Path) -> LocalGraph:
    return SHARED.get(home)


@pytest.fixture(scope="module")
def client(graph: LocalGraph) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=graph.url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        yield client
