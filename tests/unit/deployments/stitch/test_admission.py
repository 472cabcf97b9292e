"""Admission by measured capacity, simulated in virtual time: pipeline and batcher with a device of a given speed."""

import asyncio
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest

from deployments.batching import FrameBatcher
from deployments.common.stage import StageTiming, Stamped
from deployments.stitch.admission import Admission, AdmissionLimits
from deployments.stitch.chunks import PipelineRequest, PipelineSettings
from deployments.stitch.pipeline import Pipeline
from models.errors import BusyError
from models.types import FaceCrops, Speech
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

FPS, RATE, AHEAD_S, LEAD_S = 25, 100, 4.0, 0.8


@pytest.fixture(autouse=True)
async def quick(monkeypatch, virtual_time):
    """No sound is analysed, and the batcher's clock is virtual."""
    monkeypatch.setattr("deployments.stitch.pipeline.ActivityDetector", lambda: lambda speech: None)
    monkeypatch.setattr("deployments.batching.time.perf_counter", asyncio.get_running_loop().time)


class Response:
    def __init__(self, work) -> None:
        self.task = asyncio.ensure_future(work)

    def __await__(self):
        return self.task.__await__()

    def cancel(self) -> None:
        self.task.cancel()


class Method:
    def __init__(self, function) -> None:
        self.function = function

    def remote(self, *given):
        return Response(self.function(*given))


class Server:
    """A replica of Stitch whose stages make `frames_s` frames per second in all."""

    def __init__(self, frames_s: float, **limits) -> None:
        self.frames_s = frames_s
        self.admission = Admission(AdmissionLimits(**limits))
        self.batcher = FrameBatcher(self._compute, self._run, batch_size=8, wait_s=0.0)
        self.windows, self.generate = Method(self._windows), Method(self._generate)
        self._device = asyncio.Lock()

    async def _run(self, function) -> None:
        async with self._device:
            self._batch = 0
            function()
            await asyncio.sleep(self._batch / self.frames_s)

    def _compute(self, items: list[str]) -> list[str]:
        self._batch = len(items)
        return items

    async def _windows(self, speech, fps, active):
        now_s = time.time()
        return Stamped(None, (StageTiming("AudioFeatures", 0, now_s, now_s, 0.0, 0.0, 0.0),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, urgency, session_id, version):
        now_s = time.time()
        done = await self.batcher.submit([session_id] * count, urgency, session_id)
        timing = StageTiming("LipSync", count, now_s, time.time(), 0.0, done.compute_s, done.busy_s)
        return Stamped(FaceCrops(np.zeros((count, 1, 1, 3), np.uint8), first_frame, avatar_id), (timing,))

    async def speak(self, session_id: str, seconds: float, live: bool = True) -> "Shown":
        """One utterance. Viewers see its frames from LEAD_S on, at the pace of the clock, or later if they are late."""
        with self.admission.admit(session_id, FPS if live else None) as making:
            shown = Shown()

            def slack_s(position: int) -> float:
                return shown.start_s + position / FPS - time.monotonic()

            speech = Speech(np.zeros(round(seconds * RATE), np.float32), RATE, last=True)
            request = PipelineRequest(
                "a", lambda first, frames: first, session_id, speech=(speech,), slack_s=slack_s if live else None
            )
            pipeline = Pipeline(self, self, self, None, PipelineSettings(FPS), making=making)
            async for chunk in pipeline.run(request):
                making.rendered(len(chunk.crops))
                shown.add(len(chunk.crops))
                ahead_s = shown.start_s + shown.frames / FPS - time.monotonic()
                if live and ahead_s > AHEAD_S:
                    await asyncio.sleep(ahead_s - AHEAD_S)
            if live:
                await asyncio.sleep(shown.start_s + shown.frames / FPS - time.monotonic())
            return shown


@dataclass
class Shown:
    """What a viewer saw: the start, which moves when frames are late, and by how much it moved in all."""

    start_s: float = field(default_factory=lambda: time.monotonic() + LEAD_S)
    frames: int = 0
    late_s: float = 0.0

    def add(self, frames: int) -> None:
        late_s = max(0.0, time.monotonic() - (self.start_s + self.frames / FPS))
        self.start_s, self.late_s, self.frames = self.start_s + late_s, self.late_s + late_s, self.frames + frames


async def crowd(server: Server, clients: int, minutes: float, every_s: float, said_s: float = 20.0):
    """Clients that speak for `said_s` whenever they may, and try again `every_s` after a refusal.

    Returns what viewers saw, and the number of accepted sessions every half second.
    """
    shown, speaking, end_s = [], [], time.monotonic() + 60 * minutes

    async def client(number: int) -> None:
        await asyncio.sleep(number * 0.13)
        while time.monotonic() < end_s:
            try:
                shown.append((time.monotonic(), await server.speak(f"s{number}", said_s)))
            except BusyError:
                await asyncio.sleep(every_s)

    async def watch() -> None:
        while time.monotonic() < end_s:
            speaking.append(len(server.admission.live_sessions()))
            await asyncio.sleep(0.5)

    await asyncio.gather(watch(), *(client(number) for number in range(clients)))
    return shown, speaking


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
        r"Try again in a few seconds\.",
        str(refused[0]),
    )


async def test_admission_follows_a_capacity_that_changes():
    server = Server(260)
    run = asyncio.create_task(crowd(server, clients=20, minutes=4, every_s=2.0))
    await asyncio.sleep(60)
    server.frames_s = 130  # another program takes half of the device
    await asyncio.sleep(90)
    server.frames_s = 260
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
