"""One Chromium for all tests of this folder, and the chat page over a server of canned media."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.browser import chromium as browser
from tests.browser.chromium import Tab, chromium, tab
from tests.browser.fake_media import Film
from tests.browser.fake_server import fake_server
from tests.browser.fake_state import State

__all__ = ["chromium", "tab"]


@pytest.hookimpl(trylast=True)  # behind the fixtures, which close what they have opened
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != item.path.parent:
        browser.SHARED.stop()


@pytest.fixture(scope="session")
def film() -> Film:
    return Film()


@pytest.fixture
def served(film: Film) -> Iterator[tuple[str, State]]:
    """Address and state of a server of this test's own."""
    with fake_server(film) as (url, state):
        yield url, state


@pytest.fixture
def state(served: tuple[str, State]) -> State:
    return served[1]


@pytest.fixture
def chat(served: tuple[str, State], tab: Callable[..., Tab]) -> Tab:
    """The page, live."""
    return tab(served[0]).open()
