"""Fixture of the tests of both clients."""

from __future__ import annotations

import pytest

from warmtalk.client import async_client, sync_client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a client would have made, in seconds; no test waits for real."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(sync_client.time, "sleep", made.append)
    monkeypatch.setattr(async_client.asyncio, "sleep", pause)
    return made
