"""One graph with fake engines for all cases of this folder. A case repairs the graph before the next one begins.

`row` collects what a case saw; it goes to out/chaos.json whether the case holds or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import psutil
import pytest

from tests.chaos.harness import ChaosGraph
from tests.chaos.results import Row, save
from tests.chaos.viewers import Audience

BUSY = 0.5  # share of the cores' time before a case, above which its times say little
ABOVE_LIMIT = ("AssertionError: {", "assert ")  # of `assert figures within limits, row.seen`


class SharedGraph:
    """Starts with the first case that needs it; stops when no further one does."""

    def __init__(self) -> None:
        self.running: ChaosGraph | None = None

    def get(self, factory: pytest.TempPathFactory) -> ChaosGraph:
        if self.running is None:
            self.running = ChaosGraph(factory.mktemp("chaos"))
        return self.running

    def stop(self) -> None:
        if self.running is not None:
            running, self.running = self.running, None
            running.stop()


SHARED = SharedGraph()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or "graph" not in getattr(nextitem, "fixturenames", ()):
        SHARED.stop()


def pytest_sessionfinish() -> None:
    SHARED.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    setattr(item, f"report_{call.when}", outcome.get_result())


@pytest.fixture
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosGraph]:
    graph = SHARED.get(tmp_path_factory)
    yield graph
    if SHARED.running is not graph:  # the run was interrupted, and has stopped it
        return
    try:
        graph.repair()
    except BaseException:
        SHARED.stop()  # the next case gets a new one
        raise


@pytest.fixture
def audience(graph: ChaosGraph) -> Iterator[Audience]:
    audience = Audience(graph.url)
    yield audience
    audience.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A prefix for the session ids of this case."""
    return f"case-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"


def busy_share() -> float:
    """The share of the cores' time that processes take which are not niced: those wait for the graph."""
    times = psutil.cpu_times_percent(0.5)
    return float(100 - times.idle - times.iowait - times.nice) / 100


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    """The row of this case: `case` and `promised` come from its marker `promise`."""
    marker = request.node.get_closest_marker("promise")
    case, promised = marker.args
    values = getattr(request.node, "callspec", None)
    given = values.params if values else {}
    row = Row(case.format(**given), promised.format(**given))
    if (busy := busy_share()) > BUSY:
        row.note(f"the machine was busy with other work: {busy:.0%} of its cores")
    yield row
    report = getattr(request.node, "report_call", None)
    if report is not None:
        text = str(report.longrepr.reprcrash.message).splitlines()[0][:200] if report.failed else ""
        row.failure = "a figure is above its limit" if text.startswith(ABOVE_LIMIT) else text
    setup = getattr(request.node, "report_setup", None)
    if setup is None or not setup.skipped:
        save([row])
