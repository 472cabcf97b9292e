"""Downloads: each file is made once, a few at a time, on threads; kept for a while, then deleted. In virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.ingress.downloads import KEEP_S, MAX_KEPT, Downloads
from models.errors import InputError
from models.media.encode import UtteranceEncoder
from models.stitch.session import SessionFile
from tests.support.live import RATE, SPEC, levels, shown
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]
EXPORT_S = 1.0


def say(session: SessionFile, frames: int) -> None:
    silence = np.zeros(frames * RATE // 25, np.float32)
    for fragment in UtteranceEncoder(SPEC, session.clock).push(levels(frames), silence, last=True):
        session.append(fragment)


def facts(session: SessionFile) -> dict[str, Any]:
    return {"video_path": str(session.path), "video_tag": session.video_tag}


def frames_of(data: bytes) -> int:
    return len(shown(data)[1])


@pytest.fixture
def session(tmp_path: Path) -> SessionFile:
    made = SessionFile(tmp_path / "alice", SPEC, sync="never")
    say(made, 30)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


class Threads:
    """asyncio.to_thread, where each call takes EXPORT_S of virtual time. Counts the calls."""

    def __init__(self) -> None:
        self.running = self.max_running = self.calls = 0

    async def __call__(self, function, *arguments):
        self.calls += 1
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            await asyncio.sleep(EXPORT_S)
            return function(*arguments)
        finally:
            self.running -= 1


@pytest.fixture(autouse=True)
def threads(monkeypatch) -> Threads:
    threads = Threads()
    monkeypatch.setattr(asyncio, "to_thread", threads)
    return threads


async def read(files: Downloads, session: SessionFile, size: int) -> bytes:
    with await files.open(facts(session), size) as file:
        return file.read()


async def test_a_limited_number_is_made_at_a_time_and_the_rest_wait(session, folder, threads):
    sizes = [session.size]
    for _ in range(5):
        say(session, 8)
        sizes.append(session.size)
    files = Downloads(lambda: folder, 2)
    data = await asyncio.gather(*(read(files, session, size) for size in sizes))
    assert (threads.max_running, threads.calls) == (2, 6)
    assert [frames_of(whole) for whole in data] == [30, 38, 46, 54, 62, 70]


async def test_requests_for_the_same_size_share_one_file(session, folder, threads):
    files = Downloads(lambda: folder, 2)
    data = await asyncio.gather(*(read(files, session, session.size) for _ in range(8)))
    assert threads.calls == 1 and len(set(data)) == 1
    assert await read(files, session, session.size) == data[0] and threads.calls == 1  # also a player's next range


async def test_a_client_that_leaves_does_not_cancel_the_file_of_the_others(session, folder, threads):
    files = Downloads(lambda: folder, 1)
    leaver, other = (asyncio.create_task(read(files, session, session.size)) for _ in range(2))
    await asyncio.sleep(EXPORT_S / 2)
    leaver.cancel()
    assert frames_of(await other) == 30 and threads.calls == 1


async def test_a_waiting_file_is_cancelled_when_all_its_clients_have_left(session, folder, threads):
    sizes = [session.size]
    for _ in range(9):
        say(session, 8)
        sizes.append(session.size)
    files = Downloads(lambda: folder, 1)
    requests = [asyncio.create_task(read(files, session, size)) for size in [*sizes, sizes[8]]]
    await asyncio.sleep(EXPORT_S / 2)
    for task in requests[:9]:
        task.cancel()  # the first is being made, and size 8 has a second client
    assert [frames_of(await task) for task in requests[9:]] == [102, 94]
    assert threads.calls == 3 and len(list(folder.iterdir())) == 3
    assert frames_of(await read(files, session, sizes[4])) == 62  # a later request gets its file


async def test_a_file_is_deleted_some_time_after_its_last_request(session, folder, threads):
    files = Downloads(lambda: folder, 2)
    leaver = asyncio.create_task(read(files, session, session.size))
    await asyncio.sleep(EXPORT_S / 2)
    leaver.cancel()  # the file is made nevertheless, and must not stay
    await asyncio.sleep(EXPORT_S)
    assert len(list(folder.iterdir())) == 1
    for _ in range(4):
        await asyncio.sleep(KEEP_S - 1)
        await read(files, session, session.size)  # each request extends its time
    assert threads.calls == 1 and len(list(folder.iterdir())) == 1
    file = await files.open(facts(session), session.size)
    await asyncio.sleep(KEEP_S + 1)
    assert list(folder.iterdir()) == [] and frames_of(file.read()) == 30  # an open file can still be read
    file.close()


async def test_only_the_latest_files_are_kept(session, folder):
    files, sizes = Downloads(lambda: folder, 2), []
    for _ in range(MAX_KEPT + 2):
        say(session, 4)
        sizes.append(session.size)
        await read(files, session, session.size)
        await read(files, session, sizes[0])  # used again and again, so it stays
    kept = {path.stat().st_size for path in folder.iterdir()}
    assert len(kept) == MAX_KEPT and len(await read(files, session, sizes[0])) in kept
    files.close()
    assert list(folder.iterdir()) == []


async def test_closing_deletes_also_the_files_that_are_being_made(session, folder):
    files = Downloads(lambda: folder, 2)
    request = asyncio.create_task(read(files, session, session.size))
    await asyncio.sleep(EXPORT_S / 2)
    request.cancel()
    files.close()
    await asyncio.sleep(EXPORT_S)
    assert list(folder.iterdir()) == []


async def test_a_failed_file_is_made_again_for_the_next_request(session, folder, threads):
    files = Downloads(lambda: folder, 2)
    for _ in range(2):
        with pytest.raises(InputError, match="ends at byte 7"):
            await read(files, session, 7)
    assert threads.calls == 2 and list(folder.iterdir()) == []
