"""How the tests are shared out among processes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A file's tests stay together, for its fixtures; the page's all do: one Chromium at a time is load enough."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here)
        item.add_marker(pytest.mark.xdist_group("browser" if path.parts[0] == "browser" else str(path)))
