"""What a replica reports as its load."""

import asyncio
from types import SimpleNamespace

import pytest

from deployments.stitch.ownership.load import RenderLoad
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def renderer(made: int, placed: int):
    return SimpleNamespace(writer=SimpleNamespace(frames=made), pending_frames=placed - made)


async def test_the_busy_share_follows_the_work_of_all_threads():
    load = RenderLoad(threads=2)
    shares = []
    for _ in range(12):
        load.add(1.0)
        await asyncio.sleep(1.0)
        shares.append(load.busy())
    assert shares == sorted(shares) and shares[-1] == pytest.approx(0.5, abs=1e-3)
    for _ in range(12):
        await asyncio.sleep(1.0)
        load.busy()
    assert load.busy() < 1e-3


async def test_a_question_soon_after_another_gets_the_same_answer():
    load = RenderLoad()
    load.add(0.5)
    await asyncio.sleep(1.0)
    assert load.busy() == load.busy() == pytest.approx(0.25, abs=1e-3)  # half of the latest interval


async def test_the_backlog_is_the_time_to_render_what_has_been_synthesised():
    load = RenderLoad(threads=2)
    for _ in range(60):
        load.add(0.08, frames=8)  # 10 ms a frame
    assert load.backlog_s() == 0
    with load.rendering(renderer(made=100, placed=300)), load.rendering(renderer(made=0, placed=0)):
        assert load.backlog_s() == pytest.approx(200 * 0.01 / 2, rel=1e-3) and load.begun() == 1
    assert load.backlog_s() == load.begun() == 0
