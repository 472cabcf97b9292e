"""Stitch on fake stages, watched through a hub, without Ray: what the tests of speech on air share."""

import asyncio
import io
import time

import av
import numpy as np
import pytest

from deployments.common.stage import StageTiming, Stamped
from deployments.ingress.live import hub
from deployments.ingress.live.hubs import Live
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.deployment import Stitch
from models.avatar.playback import ping_pong
from models.errors import TextError
from models.stitch.paste import Paster
from models.types import FaceCrops, FeatureWindows, PreparedAvatar, Speech

SIDE, COUNT, RATE = 64, 40, 24_000
LINE = ping_pong(0, 4000, COUNT)


def ann() -> LoadedAvatar:
    """40 frames of one grey each, 20 … 176, told apart at the edge; speech shows as white in the middle."""
    frames = np.stack([np.full((SIDE, SIDE, 3), 20 + 4 * k, np.uint8) for k in range(COUNT)])
    masks = np.zeros((COUNT, 256, 256), np.uint8)
    masks[:, 64:192, 64:192] = 255
    transforms = np.tile(np.float32([[4, 0, 1.5], [0, 4, 1.5]]), (COUNT, 1, 1))
    points = np.zeros((COUNT, 68, 2), np.float32)
    prepared = PreparedAvatar(
        "ann", "1", 25, SIDE, SIDE, transforms, points, masks, np.ones(COUNT, bool), frames=frames
    )
    return LoadedAvatar(prepared, Paster(prepared))


def stamp(stage: str, frames: int) -> StageTiming:
    return StageTiming(stage, frames, time.time(), time.time(), 0.0, 0.0, 0.0)


class Response:
    def __init__(self, work) -> None:
        self.task = asyncio.ensure_future(work)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def __await__(self):
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.task.cancel()


class Stream:
    def __init__(self, generator) -> None:
        self.generator = generator

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.generator)

    def cancel(self) -> None:
        pass


class Method:
    def __init__(self, function, wrap=Response) -> None:
        self.function, self.wrap = function, wrap

    def remote(self, *arguments):
        return self.wrap(self.function(*arguments))


class Stages:
    """TTS: a tone of 0.1 s a character after 0.1 s of silence. LipSync: white faces after `delay_s` a chunk."""

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

    async def _windows(self, speech, fps, active):
        count = round(speech.duration_s * fps)
        return Stamped(FeatureWindows(np.zeros((count, 50, 384), np.float16), fps), (stamp("AudioFeatures", count),))

    async def _generate(self, features, start, count, avatar_id, position, first_frame, due_s, session_id, version):
        await features
        await asyncio.sleep(self.delay_s)
        self.rendered.append((time.time(), position, count))
        images = np.full((count, 256, 256, 3), 250, np.uint8)
        return Stamped(FaceCrops(images, first_frame, avatar_id), (stamp("LipSync", count),))


class Direct:
    """Stitch as the handle that the ingress has."""

    def __init__(self, stitch: Stitch) -> None:
        self.speak, self.live = Method(stitch.speak, Stream), Method(stitch.live, Stream)
        self.feed = Method(stitch.feed)

    def options(self, **options):
        return self


@pytest.fixture
async def air(monkeypatch, tmp_path):
    """make(**config) → (stitch, live, stages): a session `alice` is open."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "GRACE_S", 2.0)  # Stitch, hub and viewers share one busy event loop here
    avatar, made = ann(), []
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatar)
    monkeypatch.setattr(
        "deployments.stitch.deployment.AvatarStore.exists", lambda self, avatar_id: True
    )  # as if it lay there

    async def make(delay_s: float = 0.02, **config):
        stages = Stages(delay_s)
        stitch = Stitch(stages, stages, stages)
        await stitch.reconfigure({"crf": 8, "steady_crops": False, "rest_mouth": "generated", **config})
        live = Live(lambda session_id, position: Direct(stitch).live.remote(session_id, position), lambda: 100)
        await stitch.create("alice")
        made.append((stitch, live))
        return stitch, live, stages

    yield make
    for stitch, live in made:
        await live.stop()
        stitch._housekeeping.cancel()


class Watcher:
    """Receives a viewer's stream until it is stopped."""

    def __init__(self, viewer) -> None:
        self.viewer, self.data = viewer, b""
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for part in self.viewer:
            self.data += part

    def seen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times, the line's grey at the edge, the mouth's brightness in the middle."""
        self.task.cancel()
        return edges_of(self.data)

    def loud(self) -> np.ndarray:
        """Times of the first and the last loud sample."""
        with av.open(io.BytesIO(self.data)) as file:
            samples = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        return np.flatnonzero(np.abs(samples) > 0.1)[[0, -1]] / RATE


def edges_of(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, the line's grey at the edge, the mouth's brightness in the middle, of each frame of a video."""
    times, edges, mouths = [], [], []
    with av.open(io.BytesIO(data)) as file:
        for frame in file.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            times.append(float(frame.time))
            edges.append(float(image[:6].mean()))
            mouths.append(float(image[28:36, 28:36].mean()))
    return np.array(times), np.array(edges), np.array(mouths)


def on_the_line(edges: np.ndarray, summary: dict | None = None) -> None:
    """The frames follow on each other without a repeated or a missing one; where the head had to wait, as a summary
    (or none) says that it may have, it has swayed: by no more than a frame at a time."""
    expected = 20.0 + 4 * LINE
    if summary is None or summary["live"]["holds"]:
        assert np.abs(np.diff(edges)).max() < 4 + 2.5, "it leaps"
        return
    errors = [np.abs(edges - expected[p : p + len(edges)]).max() for p in range(600)]
    assert min(errors) < 2.5, f"off the line by {min(errors):.1f} levels"


UNHELD = {"live": {"holds": 0}}


class Lateness:
    """`async with Lateness() as late`: `late.s` is for how long in all this event loop was kept from what was due."""

    TICK_S, USUAL_S = 0.01, 0.005

    def __init__(self) -> None:
        self.s = 0.0

    async def _tick(self) -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(self.TICK_S)
            late_s = time.monotonic() - began_s - self.TICK_S
            self.s += late_s if late_s > self.USUAL_S else 0.0

    async def __aenter__(self) -> "Lateness":
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *error) -> None:
        self._task.cancel()


async def spoken(stitch, session_id: str, frames: int) -> None:
    """Wait until so much of what a session says has been shown."""
    end_s = time.monotonic() + 20
    while (await stitch.session(session_id))["frames"] < frames:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.02)


async def summary_of(events) -> dict:
    async for event in events:
        if event.summary is not None:
            return event.summary
    raise AssertionError("no summary")
