"""Calls of one stage with a chosen number of frames, through Serve or on the stage in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import numpy as np

from deployments.common.messages import DEFAULT_SESSION
from deployments.common.stage import Stamped
from models.types import CROP_PX, FaceCrops, FeatureWindows, Speech
from warmtalk.cli.profile.statistics import Measure

APP = "warmtalk"
FPS = 25
DRIVE_S, LEAST_CALLS = 1.2, 5  # per number of frames
SENTENCE = "Every stage reports how long it waited, how long it computed, and how long its data travelled."
DRIVEN = ("TTS", "AudioFeatures", "LipSync", "Enhance")  # Stitch drives the others, so it is measured in the graph
FREE_SIZES = ("AudioFeatures", "LipSync", "Enhance")  # a call of TTS is a sentence


class Target(Protocol):
    """A stage that can be called."""

    async def ask(self, method: str, *arguments: Any) -> Any: ...

    def stream(self, method: str, *arguments: Any) -> AsyncIterator[Any]: ...


class InGraph:
    """A stage of the running graph, called through Serve."""

    def __init__(self, stage: str) -> None:
        self._handle = handle(stage)

    async def ask(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._handle, method).remote(*arguments)

    def stream(self, method: str, *arguments: Any) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = getattr(self._handle.options(stream=True), method).remote(*arguments)
        return stream


class InProcess:
    """A stage in this process, without Ray."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage

    async def ask(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._stage, method)(*arguments)

    def stream(self, method: str, *arguments: Any) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = getattr(self._stage, method)(*arguments)
        return stream


def handle(stage: str) -> Any:
    """Serve's handle of a stage of the running graph."""
    from ray import serve

    return serve.get_deployment_handle(stage, APP)


def noise(frames: int) -> Speech:
    """As loud as speech, so that it is not taken for silence; 640 samples per frame at 16 kHz."""
    samples = np.random.default_rng(0).normal(0, 0.05, frames * 640).astype(np.float32)
    return Speech(samples, 16_000)


async def call(stage: str, target: Target, frames: int, avatar_id: str) -> int:
    """One call with `frames` frames, where the stage takes frames. Returns how many frames of video it is worth."""
    if stage == "TTS":
        spoken_s = 0.0
        async for item in target.stream("speak", SENTENCE):
            spoken_s += item.value.duration_s
        return round(spoken_s * FPS)
    if stage == "AudioFeatures":
        await target.ask("windows", noise(frames), FPS)
    elif stage == "LipSync":
        windows = FeatureWindows(np.zeros((frames, 50, 384), np.float16), FPS)
        await target.ask("generate", Stamped(windows, ()), 0, frames, avatar_id, 0, 0)
    else:
        images = np.zeros((frames, CROP_PX, CROP_PX, 3), np.uint8)
        crops = FaceCrops(images, 0, avatar_id, np.zeros(frames, np.int64))
        await target.ask("restore", Stamped(crops, ()))
    return frames


async def drive(
    stage: str,
    target: Target,
    sizes: Sequence[int],
    avatar_id: str,
    full_batch: int,
    step: Callable[[str], None] = lambda name: None,
) -> dict[str, Measure]:
    """Frames per second by frames per call. A full batch cannot grow, so two such calls overlap, as under load."""
    speeds = {}
    for size in sizes if stage in FREE_SIZES else (0,):
        step(f"{stage}: {size or 'a sentence'} per call")
        in_flight = 2 if size >= full_batch else 1
        made = await call(stage, target, size, avatar_id)  # warm up
        rates: list[float] = []
        end_s = time.perf_counter() + DRIVE_S
        while len(rates) < LEAST_CALLS or time.perf_counter() < end_s:
            begin_s = time.perf_counter()
            frames = await asyncio.gather(*(call(stage, target, size, avatar_id) for _ in range(in_flight)))
            rates.append(sum(frames) / (time.perf_counter() - begin_s))
        speeds[str(size or made)] = Measure.of(rates)
    return speeds


__all__ = ["APP", "DEFAULT_SESSION", "DRIVEN", "FPS", "InGraph", "InProcess", "Target", "drive", "handle"]
