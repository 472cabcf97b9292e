"""Many sessions are opened and removed: the limit holds, and nothing leaks."""

import asyncio
import gc
import os
from pathlib import Path

import pytest

from deployments.stitch.retention import Limits, Retention
from models.errors import QuotaError
from models.stitch.store import SessionStore
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

MANY = 200
FILES = Path("/proc/self/fd")


async def test_many_removed_sessions_leave_nothing_behind(make_stitch, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # makes the test fast
    stitch, _, _ = await make_stitch(max_sessions=MANY, cached_sessions=16)
    root = tmp_path / "results" / "sessions"

    async def opened(names: list[str]) -> None:
        for begin in range(0, len(names), 100):
            await asyncio.gather(*(stitch.create(name) for name in names[begin : begin + 100]))

    async def removed(names: list[str]) -> None:
        for begin in range(0, len(names), 100):
            await asyncio.gather(*(stitch.remove(name) for name in names[begin : begin + 100]))

    warm = [f"warm-{k}" for k in range(20)]
    await opened(warm)
    await removed(warm)
    stitch._retention.survey()
    gc.collect()
    files, tasks = len(list(FILES.iterdir())), len(asyncio.all_tasks())
    objects = len(gc.get_objects())
    names = [f"s{k}" for k in range(MANY - 1)]  # and alice
    await opened(names)
    assert len(await stitch.sessions()) == MANY
    with pytest.raises(QuotaError, match=f"{MANY} sessions; the limit is"):
        await stitch.create("one-too-many")
    await removed(names)
    gc.collect()
    assert await stitch.sessions() == ["alice"] and [path.name for path in root.iterdir()] == ["alice"]
    assert len(list(FILES.iterdir())) <= files and len(asyncio.all_tasks()) <= tasks
    assert len(gc.get_objects()) - objects < MANY / 2  # less than one object per two sessions
    stitch._retention.survey()
    assert (await stitch.create("again"))["frames"] == 0


def test_a_session_opened_during_a_survey_is_counted(tmp_path, monkeypatch):
    retention = Retention(SessionStore(tmp_path), Limits(max_sessions=1, max_bytes=1e9, max_idle_s=0))
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: retention.opened() or scan(path))
    retention.survey()
    with pytest.raises(QuotaError):
        retention.check(new=True)
