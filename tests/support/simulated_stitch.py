"""Stitch's pipeline, admission and batchers with devices of a given speed, in virtual time. Nothing is rendered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from deployments.batching import FrameBatcher
from deployments.common.stage import StageTiming, Stamped
from deployments.stitch.admission import Admission, AdmissionLimits
from deployments.stitch.chunks import PipelineRequest, PipelineSettings
from deployments.stitch.enhance_fade import EnhanceFades
from deployments.stitch.pipeline import Pipeline
from models.errors import BusyError
from models.types import FaceCrops, Speech

FPS, RATE, AHEAD_S, LEAD_S = 25, 100, 4.0, 0.8


@pytest.fixture(autouse=True)
async def simulated(monkeypatch, virtual_time):
    """No sound is analysed, and the batcher's clock is virtual."""
    monkeypatch.setattr("deployments.stitch.pipeline.ActivityDetector", lambda: lambda speech: None)
    monkeypatch.setattr("deployments.stitch.pipeline.enlarged", lambda image: image)
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


class _Batcher(FrameBatcher):
    """Its results are there when the device has computed them."""

    def __init__(self, device: Device, *given, **options) -> None:
        super().__init__(*given, **options)
        self._device = device

    def _hand_out(self, batch) -> None:
        after_s = sum(count for _, count in batch.parts) / self._device.frames_s
        self._loop.call_later(after_s, super()._hand_out, batch)


class Device:
    """A compute thread with its batcher."""

    def __init__(self, frames_s: float, batch_size: int = 8) -> None:
        self.frames_s, self._batch, self._free = frames_s, 0, asyncio.Lock()
        self.batcher = _Batcher(self, self._compute, self._run, batch_size, wait_s=0.0)

    async def _run(self, function) -> None:
        async with self._free:
            self._batch = 0
            function()
            await asyncio.sleep(self._batch / self.frames_s)

    def _compute(self, items: list[str]) -> list[str]:
        self._batch = len(items)
        return items

    async def make(self, stage: str, frames: int, urgency, session_id: str) -> StageTiming:
        now_s = time.time()
        done = await self.batcher.submit([session_id] * frames, urgency, session_id)
        return StageTiming(stage, frames, now_s, time.time(), done.queue_s, done.compute_s, done.busy_s)


class Server:
    """A replica of Stitch whose LipSync makes `frames_s` frames per second, and Enhance `enhanced_s`."""

    def __init__(self, frames_s: float, enhanced_s: float | None = None, **limits) -> None:
        self.lipsync = Device(frames_s)
        self.enhance = None if enhanced_s is None else Device(enhanced_s)
        self.started = asyncio.Event()  # Enhance has a replica
        self.started.set()
        self.admission, self.fades = Admission(AdmissionLimits(**limits)), EnhanceFades(self.started.wait)
        self.windows, self.generate = Method(self._windows), Method(self._generate)
        self.restore = Method(self._restore)
        self.settings = PipelineSettings(FPS)

    async def _windows(self, speech, fps, active):
        now_s = time.time()
        return Stamped(None, (StageTiming("AudioFeatures", 0, now_s, now_s, 0.0, 0.0, 0.0),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, urgency, session_id, version):
        timing = await self.lipsync.make("LipSync", count, urgency, session_id)
        return Stamped(FaceCrops(np.zeros((count, 1, 1, 3), np.uint8), first_frame, avatar_id), (timing,))

    async def _restore(self, crops, strength, urgency, session_id, shares):
        await self.started.wait()  # Serve keeps a call until there is a replica
        given = await crops
        timing = await self.enhance.make("Enhance", len(given.value), urgency, session_id)
        shares = np.ones(len(given.value)) if shares is None else shares
        images = np.rint(255 * shares).astype(np.uint8)[:, None, None, None] + np.zeros((1, 1, 1, 3), np.uint8)
        return Stamped(FaceCrops(images, given.value.first_frame, "a"), (*given.timings, timing))

    async def speak(self, session_id: str, seconds: float, live: bool = True, enhance: bool = True) -> Shown:
        """One utterance, enhanced where there is a device for it.

        Viewers see its frames from LEAD_S on, at the pace of the clock, or later if they are late.
        """
        with self.admission.admit(session_id, FPS if live else None) as making:
            shown = Shown()

            def slack_s(position: int) -> float:
                return shown.start_s + position / FPS - time.monotonic()

            speech = Speech(np.zeros(round(seconds * RATE), np.float32), RATE, last=True)
            request = PipelineRequest(
                "a",
                lambda segment: segment.first_frame,
                session_id,
                speech=(speech,),
                enhance=enhance and self.enhance is not None,
                slack_s=slack_s if live else None,
                fade=self.fades.begin(session_id, AHEAD_S) if live and enhance else None,
            )
            enhance = None if self.enhance is None else self
            pipeline = Pipeline(self, self, self, enhance, self.settings, making=making)
            async for chunk in pipeline.run(request):
                making.rendered(len(chunk.crops))
                shown.add(len(chunk.crops))
                shown.shares += (chunk.crops.images[:, 0, 0, 0] / 255).tolist()
                ahead_s = shown.start_s + shown.frames / FPS - time.monotonic()
                if live and ahead_s > AHEAD_S:
                    await asyncio.sleep(ahead_s - AHEAD_S)
            if live:
                await asyncio.sleep(shown.start_s + shown.frames / FPS - time.monotonic())
            shown.reduced_frames = making.reduced_frames
            return shown


@dataclass
class Shown:
    """What a viewer saw: the start, which moves when frames are late, and by how much it moved in all."""

    start_s: float = field(default_factory=lambda: time.monotonic() + LEAD_S)
    frames: int = 0
    late_s: float = 0.0
    shares: list[float] = field(default_factory=list)  # of the enhancement, per frame
    reduced_frames: int = 0
    asked_s: float = field(default_factory=lambda: time.monotonic())
    first_s: float = 0.0  # from the request to the first frames
    stall_s: float = 0.0  # the longest of a player that starts with the first frames

    def add(self, frames: int) -> None:
        self.first_s = self.first_s or time.monotonic() - self.asked_s
        self.stall_s = max(self.stall_s, time.monotonic() - (self.asked_s + self.first_s + self.frames / FPS))
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
