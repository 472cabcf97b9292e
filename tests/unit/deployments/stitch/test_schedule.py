"""Who is made first: sessions beside jobs that are slower than real time, simulated with devices of a given speed."""

import asyncio

import pytest

from deployments.stitch.chunks import PipelineSettings
from tests.support.simulated_stitch import FPS, Device, Server, simulated
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "simulated", "virtual_time"]

LIPSYNC, ENHANCE = 60, 20  # frames per second: enhanced speech is slower than real time
BATCH_S = 8 / LIPSYNC + 8 / ENHANCE  # one batch of each


@pytest.mark.parametrize("jobs", [1, 3])
async def test_the_first_frame_of_a_new_session_waits_for_one_batch_however_many_jobs_run(jobs):
    server = Server(LIPSYNC, ENHANCE)
    assert (await server.speak("idle", 1.0, live=False)).first_s <= BATCH_S
    running = [asyncio.create_task(server.speak(f"job-{k}", 120.0, live=False)) for k in range(jobs)]
    waits_s = []
    for number in range(8):
        await asyncio.sleep(5.0)
        waits_s.append((await server.speak(f"new-{number}", 1.0, live=False)).first_s)
    assert sorted(waits_s)[-2] <= 2 * BATCH_S, waits_s  # those that run, and its own
    assert max(waits_s) <= 3 * BATCH_S, waits_s  # where it meets the batch for what has waited longest
    frames = [(await job).frames for job in running]
    assert frames == [3000] * jobs


async def test_sixteen_streams_at_nine_tenths_of_the_capacity_hardly_stall():
    """Nobody watches them live; each client plays its stream from the first fragment on."""
    server = Server(440)
    server.lipsync = Device(440, batch_size=16)
    server.settings = PipelineSettings(FPS, chunk_frames=16, window_chunks=4)
    shown = await asyncio.gather(*(server.speak(f"s{k}", 20.0, live=False) for k in range(16)))
    assert max(seen.stall_s for seen in shown) < 0.4, [round(seen.stall_s, 2) for seen in shown]


async def test_jobs_of_the_same_length_that_are_too_slow_advance_alike():
    server, ended = Server(LIPSYNC, ENHANCE), {}

    async def job(name: str) -> None:
        await server.speak(name, 40.0, live=False)
        ended[name] = asyncio.get_running_loop().time()

    await asyncio.gather(*(job(f"job-{k}") for k in range(4)))
    assert max(ended.values()) - min(ended.values()) < 0.25 * max(ended.values())


async def test_a_live_session_keeps_its_pace_beside_jobs_that_are_too_slow():
    server = Server(LIPSYNC, 40)
    jobs = [asyncio.create_task(server.speak(f"job-{k}", 120.0, live=False)) for k in range(3)]
    await asyncio.sleep(20.0)
    shown = await server.speak("live", 30.0)
    assert shown.late_s == 0 and shown.reduced_frames == 0
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
