"""Stitch with fake stages, watched through the ingress's hubs, in one process without Ray."""

import asyncio
import io
import time

import av
import numpy as np
import pytest

from deployments.common.stage import StageTiming, Stamped
from deployments.ingress.live import hub
from deployments.ingress.live.hubs import Hubs
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.deployment import Stitch
from models.avatar.playback import ping_pong
from models.errors import TextError
from models.stitch.paste import Paster
from models.types import FaceCrops, FeatureWindows, PreparedAvatar, Speech

SIDE, COUNT, RATE = 64, 40, 24_000
TIMELINE = ping_pong(0, 4000, COUNT)  # avatar frame by position
NO_HOLDS = {"live": {"holds": 0}}  # as in a summary


def grey_avatar() -> LoadedAvatar:
    """40 frames of one grey each, 20 … 176, visible at the edge; speech is white in the middle."""
    frames = np.stack([np.full((SIDE, SIDE, 3), 20 + 4 * k, np.uint8) for k in range(COUNT)])
    masks = np.zeros((COUNT, 256, 256), np.uint8)
    masks[:, 64:192, 64:192] = 255
    transforms = np.tile(np.float32([[4, 0, 1.5], [0, 4, 1.5]]), (COUNT, 1, 1))
    points = np.zeros((COUNT, 68, 2), np.float32)
    prepared = PreparedAvatar(
        "ann", "1", 25, SIDE, SIDE, transforms, points, masks, np.ones(COUNT, bool), frames=frames
    )
    return LoadedAvatar(prepared, Paster(prepared))


# --- fake stages and handles


def stamp(stage: str, frames: int) -> StageTiming:
    return StageTiming(stage, frames, time.time(), time.time(), 0.0, 0.0, 0.0)


class Response:
    """As a DeploymentResponse: awaitable, can be cancelled."""

    def __init__(self, work) -> None:
        self.task = asyncio.ensure_future(work)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def __await__(self):
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.task.cancel()


class Stream:
    """As a DeploymentResponseGenerator."""

    def __init__(self, generator) -> None:
        self.generator = generator

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.generator)

    def cancel(self) -> None:
        pass


class Method:
    """As a method of a DeploymentHandle."""

    def __init__(self, function, wrap=Response) -> None:
        self.function, self.wrap = function, wrap

    def remote(self, *arguments):
        return self.wrap(self.function(*arguments))


class Stages:
    """TTS: 0.1 s of silence, then a tone of 0.1 s per character. LipSync: white faces after `delay_s` per chunk."""

    def __init__(self, delay_s: float = 0.02) -> None:
        self.delay_s, self.rendered = delay_s, []
        self.spoken: list[tuple[float, str]] = []
        self.speak = Method(self._speak, Stream)
        self.windows, self.generate = Method(self._windows), Method(self._generate)

    def options(self, **options):
        return self

    async def _speak(self, text, voice, speed):
        self.spoken.append((time.time(), text))
        if "bad" in text:
            raise TextError("It cannot be spoken.", "Say something else.")
        samples = 0.5 * np.sin(np.arange(round(0.1 * len(text) * RATE)) / 10).astype(np.float32)
        samples = np.concatenate([np.zeros(RATE // 10, np.float32), samples])
        yield Stamped(Speech(samples, RATE, text, last=True), (stamp("TTS", 0),))

    async def _windows(self, speech, fps, active, first=None, key=""):
        count = first or round(speech.duration_s * fps)
        return Stamped(FeatureWindows(np.zeros((count, 50, 384), np.float16), fps), (stamp("AudioFeatures", count),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, due_s, session_id, version):
        if isinstance(features, Response):  # else by value
            await features
        await asyncio.sleep(self.delay_s)
        self.rendered.append((time.time(), position, count))
        images = np.full((count, 256, 256, 3), 250, np.uint8)
        return Stamped(FaceCrops(images, first_frame, avatar_id), (stamp("LipSync", count),))


class StitchHandle:
    """Stitch as the handle that the ingress has."""

    def __init__(self, stitch: Stitch) -> None:
        self.speak, self.live = Method(stitch.speak, Stream), Method(stitch.live, Stream)
        self.feed = Method(stitch.feed)

    def options(self, **options):
        return self


@pytest.fixture
async def make_stitch(monkeypatch, tmp_path):
    """make(**config) → (stitch, hubs of an ingress, fake stages). The session `alice` is open."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "GRACE_S", 2.0)  # Stitch, hub and viewers share one busy event loop here
    avatar, made = grey_avatar(), []
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatar)
    monkeypatch.setattr("deployments.stitch.deployment.AvatarStore.exists", lambda self, avatar_id: True)

    async def make(delay_s: float = 0.02, **config):
        stages = Stages(delay_s)
        stitch = Stitch(stages, stages, stages)
        await stitch.reconfigure({"crf": 8, "steady_crops": False, "rest_mouth": "generated", **config})
        live = Hubs(lambda session_id, resume: StitchHandle(stitch).live.remote(session_id, resume), lambda: 100)
        await stitch.create("alice")
        made.append((stitch, live))
        return stitch, live, stages

    yield make
    for stitch, live in made:
        await live.stop()
        stitch._housekeeping.cancel()


# --- what a viewer and a caller receive


class Watcher:
    """Receives a viewer's stream until it is stopped."""

    def __init__(self, viewer) -> None:
        self.viewer, self.data = viewer, b""
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for part in self.viewer:
            self.data += part

    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stop; return what `read_video` returns."""
        self.task.cancel()
        return read_video(self.data)

    def loud(self) -> np.ndarray:
        """Times of the first and the last loud sample."""
        with av.open(io.BytesIO(self.data)) as file:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        return np.flatnonzero(np.abs(samples) > 0.1)[[0, -1]] / RATE


def read_video(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per frame: time, grey at the edge (which avatar frame it is), brightness in the middle (whether it speaks)."""
    times, edges, mouths = [], [], []
    with av.open(io.BytesIO(data)) as file:
        for frame in file.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            times.append(float(frame.time))
            edges.append(float(image[:6].mean()))
            mouths.append(float(image[28:36, 28:36].mean()))
    return np.array(times), np.array(edges), np.array(mouths)


def assert_continuous(edges: np.ndarray, summary: dict | None = None) -> None:
    """The frames follow the timeline without a repeated or a missing one.

    With holds, and without a summary to exclude them, the head may sway: it moves by one frame at most.
    """
    expected = 20.0 + 4 * TIMELINE
    if summary is None or summary["live"]["holds"]:
        assert np.abs(np.diff(edges)).max() < 4 + 2.5, "the head jumps"
        return
    errors = [np.abs(edges - expected[p : p + len(edges)]).max() for p in range(600)]
    assert min(errors) < 2.5, f"off the timeline by {min(errors):.1f} levels"


async def wait_for_frames(stitch, session_id: str, frames: int) -> None:
    """Wait until the session's file has this many frames."""
    end_s = time.monotonic() + 20
    while (await stitch.session(session_id))["frames"] < frames:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


async def summary_of(events) -> dict:
    async for event in events:
        if event.summary is not None:
            return event.summary
    raise AssertionError("no summary")
