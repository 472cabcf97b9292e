"""KeyedLock: one at a time for each key, in order of arrival; a key that nobody wants is forgotten, and no sooner."""

import asyncio

import pytest

from deployments.common.keyed_lock import KeyedLock


async def take(turns: KeyedLock, key: str, name: str, log: list[str], hold: asyncio.Event | None = None) -> None:
    async with turns.hold(key):
        log.append(f"{name}+")
        await (hold.wait() if hold else asyncio.sleep(0))
        log.append(f"{name}-")


async def test_calls_of_one_key_pass_in_the_order_of_their_arrival():
    turns, log = KeyedLock(), []
    await asyncio.gather(*(take(turns, "a", str(k), log) for k in range(4)))
    assert log == ["0+", "0-", "1+", "1-", "2+", "2-", "3+", "3-"]


async def test_other_keys_do_not_wait():
    turns, log, hold = KeyedLock(), [], asyncio.Event()
    held = asyncio.create_task(take(turns, "a", "a", log, hold))
    await asyncio.sleep(0)
    await asyncio.wait_for(take(turns, "b", "b", log), 1.0)
    assert log == ["a+", "b+", "b-"]
    hold.set()
    await held


async def test_a_caller_that_gives_up_lets_the_next_pass():
    turns, log, hold = KeyedLock(), [], asyncio.Event()
    held = asyncio.create_task(take(turns, "a", "1", log, hold))
    gone = asyncio.create_task(take(turns, "a", "2", log))
    kept = asyncio.create_task(take(turns, "a", "3", log))
    await asyncio.sleep(0)
    gone.cancel()
    hold.set()
    await asyncio.gather(held, kept)
    assert log == ["1+", "1-", "3+", "3-"]


async def test_a_key_lives_as_long_as_somebody_holds_it_or_waits_for_it():
    turns, log = KeyedLock(), []
    for _ in range(3):  # in each round the second waits at the moment in which the first lets go
        await asyncio.gather(*(take(turns, key, key, log) for key in "aabbb"))
        assert len(turns) == 0
    running = most = 0

    async def count() -> None:
        nonlocal running, most
        async with turns.hold("a"):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    async def late(steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)
        await count()

    await asyncio.gather(*(late(steps) for steps in range(20)))
    assert most == 1 and len(turns) == 0


async def test_an_error_gives_the_turn_back():
    turns = KeyedLock()
    with pytest.raises(ValueError, match="broken"):
        async with turns.hold("a"):
            raise ValueError("broken")
    assert len(turns) == 0
