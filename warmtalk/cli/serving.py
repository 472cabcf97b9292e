"""Gives a command the graph that it needs: one started on this machine, or a server that runs already."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from warmtalk.cli.local_graph import LocalGraph
from warmtalk.cli.ports import ServerRunningError
from warmtalk.cli.terminal import console, progress_bar


@contextmanager
def started_graph(
    config: str, port: int | None, stop: threading.Event | None = None, remedy: Callable[[str], str] | None = None
) -> Iterator[LocalGraph]:
    """Start the graph on its own Ray, with a progress bar; stop it at the end.

    stop: set it to give up while the graph starts. remedy: what to advise if a WarmTalk server, whose URL it gets,
    already listens on the port.
    """
    graph = LocalGraph(config, port)
    _exit_on_sigterm()
    begin_s = time.monotonic()
    try:
        with progress_bar() as bar:
            task = bar.add_task("starting the graph", total=7, note="Ray")

            def show(done: int, total: int, waiting: str) -> None:
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
                bar.update(task, completed=done, total=total, note=waiting)

            graph.start(show)
    except ServerRunningError as error:
        error.remedy = remedy(error.url) if remedy else error.remedy
        raise
    try:
        console.print(f"graph ready after {time.monotonic() - begin_s:.1f} s")
        yield graph
    finally:
        with console.status("stopping the graph"):
            graph.stop()


def _exit_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that the graph is stopped, unless the command handles the signal itself."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def server(config: str, url: str | None, port: int | None) -> Iterator[str]:
    """The URL of a server: `url` if one is given, else of a graph that runs until the block ends."""
    if url:
        yield url.rstrip("/")
        return
    with started_graph(config, port, remedy=_use_it) as graph:
        graph.use_own_key()
        yield graph.url


def _use_it(url: str) -> str:
    return f"Add `--server {url}` to use it, or pass --port to start another."
