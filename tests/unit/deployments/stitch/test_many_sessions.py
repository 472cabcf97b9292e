"""Many sessions: opening one costs the same however many exist, the limit holds, and nothing leaks."""

import asyncio
import gc
import io
import os
from collections import Counter
from pathlib import Path

import pytest

from deployments.stitch.retention import Limits, Retention
from models.errors import QuotaError
from models.stitch.disk import META
from models.stitch.store import SessionStore
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

MANY = 200
FILES = Path("/proc/self/fd")
FILE_CALLS = ["stat", "lstat", "open", "mkdir", "rename", "replace", "link", "unlink", "utime", "fsync"]


@pytest.fixture
def file_calls(monkeypatch) -> Counter[str]:
    """How often the functions of `os` for files and folders are called, and how many entries the listed folders had."""
    calls: Counter[str] = Counter()

    def count(owner, name: str) -> None:
        function = getattr(owner, name)
        counted = lambda *args, **kwargs: calls.update([name]) or function(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(owner, name, counted)

    for name in FILE_CALLS:
        count(os, name)
    count(io, "open")
    listed = os.listdir
    for name in ("listdir", "scandir"):
        count(os, name)
        one = getattr(os, name)
        entries = lambda path=".", one=one: calls.update(entries=len(listed(path))) or one(path)  # noqa: E731
        monkeypatch.setattr(os, name, entries)
    return calls


async def test_opening_a_session_takes_as_many_file_calls_among_many_sessions_as_among_few(
    make_stitch, tmp_path, file_calls
):
    """Both by the call `create` and by speech."""
    stitch, _, _ = await make_stitch()
    root = tmp_path / "results" / "sessions"
    alice = stitch._sessions.find("alice")
    avatar = stitch._load_avatar("ann").prepared
    costs = []
    for existing in (10, 1000):
        for k in range(len(await stitch.sessions()), existing):
            (root / f"s{k}").mkdir()
            (root / f"s{k}" / META).hardlink_to(root / "alice" / META)
        stitch._retention.survey()
        assert len(await stitch.sessions()) == stitch._retention.sessions == existing
        file_calls.clear()
        await stitch.create(f"created-{existing}")
        created = dict(file_calls)
        stitch._sessions.claim(f"spoken-{existing}", alice.spec, avatar)
        costs.append((created, dict(file_calls)))
    assert costs[0][0]["open"] and costs[0] == costs[1]


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
    assert await stitch.sessions() == ["alice"] and [path.name for path in root.glob("[!.]*")] == ["alice"]
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
