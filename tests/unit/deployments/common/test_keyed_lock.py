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


async def test_a_call_that_arrives_while_a_waiting_one_runs_waits_for_it():
    lock, log, ends = KeyedLock(), [], [asyncio.Event() for _ in range(2)]
    calls = [asyncio.create_task(take(lock, "a", str(k), log, end)) for k, end in enumerate(ends)]
    await asyncio.sleep(0)
    ends[0].set()
    await calls[0]
    for _ in range(3):
        await asyncio.sleep(0)  # the second call, which waited, holds the lock now
    calls.append(asyncio.create_task(take(lock, "a", "2", log)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert log == ["0+", "0-", "1+"]
    ends[1].set()
    await asyncio.gather(*calls)
    assert log == ["0+", "0-", "1+", "1-", "2+", "2-"]


async def test_a_key_without_calls_is_dropped():
    lock, log = KeyedLock(), []
    for _ in range(3):
        await asyncio.gather(*(take(lock, key, key, log) for key in "aabbb"))
        assert len(lock) == 0


async def test_an_error_releases_the_lock():
    lock = KeyedLock()
    with pytest.raises(ValueError, match="broken"):
        async with lock.hold("a"):
            raise ValueError("broken")
    assert len(lock) == 0


async def test_its_keys_are_those_held_or_waited_for():
    lock, release = KeyedLock(), asyncio.Event()
    calls = [asyncio.create_task(take(lock, key, key, [], release)) for key in ("a", "a", "b")]
    await asyncio.sleep(0)
    assert sorted(lock.keys()) == ["a", "b"]
    release.set()
    await asyncio.gather(*calls)
    assert lock.keys() == []
