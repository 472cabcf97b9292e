"""How pytest-xdist distributes the tests among its processes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file's tests run in one process, which share its fixtures; so do all tests of the page, which share a Chromium."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here)
        item.add_marker(pytest.mark.xdist_group("browser" if path.parts[0] == "browser" else str(path)))
