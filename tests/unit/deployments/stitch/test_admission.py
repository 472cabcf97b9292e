"""Admission by measured capacity, simulated in virtual time with devices of a given speed."""

import asyncio
import pickle
import re
import time
from contextlib import ExitStack

import numpy as np
import pytest

from deployments.stitch.admission import Admission, AdmissionLimits
from models.errors import BusyError
from tests.support.simulated_stitch import Server, Shown, crowd, simulated
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "simulated", "virtual_time"]


@pytest.mark.parametrize(("frames_s", "sessions"), [(40, 1), (60, 2), (130, 4), (260, 9)])
async def test_as_many_sessions_are_accepted_as_keep_their_pace(frames_s, sessions):
    """90 % of the device's frames, in sessions of 25 frames per second, and never more or fewer."""
    server = Server(frames_s)
    began_s = time.monotonic()
    shown, speaking = await crowd(server, clients=3 * sessions, minutes=2, every_s=2.0)
    later = speaking[120:-10]
    assert max(later) == sessions and np.mean(later) > sessions - 0.2
    assert max(seen.late_s for begin_s, seen in shown if begin_s > began_s + 40) < 0.05


async def test_a_burst_of_clients_is_cut_where_the_capacity_ends():
    server = Server(260)
    await crowd(server, clients=4, minutes=0.5, every_s=1.0)  # which measures it
    results = await asyncio.gather(*(server.speak(f"s{k}", 10.0) for k in range(50)), return_exceptions=True)
    accepted = [seen for seen in results if isinstance(seen, Shown)]
    refused = [error for error in results if isinstance(error, BusyError)]
    assert (len(accepted), len(refused)) == (9, 41)
    assert max(seen.late_s for seen in accepted) < 0.05
    assert re.fullmatch(
        r"The server is overloaded: it makes 2[56]\d frames per second, and with this session 250 would be needed\. "
        r"Try again in \d+ s\.",
        str(refused[0]),
    )


async def test_refused_callers_come_back_in_turn_and_are_accepted():
    server = Server(70)  # two sessions
    for _ in range(3):  # which shows how long an utterance takes
        await asyncio.gather(server.speak("a", 10.0), server.speak("b", 10.0))
    first = asyncio.create_task(server.speak("a", 10.0))
    await asyncio.sleep(4)
    second = asyncio.create_task(server.speak("b", 10.0))
    await asyncio.sleep(2)
    waits_s = []
    for k in range(4):
        with pytest.raises(BusyError) as refused:
            await server.speak(f"late{k}", 10.0)
        waits_s.append(pickle.loads(pickle.dumps(refused.value)).retry_after_s)  # as it passes between processes
    usual_s = waits_s[2] - waits_s[0]
    assert waits_s[1] - waits_s[0] == pytest.approx(4.0, abs=0.1)  # the second utterance ends that much later
    assert waits_s[3] - waits_s[1] == pytest.approx(usual_s)
    ended_s = []
    for task in (first, second):
        task.add_done_callback(lambda _: ended_s.append(time.monotonic()))
    now_s = time.monotonic()
    await asyncio.gather(first, second)
    assert [at_s - now_s for at_s in ended_s] == pytest.approx(waits_s[:2], abs=0.5)
    assert 10 < usual_s < 11.5
    tasks = [asyncio.create_task(server.speak(name, 10.0)) for name in "ab"]
    await asyncio.sleep(1)
    with pytest.raises(BusyError) as refused:
        await server.speak("later", 10.0)
    assert refused.value.retry_after_s == pytest.approx(usual_s - 1, abs=0.5)  # without those who never came back
    await asyncio.gather(*tasks)


async def test_admission_follows_a_capacity_that_changes():
    server = Server(260)
    run = asyncio.create_task(crowd(server, clients=13, minutes=4, every_s=2.0))
    await asyncio.sleep(60)
    server.lipsync.frames_s = 130  # another program takes half of the device
    await asyncio.sleep(90)
    server.lipsync.frames_s = 260
    _, speaking = await run
    assert max(speaking[200:300]) <= 4  # from 40 s after the change on
    assert min(speaking[400:-10]) >= 8  # the larger capacity has been found 50 s after it came
    steps = np.abs(np.diff(speaking[400:-10])).sum()
    assert steps <= 4, "sessions come and go"


async def test_on_a_machine_slower_than_real_time_one_session_speaks():
    server = Server(15)
    first = asyncio.create_task(server.speak("a", 4.0))
    await asyncio.sleep(5)
    with pytest.raises(BusyError, match=r"overloaded: it makes 1\d frames per second, and with this session 50 would"):
        await server.speak("b", 4.0)
    again = asyncio.create_task(server.speak("a", 1.0))  # the same session needs no more than before
    assert (await first).frames == 100 and (await again).frames == 25
    assert (await server.speak("b", 1.0)).frames == 25


async def test_files_wait_for_live_sessions_and_are_never_refused():
    server = Server(130, max_waiting=10)
    await server.speak("first", 10.0)
    began_s = time.monotonic()
    files = [asyncio.create_task(server.speak(f"file{k}", 40.0, live=False)) for k in range(6)]
    shown, speaking = await crowd(server, clients=12, minutes=1, every_s=1.0)
    assert max(seen.late_s for _, seen in shown) < 0.2
    assert max(speaking) == 4
    assert {(await file).frames for file in files} == {1000}
    assert time.monotonic() - began_s < 180  # 6000 frames beside at most 100 per second of live speech


async def test_a_file_gives_way_to_first_frames_and_to_live_speech_in_a_hurry_but_advances():
    admission = Admission()
    with admission.admit("file", None) as file, admission.admit("new", None) as new, admission.admit("on", 25) as live:
        file.start()
        file.rendered(4)

        async def waited_s() -> float:
            begin_s = time.monotonic()
            await file.give_way()
            return round(time.monotonic() - begin_s, 2)

        assert await waited_s() == 0.0  # nobody else has begun
        new.start()
        assert await waited_s() == 1.0  # the limit per chunk
        asyncio.get_running_loop().call_later(0.3, new.rendered, 4)
        assert await waited_s() == 0.3
        live.start()
        live.rendered(4)
        with live.working():
            assert await waited_s() == 0.0
            live.slack_s = 0.5
            assert await waited_s() == 1.0
        assert await waited_s() == 0.0  # it waits for viewers, or for its text
    with admission.admit("file", None) as file, admission.admit("silent", None) as silent:
        silent.start()  # an utterance whose text does not come
        await asyncio.sleep(4)
        begin_s = time.monotonic()
        await file.give_way()
        assert time.monotonic() == begin_s


async def test_questions_of_other_sessions_do_not_disturb_the_measurement_of_one_that_begins():
    """Its first window begins with its first frame, and until then it is urgent, however many are refused meanwhile."""
    admission = Admission(AdmissionLimits(assumed_live=1))
    with admission.admit("a", 25) as making:
        making.start()
        making.slack_s = 0.2
        with making.working():
            for _ in range(10):
                await asyncio.sleep(0.2)
                with pytest.raises(BusyError), admission.admit("b", 25):
                    pass
            assert making.urgent and admission.capacity is None
            for _ in range(6):  # 40 frames per second from now on
                making.made(20)
                making.rendered(20)
                await asyncio.sleep(0.5)
        assert making.rate >= 40 and admission._behind_s < 0  # it was never behind


async def test_one_late_session_does_not_hide_those_that_have_just_begun():
    admission = Admission()
    with ExitStack() as stack:
        late, *new = (stack.enter_context(admission.admit(name, 25, force=True)) for name in "abcd")
        stack.enter_context(admission.admit("a", 25))  # waits for its turn
        for making in (late, *new):
            making.start()
        late.slack_s = 0.0
        with late.working():
            late.rendered(4)
            await asyncio.sleep(2.0)
            late.rendered(20)
        assert admission.capacity == pytest.approx(10 + 3 * 25)


async def test_utterances_wait_within_the_bounds_of_the_queues():
    admission = Admission(AdmissionLimits(max_utterances=1, max_waiting=1, max_waiting_session=2))
    with admission.admit("a", None), admission.admit("b", None):
        with pytest.raises(BusyError, match="its queue is full"), admission.admit("c", None):
            pass
        with admission.admit("live", 25):  # files that wait do not keep out live speech
            pass
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(admission.admit("live", 25))
        with pytest.raises(BusyError, match="its queue is full"), admission.admit("live", 25):
            pass
        with admission.admit("live", 25, force=True):  # it was accepted by another replica
            pass
    assert admission.live_sessions() == {}
