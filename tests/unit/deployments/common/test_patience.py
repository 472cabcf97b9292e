"""What is waited for comes, or does not come in time; and who is cancelled meanwhile is gone, in whatever moment."""

import asyncio
import time

import pytest

from deployments.common.patience import within


async def comes(value: int) -> int:
    await asyncio.sleep(0.01)
    return value


@pytest.mark.parametrize("seconds", [1.0, None])
async def test_what_comes_in_time_is_given(seconds):
    assert await within(seconds, comes(7)) == 7


async def test_what_does_not_come_in_time_is_ended():
    never = asyncio.Event()
    began_s = time.monotonic()
    with pytest.raises(asyncio.TimeoutError):
        await within(0.05, never.wait())
    assert 0.04 < time.monotonic() - began_s < 1.0
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1  # nobody waits for it any more


async def test_an_error_is_passed_on():
    async def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await within(1.0, fails())


@pytest.mark.parametrize("steps", range(5))
async def test_who_is_cancelled_in_the_moment_in_which_it_comes_is_cancelled(steps):
    queue: asyncio.Queue[int] = asyncio.Queue()
    reached = []

    async def wait() -> None:
        reached.append(await within(1.0, queue.get()))
        await asyncio.sleep(10)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    queue.put_nowait(1)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=1)
    assert task.cancelled() and (reached == [] or steps > 1)
