"""What the tests of the Python clients share."""

from __future__ import annotations

import pytest

from warmtalk.client import async_client as aio
from warmtalk.client import sync_client as client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a client would have made."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(client.time, "sleep", made.append)
    monkeypatch.setattr(aio.asyncio, "sleep", pause)
    return made
