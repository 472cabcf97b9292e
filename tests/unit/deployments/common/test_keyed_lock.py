"""KeyedLock: one call at a time per key, in order of arrival; unused keys are dropped."""

import asyncio

import pytest

from deployments.common.keyed_lock import KeyedLock


async def take(lock: KeyedLock, key: str, name: str, log: list[str], until: asyncio.Event | None = None) -> None:
    async with lock.hold(key):
        log.append(f"{name}+")
        await (until.wait() if until else asyncio.sleep(0))
        log.append(f"{name}-")


async def test_calls_for_one_key_run_in_order_of_arrival():
    lock, log = KeyedLock(), []
    await asyncio.gather(*(take(lock, "a", str(k), log) for k in range(4)))
    assert log == ["0+", "0-", "1+", "1-", "2+", "2-", "3+", "3-"]


async def test_calls_for_other_keys_do_not_wait():
    lock, log, release = KeyedLock(), [], asyncio.Event()
    held = asyncio.create_task(take(lock, "a", "a", log, release))
    await asyncio.sleep(0)
    await asyncio.wait_for(take(lock, "b", "b", log), 30)
    assert log == ["a+", "b+", "b-"]
    release.set()
    await held


async def test_a_cancelled_call_lets_the_next_one_run():
    lock, log, release = KeyedLock(), [], asyncio.Event()
    held = asyncio.create_task(take(lock, "a", "1", log, release))
    cancelled = asyncio.create_task(take(lock, "a", "2", log))
    kept = asyncio.create_task(take(lock, "a", "3", log))
    await asyncio.sleep(0)
    cancelled.cancel()
    release.set()
    await asyncio.gather(held, kept)
    assert log == ["1+", "1-", "3+", "3-"]


async def test_a_key_is_kept_while_it_is_held_or_waited_for():
    lock, log = KeyedLock(), []
    for _ in range(3):  # in each round the second call waits when the first one ends
        await asyncio.gather(*(take(lock, key, key, log) for key in "aabbb"))
        assert len(lock) == 0
    running = most = 0

    async def count() -> None:
        nonlocal running, most
        async with lock.hold("a"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    async def late(steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        await count()

    await asyncio.gather(*(late(steps) for steps in range(20)))
    assert most == 1 and len(lock) == 0


async def test_an_error_releases_the_lock():
    lock = KeyedLock()
    with pytest.raises(ValueError, match="broken"):
        async with lock.hold("a"):
            raise ValueError("broken")
    assert len(lock) == 0
