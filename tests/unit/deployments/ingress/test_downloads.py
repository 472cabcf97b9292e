"""Downloads: made once, a few at a time, beside the event loop; kept for a while, then gone."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.ingress import downloads
from deployments.ingress.downloads import Downloads
from models.errors import InputError
from models.media.encode import UtteranceEncoder
from models.stitch.session import SessionFile
from tests.support.live import RATE, SPEC, levels, shown


def say(session: SessionFile, frames: int) -> None:
    for fragment in UtteranceEncoder(SPEC, session.clock).push(
        levels(frames), np.zeros(frames * RATE // 25, np.float32), last=True
    ):
        session.append(fragment)


def facts(session: SessionFile) -> dict[str, Any]:
    return {"video_path": str(session.path), "video_tag": session.video_tag}


@pytest.fixture
def session(tmp_path: Path) -> SessionFile:
    made = SessionFile(tmp_path / "alice", SPEC, sync="never")
    say(made, 30)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def made(monkeypatch) -> dict[str, Any]:
    """Files take 50 ms to make: how many are being made, the most at a time, how many were."""
    seen = {"now": 0, "most": 0, "all": 0}
    lock, faststart = threading.Lock(), downloads.faststart

    def slowly(*arguments):
        with lock:
            seen["now"], seen["all"] = seen["now"] + 1, seen["all"] + 1
            seen["most"] = max(seen["most"], seen["now"])
        time.sleep(0.05)
        try:
            return faststart(*arguments)
        finally:
            with lock:
                seen["now"] -= 1

    monkeypatch.setattr(downloads, "faststart", slowly)
    return seen


async def read(files: Downloads, session: SessionFile, size: int) -> bytes:
    with await files.open(facts(session), size) as file:
        return file.read()


async def test_so_many_are_made_at_a_time_and_the_rest_wait(session, folder, made):
    sizes = [session.size]
    for _ in range(5):
        say(session, 8)
        sizes.append(session.size)
    files = Downloads(lambda: folder, 2)
    data = await asyncio.gather(*(read(files, session, size) for size in sizes))
    assert (made["most"], made["all"]) == (2, 6)
    assert [len(shown(whole)[1]) for whole in data] == [30, 38, 46, 54, 62, 70]


async def test_all_who_ask_for_the_same_share_one(session, folder, made):
    files = Downloads(lambda: folder, 2)
    data = await asyncio.gather(*(read(files, session, session.size) for _ in range(8)))
    assert made["all"] == 1 and len(set(data)) == 1
    assert await read(files, session, session.size) == data[0] and made["all"] == 1  # the next range of a player, too


async def test_who_leaves_spoils_it_for_nobody(session, folder, made):
    files = Downloads(lambda: folder, 1)
    leaver = asyncio.create_task(read(files, session, session.size))
    stayer = asyncio.create_task(read(files, session, session.size))
    await asyncio.sleep(0.01)
    leaver.cancel()
    assert len(shown(await stayer)[1]) == 30 and made["all"] == 1


async def test_what_waits_for_its_turn_is_not_made_once_all_who_want_it_have_left(session, folder, made):
    sizes = [session.size]
    for _ in range(9):
        say(session, 8)
        sizes.append(session.size)
    files = Downloads(lambda: folder, 1)
    asked = [asyncio.create_task(read(files, session, size)) for size in [*sizes, sizes[8]]]
    await asyncio.sleep(0.02)
    for task in asked[:9]:
        task.cancel()  # the first is being made; of the ninth there is another who wants it
    assert [len(shown(await task)[1]) for task in asked[9:]] == [102, 94]
    assert made["all"] == 3 and len(files._made) == 3
    assert len(shown(await read(files, session, sizes[4]))[1]) == 62  # who comes back gets it all the same


async def test_a_file_that_nobody_asks_for_any_more_goes(session, folder, made, monkeypatch):
    monkeypatch.setattr(downloads, "KEPT_S", 0.5)
    files = Downloads(lambda: folder, 2)
    leaver = asyncio.create_task(read(files, session, session.size))
    await asyncio.sleep(0.01)
    leaver.cancel()  # it is made all the same, and must not stay
    await asyncio.sleep(0.1)
    assert len(list(folder.iterdir())) == 1
    for _ in range(4):
        await asyncio.sleep(0.2)
        await read(files, session, session.size)  # each time it is kept anew
    assert made["all"] == 1 and len(list(folder.iterdir())) == 1
    file = await files.open(facts(session), session.size)
    await asyncio.sleep(0.8)
    assert list(folder.iterdir()) == [] and len(shown(file.read())[1]) == 30  # who has it open reads on
    file.close()


async def test_few_are_kept(session, folder, monkeypatch):
    monkeypatch.setattr(downloads, "KEPT", 2)
    files = Downloads(lambda: folder, 2)
    for _ in range(5):
        say(session, 4)
        await read(files, session, session.size)
    assert len(list(folder.iterdir())) == 2
    files.close()
    assert list(folder.iterdir()) == []


async def test_one_that_cannot_be_made_is_tried_anew_by_the_next(session, folder, made):
    files = Downloads(lambda: folder, 2)
    for _ in range(2):
        with pytest.raises(InputError, match="never been 7 bytes"):
            await read(files, session, 7)
    assert made["all"] == 2 and list(folder.iterdir()) == []


async def test_ten_minutes_are_put_together_beside_the_event_loop(session, folder):
    say(session, 15_000)
    files, turns_s = Downloads(lambda: folder, 2), []
    making = asyncio.create_task(files.open(facts(session), session.size))
    while not making.done():
        before_s = time.perf_counter()
        await asyncio.sleep(0.001)
        turns_s.append(time.perf_counter() - before_s)
    making.result().close()
    assert len(turns_s) > 20 and np.percentile(turns_s, 95) < 0.05  # the longest belongs to a busy machine
