"""The LipSync stage without Ray: batches, avatars, timings and settings, with an engine that records its input."""

import asyncio
import threading
import time
import weakref
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from deployments.common.paths import builtin_avatars
from deployments.common.stage import Stamped
from deployments.common.urgency import Urgency
from deployments.lipsync import LipSync, LoadedAvatar, OwnFaces
from models.avatar.decoding import own_faces
from models.avatar.store import AvatarStore
from models.errors import AvatarNotFound, ConfigError, FencedError
from models.map_window import WHOLE_FACE
from models.types import CropWindow, FeatureWindows
from tests.support.stored_avatar import copy_avatar

COMPUTE_S = 0.01  # per batch
LOADING_S = 0.02  # for the latents of an avatar
TIMEOUT_S = 60.0  # of a test that hangs


class Engine:
    """The grey level of a crop is the sum of the first values of its latents and its window. Records batch sizes."""

    loads = 0
    vae_fingerprint = ""

    @classmethod
    def load(cls, *paths, **options) -> "Engine":
        cls.loads += 1
        return cls()

    def __init__(self) -> None:
        self.batches: list[int] = []

    def generate(self, latents, windows):
        self.batches.append(len(latents))
        time.sleep(COMPUTE_S)
        values = latents[:, 0, 0, 0] + windows[:, 0, 0]
        return np.zeros((len(latents), 256, 256, 3), np.uint8) + values.astype(np.uint8)[:, None, None, None]


@pytest.fixture
def stage(monkeypatch, tmp_path) -> LipSync:
    """A stage whose avatar `five` has five frames of latents 0, 10, 20, 30, 40."""
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(Engine, "loads", 0)
    fingerprint = AvatarStore(builtin_avatars()).describe("presenter")["vae_fingerprint"]
    monkeypatch.setattr(Engine, "vae_fingerprint", fingerprint)
    stage = LipSync()

    def hold(prepared):
        time.sleep(LOADING_S)
        latents = np.zeros((5, 8, 32, 32), np.float16) + 10 * np.arange(5, dtype=np.float16)[:, None, None, None]
        return LoadedAvatar(latents, "full")

    stage.checked_hold = stage._hold_avatar
    stage._hold_avatar = hold
    return stage


def config(**changes) -> dict:
    return {"engine": f"{__name__}:Engine", "batch_size": 4, "batch_wait_ms": 10.0, **changes}


def features(count: int, value: float = 0.0) -> Stamped[FeatureWindows]:
    return Stamped(FeatureWindows(np.full((count, 50, 384), value, np.float16), 25), ())


def greys(stamped) -> list[int]:
    return stamped.value.images[:, 0, 0, 0].tolist()


async def test_the_position_in_the_session_selects_the_latents(stage):
    await stage.reconfigure(config())
    done = await stage.generate(features(8), 0, 8, "presenter", position=3, first_frame=0)
    assert greys(done) == [10, 20, 30, 30, 40, 40, 40, 30]  # forward and back with soft turns: 0 0 1 1 2 3 …


async def test_a_chunk_uses_its_own_windows_of_the_segment(stage):
    await stage.reconfigure(config())
    windows = np.zeros((10, 50, 384), np.float16) + np.arange(10, dtype=np.float16)[:, None, None]
    done = await stage.generate(Stamped(FeatureWindows(windows, 25), ()), 4, 3, "presenter", 3, 4)
    assert greys(done) == [14, 25, 36] and done.value.first_frame == 4


async def test_frames_of_two_sessions_share_one_call_and_are_not_mixed_up(stage):
    await stage.reconfigure(config())
    await stage.generate(features(1), 0, 1, "presenter", 0, 0)  # loads its latents
    stage.model.batches.clear()
    both_wait = threading.Event()
    busy = asyncio.create_task(stage.worker.run(both_wait.wait, TIMEOUT_S))  # the compute thread
    calls = [
        asyncio.create_task(stage.generate(features(2, 1), 0, 2, "presenter", 1, 0, Urgency(5.0), "alice")),
        asyncio.create_task(stage.generate(features(2, 7), 0, 2, "presenter", 1, 0, Urgency(4.0), "bob")),
    ]
    async with asyncio.timeout(TIMEOUT_S):
        while stage._batcher.waiting() < 4:
            await asyncio.sleep(0.001)
        both_wait.set()
        one, two = await asyncio.gather(*calls)
    assert (await busy).value  # the thread was busy until both calls waited
    assert stage.model.batches == [4]
    assert (greys(one), greys(two)) == ([1, 11], [7, 17])
    assert (await stage.stats())["shared_batches"] == 1
    assert one.timings[-1].busy_s == pytest.approx(one.timings[-1].compute_s / 2)


async def test_queue_and_compute_time_add_up_to_the_duration_also_for_a_new_avatar(stage):
    await stage.reconfigure(config())
    done = await stage.generate(features(8), 0, 8, "presenter", 0, 0)
    timing = done.timings[-1]
    assert timing.queue_s >= LOADING_S and timing.compute_s >= 2 * COMPUTE_S
    assert timing.queue_s + timing.compute_s <= timing.done_s - timing.received_s + 1e-3


async def test_only_a_change_of_the_model_loads_the_engine_again(stage):
    await stage.reconfigure(config())
    engine = stage.model
    await stage.reconfigure(config(batch_size=2, avatar_memory_mb=16))
    done = await stage.generate(features(5), 0, 5, "presenter", 0, 0)
    assert stage.model is engine and engine.batches[1:] == [2, 2, 1] and len(greys(done)) == 5
    await stage.reconfigure(config(batch_size=2, vae_dir="models/embedded/vae/"))
    assert stage.model is not engine and Engine.loads == 2


async def test_an_engine_without_support_for_mouth_amplitude_is_refused(stage):
    with pytest.raises(ConfigError, match="cannot change the mouth's amplitude"):
        await stage.reconfigure(config(mouth_amplitude=1.2))


async def test_a_mouth_amplitude_that_disables_compilation_is_logged(stage, monkeypatch, caplog):
    engine = SimpleNamespace(generate=lambda latents, windows: None, predict=None, decode=None)
    monkeypatch.setattr("deployments.lipsync.load_engine", lambda config: engine)
    await stage.reconfigure(config(compile="graphs"))
    assert caplog.messages == []
    await stage.reconfigure(config(compile="graphs", mouth_amplitude=1.2))
    assert caplog.messages == ["LipSync: mouth_amplitude 1.2 disables compile: graphs"]


async def test_the_mouth_amplitude_is_applied_without_loading_the_engine_again(stage, monkeypatch):
    monkeypatch.setattr(
        Engine,
        "predict",
        lambda self, latents, windows: latents[:, :4] + windows[:, 0, 0, None, None, None],
        raising=False,
    )
    monkeypatch.setattr(
        Engine,
        "decode",
        lambda self, z: (
            np.zeros((len(z), 256, 256, 3), np.uint8) + np.rint(z[:, 0, 0, 0]).astype(np.uint8)[:, None, None, None]
        ),
        raising=False,
    )
    await stage.reconfigure(config())
    spoken = FeatureWindows(np.full((5, 50, 384), 20, np.float16), 25, np.full((50, 384), 10, np.float16))
    assert greys(await stage.generate(Stamped(spoken, ()), 0, 5, "presenter", 3, 0)) == [30, 40, 50, 50, 60]
    await stage.reconfigure(config(mouth_amplitude=1.3))
    assert greys(await stage.generate(Stamped(spoken, ()), 0, 5, "presenter", 3, 0)) == [33, 43, 53, 53, 63]
    await stage.reconfigure(config(mouth_amplitude=1.0))
    assert greys(await stage.generate(Stamped(spoken, ()), 0, 5, "presenter", 3, 0)) == [30, 40, 50, 50, 60]
    assert Engine.loads == 1


async def test_an_unknown_avatar_is_reported_with_the_known_ones(stage):
    await stage.reconfigure(config())
    with pytest.raises(AvatarNotFound, match="no avatar 'nobody'; known avatars: presenter"):
        await stage.generate(features(1), 0, 1, "nobody", 0, 0)


async def test_latents_of_a_removed_avatar_are_not_used_any_more(stage, tmp_path):
    await stage.reconfigure(config())
    store = AvatarStore(tmp_path / "results" / "avatars")
    copy_avatar(builtin_avatars() / "presenter", store, "me")
    version = store.version("me")
    await stage.generate(features(1), 0, 1, "me", 0, 0, avatar_version=version)
    assert [key[0] for key in stage._avatars] == ["me"]
    store.remove("me")
    with pytest.raises(AvatarNotFound, match="no avatar 'me'"):  # although its latents were in memory
        await stage.generate(features(1), 0, 1, "me", 0, 0, avatar_version=version)
    assert not stage._avatars


async def test_an_avatar_of_another_vae_is_refused_with_the_command_to_run(stage, monkeypatch):
    await stage.reconfigure(config())
    stage._hold_avatar = stage.checked_hold
    monkeypatch.setattr(stage.model, "vae_fingerprint", "another", raising=False)
    with pytest.raises(ConfigError, match="prepared with another VAE") as caught:
        await stage.generate(features(1), 0, 1, "presenter", 0, 0)
    assert "warmtalk prepare VIDEO --avatar-id presenter --force" in caught.value.remedy


async def test_the_least_recently_used_avatars_leave_memory(stage, tmp_path):
    sizes_mb = {"a": 9, "b": 6, "c": 6, "large": 40}
    stage._hold_avatar = lambda prepared: LoadedAvatar(
        np.zeros((64 * sizes_mb[prepared.avatar_id], 8, 32, 32), np.float16), ""
    )
    await stage.reconfigure(config(avatar_memory_mb=16))
    store, kept = AvatarStore(tmp_path / "results" / "avatars"), []
    for name in sizes_mb:
        copy_avatar(builtin_avatars() / "presenter", store, name)
        await stage.generate(features(1), 0, 1, name, 0, 0)
        kept.append([avatar_id for avatar_id, _ in stage._avatars])
    assert kept == [["a"], ["a", "b"], ["b", "c"], ["large"]]


class RecordedEngine(Engine):
    """An engine with recorded networks: the grey level of a window is the number of the avatar's frame."""

    exact_crops, whole_faces = True, False
    windows: ClassVar[list[CropWindow]] = []

    @property
    def recorded(self):
        return self

    def hold(self, latents, window=WHOLE_FACE, statistics=None):
        self.windows.append(window)
        return SimpleNamespace(window=window, nbytes=0)

    def start(self, frames):
        return lambda: [np.full((*held.window.shape, 3), index, np.uint8) for held, index, _ in frames]

    def report(self):
        return {"unet": {"full_batch": [4]}}


async def test_a_window_that_is_decoded_is_put_into_the_avatars_own_face(stage, monkeypatch):
    monkeypatch.setattr(RecordedEngine, "windows", [])
    monkeypatch.setattr(OwnFaces, "read_all", lambda faces: None)  # the end of the test would wait for it
    stage._hold_avatar = stage.checked_hold
    recorded = config(engine=f"{__name__}:RecordedEngine")
    await stage.reconfigure({**recorded, "decode": "full"})
    whole = (await stage.generate(features(3), 0, 3, "presenter", 30, 0)).value
    assert [len(np.unique(face)) for face in whole.images] == [1, 1, 1]
    await stage.reconfigure(recorded)
    done = (await stage.generate(features(3), 0, 3, "presenter", 30, 0)).value
    avatar = stage._store.load("presenter")
    window = CropWindow.around(avatar.masks)
    assert RecordedEngine.windows == [CropWindow(), window]
    wanted = own_faces(avatar, done.avatar_frames.tolist())
    window.cut(wanted)[:] = done.avatar_frames[:, None, None, None]
    assert np.array_equal(done.images, wanted)
    stats = await stage.stats()
    assert stats["avatars"] == {"presenter": "cropped: exact with a tiny VAE"}
    assert stats["networks"] == {"unet": {"full_batch": [4]}}


async def test_whole_faces_of_an_engine_are_used_without_reading_the_video(stage, monkeypatch):
    monkeypatch.setattr(RecordedEngine, "whole_faces", True)
    monkeypatch.setattr(
        RecordedEngine, "start", lambda self, frames: [np.full((256, 256, 3), k, np.uint8) for _, k, _ in frames]
    )
    monkeypatch.setattr("deployments.lipsync.own_faces", None)  # a call would fail
    stage._hold_avatar = stage.checked_hold
    await stage.reconfigure(config(engine=f"{__name__}:RecordedEngine"))
    done = (await stage.generate(features(3), 0, 3, "presenter", 30, 0)).value
    assert [np.unique(face).tolist() for face in done.images] == [[k] for k in done.avatar_frames]
    assert (await stage.stats())["avatars"] == {"presenter": "cropped: exact with a tiny VAE"}


async def test_statistics_of_another_vae_than_the_decoder_are_not_used(stage, monkeypatch):
    monkeypatch.setattr(RecordedEngine, "exact_crops", False)
    monkeypatch.setattr(RecordedEngine, "windows", [])
    monkeypatch.setattr(RecordedEngine, "vae", object(), raising=False)
    monkeypatch.setattr(RecordedEngine, "decoder", object(), raising=False)
    window = CropWindow((128, 256), (32, 224))
    monkeypatch.setattr("deployments.lipsync.choose_decoder", lambda *_: (window, "cropped"))
    stage._hold_avatar = stage.checked_hold
    await stage.reconfigure(config(engine=f"{__name__}:RecordedEngine"))
    await stage.generate(features(1), 0, 1, "presenter", 0, 0)
    assert RecordedEngine.windows == [CropWindow()]
    assert (await stage.stats())["avatars"]["presenter"].startswith("full: the avatar's statistics are those of")


def test_own_faces_are_read_from_the_video_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        "deployments.lipsync.own_faces", lambda avatar, k: read.extend(k) or np.zeros((len(k), 256, 256, 3))
    )
    faces = OwnFaces(np.zeros(40))
    for indices in ([3, 4, 4, 3], [4, 5], [3, 5]):
        faces.read(np.array(indices))
    assert read == [3, 4, 5]
    faces.read_all()
    assert sorted(read) == list(range(40))


def test_a_caller_does_not_wait_until_all_own_faces_are_read(monkeypatch):
    reading, gate = threading.Event(), threading.Event()

    def read(avatar, indices):
        if indices[0] == 16:  # the second part of `read_all`
            reading.set()
            gate.wait(TIMEOUT_S)
        return np.zeros((len(indices), 256, 256, 3), np.uint8)

    monkeypatch.setattr("deployments.lipsync.own_faces", read)
    faces = OwnFaces(np.zeros(40))
    ahead = threading.Thread(target=faces.read_all)
    caller = threading.Thread(target=faces.read, args=(np.array([3, 38]),))
    ahead.start()
    assert reading.wait(TIMEOUT_S)
    caller.start()
    caller.join(TIMEOUT_S / 4)
    waits = caller.is_alive()
    gate.set()
    ahead.join()
    caller.join()
    assert not waits


def test_the_video_is_not_kept_when_all_own_faces_are_read(monkeypatch):
    monkeypatch.setattr("deployments.lipsync.own_faces", lambda avatar, k: np.zeros((len(k), 256, 256, 3)))
    avatar = np.zeros(40)
    faces, kept = OwnFaces(avatar), weakref.ref(avatar)
    del avatar
    faces.read(np.arange(40))
    assert kept() is not None
    faces.read_all()
    assert kept() is None
    faces.read(np.array([7]))


async def test_sessions_that_begin_at_once_load_an_avatar_once(stage):
    loads, hold = [], stage._hold_avatar
    stage._hold_avatar = lambda prepared: loads.append(prepared.avatar_id) or hold(prepared)
    await stage.reconfigure(config())
    await asyncio.gather(*(stage.generate(features(1), 0, 1, "presenter", 0, 0) for _ in range(4)))
    assert loads == ["presenter"]


async def test_another_version_of_the_avatar_is_refused(stage):
    await stage.reconfigure(config())
    version = stage._store.version("presenter")
    assert len((await stage.generate(features(1), 0, 1, "presenter", 0, 0, avatar_version=version)).value) == 1
    with pytest.raises(FencedError, match="has been prepared again"):
        await stage.generate(features(1), 0, 1, "presenter", 0, 0, avatar_version="older")
    assert [key for key in stage._avatars if key[1] != version] == []
