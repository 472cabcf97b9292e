"""Fixtures: one Chromium for all tests of this folder, and the chat page on a fake server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.browser import chromium as browser
from tests.browser.chromium import Tab, chromium, tab
from tests.browser.fake_media import Film
from tests.browser.fake_server import fake_server
from tests.browser.fake_state import State

__all__ = ["chromium", "tab"]


@pytest.hookimpl(trylast=True)  # after the fixtures, which close what they opened
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != item.path.parent:
        browser.SHARED.stop()


@pytest.fixture(scope="session")
def film() -> Film:
    return Film(side=256)


@pytest.fixture
def served(film: Film) -> Iterator[tuple[str, State]]:
    """URL and state of a fake server for one test."""
    with fake_server(film) as (url, state):
        yield url, state


@pytest.fixture
def state(served: tuple[str, State]) -> State:
    return served[1]


@pytest.fixture
def modules(served: tuple[str, State], tab: Callable[..., Tab]) -> Tab:
    """A plain page of the server, without video, in which the page's modules can be imported and called."""
    return tab(served[0]).open("/web/app.js", live=False)


@pytest.fixture
def chat(served: tuple[str, State], tab: Callable[..., Tab]) -> Tab:
    """The page, showing live video."""
    return tab(served[0]).open()
