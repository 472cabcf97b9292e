"""Enhancement of live speech that cannot keep up, simulated in virtual time with devices of a given speed."""

import asyncio
import contextvars

import numpy as np
import pytest

from deployments.stitch.enhance_fade import Contact, EnhanceFades
from tests.support.simulated_stitch import FPS, Server, simulated
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "simulated", "virtual_time"]


async def test_enhancement_that_keeps_up_stays_complete():
    shown = await Server(60, enhanced_s=40).speak("a", 60.0)
    assert set(shown.shares) == {1.0} and shown.reduced_frames == 0 and shown.late_s == 0


async def test_enhancement_that_cannot_keep_up_fades_out_before_speech_is_late():
    """Enhance makes 18 of 25 frames per second. Without it there is time to spare."""
    shown = await Server(60, enhanced_s=18).speak("a", 120.0)
    shares = np.array(shown.shares)
    assert shown.late_s < 1.2  # at the start only, before it is known
    assert shown.reduced_frames == (shares < 0.999).sum() and len(shares) == 120 * FPS
    assert 0.1 < (shares > 0.999).mean() < 0.7 and (shares == 0).mean() > 0.2


async def test_the_strength_never_jumps_not_even_where_an_utterance_begins():
    server = Server(60, enhanced_s=18)
    shares = np.concatenate([(await server.speak("a", 15.0)).shares for _ in range(6)])
    assert shares.min() == 0 and (shares > 0.999).any()
    assert np.abs(np.diff(shares)).max() <= 1 / FPS + 1 / 255


async def test_enhancement_returns_when_there_is_capacity_again():
    server = Server(60, enhanced_s=15)
    speaking = asyncio.create_task(server.speak("a", 150.0))
    await asyncio.sleep(40)
    server.enhance.frames_s = 50
    shares = (await speaking).shares
    assert min(shares[: 40 * FPS]) == 0 and set(shares[-50 * FPS :]) == {1.0}


async def test_it_is_tried_less_often_the_longer_it_does_not_keep_up():
    shares = np.array((await Server(60, enhanced_s=15).speak("a", 250.0)).shares)
    starts = np.flatnonzero((shares[:-1] == 0) & (shares[1:] > 0))
    gaps_s = np.diff(starts) / FPS
    assert gaps_s[0] < 20 and gaps_s[-1] > 45 and (np.diff(gaps_s) >= 0).all()


async def test_files_wait_for_full_enhancement():
    server = Server(60, enhanced_s=15)
    file = await server.speak("file", 20.0, live=False)
    assert set(file.shares) == {1.0} and file.reduced_frames == 0


async def test_beside_a_file_a_live_session_keeps_its_enhancement():
    server = Server(100, enhanced_s=40)
    file = asyncio.create_task(server.speak("file", 60.0, live=False))
    shown = await server.speak("live", 30.0)
    assert set(shown.shares) == {1.0} and shown.late_s == 0
    assert set((await file).shares) == {1.0}


async def test_where_enhance_is_scaled_to_zero_live_speech_begins_without_it_and_gains_it():
    server = Server(60, enhanced_s=40)
    server.started.clear()
    asyncio.get_running_loop().call_later(10, server.started.set)
    shown, plain = await asyncio.gather(server.speak("a", 30.0), server.speak("b", 30.0, enhance=False))
    shares = np.array(shown.shares)
    assert shown.late_s == plain.late_s == 0
    assert (shares[: 8 * FPS] == 0).all() and (shares[20 * FPS :] == 1).all()
    assert np.abs(np.diff(shares)).max() <= 1 / FPS + 1 / 255
    assert set(plain.shares) == {0.0}


async def test_a_file_waits_until_enhance_has_started():
    server = Server(60, enhanced_s=40)
    server.started.clear()
    asyncio.get_running_loop().call_later(10, server.started.set)
    assert set((await server.speak("file", 5.0, live=False)).shares) == {1.0}


async def test_enhance_is_asked_once_while_it_is_in_use_and_again_when_it_was_not():
    asked = []

    async def ask() -> None:
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            raise RuntimeError("its engine cannot be loaded")

    server = Server(200, enhanced_s=100)
    server.fades = EnhanceFades(ask)
    shares = (await server.speak("a", 20.0)).shares
    assert asked == pytest.approx([0, 5]) and shares[0] == 0 and shares[-1] == 1
    await asyncio.gather(server.speak("a", 5.0), server.speak("b", 5.0))
    assert len(asked) == 2  # Enhance answered less than ten seconds before
    await asyncio.sleep(60)
    await server.speak("a", 5.0)
    assert len(asked) == 3


async def test_a_cancelled_request_does_not_end_the_question_whether_enhance_answers():
    request = contextvars.ContextVar("request", default="none")
    requests = []

    async def ask() -> None:
        requests.append(request.get())
        if len(requests) == 1:
            raise asyncio.CancelledError

    contact = Contact(ask)
    request.set("one")
    for _ in range(2):
        contact.check()
        assert not contact.answers
        await asyncio.sleep(1)
        assert contact.answers
    contact.check()
    assert requests == ["none", "none"] and contact.answers  # the second one was answered a second ago


async def test_enhancement_that_faded_out_asks_before_it_returns_since_enhance_may_be_scaled_to_zero():
    server = Server(60, enhanced_s=18)
    speaking = asyncio.create_task(server.speak("a", 200.0))
    unused_s = made = 0
    while unused_s < 12:
        await asyncio.sleep(1)
        unused_s = 0 if server.enhance.batcher.batched_items > made else unused_s + 1
        made = server.enhance.batcher.batched_items
    server.enhance.frames_s = 50
    server.started.clear()
    await asyncio.sleep(60)
    server.started.set()
    shown = await speaking
    assert shown.late_s < 1.2 and shown.shares[-1] == 1
