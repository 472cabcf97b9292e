"""The Enhance stage: engines that need landmarks get those of the avatar's frames, in pixels of the crop."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from deployments.batching import BatchResult
from deployments.common.stage import StageTiming, Stamped
from deployments.common.urgency import NO_HURRY, Urgency
from deployments.enhance import Enhance
from models.avatar.store import AvatarStore
from models.errors import AvatarNotFound
from models.geometry import apply, warp
from models.restore.align import align, five_points, smoothed_points, to_template
from models.restore.avatar_faces import AvatarFaces
from models.restore.heads import Heads
from models.types import FaceCrops
from tests.support.paths import ROOT

BUILTIN = ROOT / "models" / "embedded" / "avatars"


class WithLandmarks:
    """An engine that records what it is given."""

    needs_landmarks = True

    @classmethod
    def load(cls, **options):
        return cls()

    def __init__(self):
        self.given = []

    def restore(self, faces, strength=1.0, landmarks=None, around=None):
        self.given.append((faces.shape, strength, landmarks, around))
        return np.zeros((len(faces), 512, 512, 3), np.uint8)


class Plain(WithLandmarks):
    """An engine without landmarks."""

    needs_landmarks = False

    def restore(self, faces, strength=1.0):
        return super().restore(faces, strength)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Enhance:
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    stage = Enhance()
    config = stage.config.model_copy(update={"engine": f"{WithLandmarks.__module__}:WithLandmarks", "batch_size": 2})
    stage.apply(config, None)
    stage.config, stage._configured = config, True
    stage.engine.given.clear()
    return stage


async def restored(stage: Enhance, crops: FaceCrops, *given) -> FaceCrops:
    return (await stage.restore(Stamped(crops, ()), *given)).value


@pytest.fixture(scope="module")
def presenter():
    return AvatarStore(BUILTIN).load("presenter", latents=False, frames=False)


def crops(frames, avatar_id="presenter", side=256) -> FaceCrops:
    return FaceCrops(np.zeros((len(frames), side, side, 3), np.uint8), 10, avatar_id, np.array(frames))


async def test_each_crop_gets_the_landmarks_of_its_avatar_frame(stage: Enhance, presenter) -> None:
    out = await restored(stage, crops([3, 2, 7]), 0.5)
    assert [given[0][0] for given in stage.engine.given] == [2, 1]
    landmarks = np.concatenate([given[2] for given in stage.engine.given])
    wanted = smoothed_points(presenter.landmarks, presenter.transforms, presenter.has_face, presenter.fps)
    assert np.array_equal(landmarks, wanted[[3, 2, 7]])
    assert out.images.shape == (3, 512, 512, 3) and out.first_frame == 10
    assert out.avatar_frames.tolist() == [3, 2, 7]


def test_landmarks_are_near_the_detected_ones_and_smoother(presenter) -> None:
    raw = five_points(apply(presenter.transforms, presenter.landmarks))
    steady = smoothed_points(presenter.landmarks, presenter.transforms, presenter.has_face, presenter.fps)
    assert np.abs(steady - raw).max() < 2.0
    assert np.abs(np.diff(steady, 2, axis=0)).mean() < 0.7 * np.abs(np.diff(raw, 2, axis=0)).mean()
    assert steady.min() > 0 and steady.max() < 256


async def test_the_surroundings_are_the_avatars_own_head(stage: Enhance, presenter) -> None:
    """The crop, aligned to the template, equals the head where both show the face."""
    avatar = AvatarStore(BUILTIN).load("presenter", latents=False)
    crop = warp(avatar.frames[5], avatar.transforms[5])
    await restored(stage, FaceCrops(crop[None], 0, "presenter", np.array([5])), 1.0)
    (_, _, landmarks, around), *_ = stage.engine.given
    aligned = align(crop, to_template(landmarks[0]))
    face = slice(170, 420)
    assert np.abs(aligned[face, face].astype(int) - around[0, face, face]).mean() < 2.0
    assert np.abs(around[0, 20:60, 200:320].astype(int) - [135, 133, 132]).mean() > 20  # hair, and not grey
    whole = align(crop, to_template(landmarks[0]), around[0])
    assert np.abs(whole.astype(int) - around[0]).mean() < 1.0


async def test_a_head_is_drawn_once_for_calls_at_the_same_time(stage: Enhance, monkeypatch) -> None:
    drawn, head = [], AvatarFaces.head
    monkeypatch.setattr(AvatarFaces, "head", lambda self, frame: drawn.append(frame) or head(self, frame))
    await asyncio.gather(*(restored(stage, crops([5, 6])) for _ in range(3)))
    assert sorted(drawn) == [5, 6] and sum(given[0][0] for given in stage.engine.given) == 6


async def test_crops_of_512_px_get_scaled_landmarks(stage: Enhance) -> None:
    await restored(stage, crops([4]), 1.0)
    await restored(stage, crops([4], side=512), 1.0)
    small, large = (given[2] for given in stage.engine.given)
    assert np.abs(large - (2 * small + 0.5)).max() < 1e-4


async def test_crops_without_avatar_frames_get_no_landmarks(stage: Enhance) -> None:
    await restored(stage, FaceCrops(np.zeros((1, 512, 512, 3), np.uint8), 0, ""), 1.0)
    assert stage.engine.given[0][2] is None


async def test_an_engine_without_landmarks_gets_none(stage: Enhance) -> None:
    stage.engine = Plain()
    await restored(stage, crops([1]), 1.0)
    assert stage.engine.given == [((1, 256, 256, 3), 1.0, None, None)]


async def test_an_unknown_avatar_is_reported(stage: Enhance) -> None:
    with pytest.raises(AvatarNotFound, match="nobody"):
        await restored(stage, crops([0], "nobody"), 1.0)


class Half:
    """An engine without landmarks: strength 0 gives grey 0, strength 1 gives grey 200. A face of value 13 breaks it."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, float]] = []

    def restore(self, faces, strength=1.0):
        if (faces == 13).all((1, 2, 3)).any():
            raise ValueError("a face that cannot be restored")
        self.sizes.append((len(faces), strength))
        return np.full((len(faces), 512, 512, 3), round(200 * strength), np.uint8)


def plain(count: int, value: int = 0) -> FaceCrops:
    return FaceCrops(np.full((count, 256, 256, 3), value, np.uint8), 0, "")


async def test_faces_of_several_sessions_share_one_call_of_the_engine(stage: Enhance) -> None:
    stage.engine = Half()
    stage._batcher.configure(8, 0.05, new_engine=True)
    one, two = await asyncio.gather(
        stage.restore(Stamped(plain(3), ()), None, NO_HURRY, "alice"),
        stage.restore(Stamped(plain(4), ()), None, NO_HURRY, "bob"),
    )
    assert stage.engine.sizes == [(7, 1.0)]
    assert (len(one.value), len(two.value)) == (3, 4) and (await stage.stats())["shared_batches"] == 1
    assert two.timings[-1].busy_s == pytest.approx(two.timings[-1].compute_s * 4 / 7)


async def test_each_face_has_its_own_strength(stage: Enhance) -> None:
    stage.engine = Half()
    stage._batcher.configure(8, 0.05, new_engine=True)
    shares = np.array([1.0, 0.5, 0.25, 0.0], np.float32)
    faded, full = await asyncio.gather(
        stage.restore(Stamped(plain(4), ()), 0.8, NO_HURRY, "alice", shares),
        stage.restore(Stamped(plain(2), ()), 1.0, NO_HURRY, "bob"),
    )
    assert faded.value.images[:, 0, 0, 0].tolist() == [160, 80, 40, 0]
    assert full.value.images[:, 0, 0, 0].tolist() == [200, 200]
    assert stage.engine.sizes == [(6, 0.0), (5, 1.0)]  # all of them enlarged, and those that need it restored


async def test_a_face_that_cannot_be_restored_fails_alone(stage: Enhance) -> None:
    stage.engine = Half()
    stage._batcher.configure(8, 0.05, new_engine=True)
    good, bad = await asyncio.gather(
        stage.restore(Stamped(plain(3), ()), None, NO_HURRY, "alice"),
        stage.restore(Stamped(plain(1, 13), ()), None, NO_HURRY, "bob"),
        return_exceptions=True,
    )
    assert len(good.value) == 3 and isinstance(bad, ValueError)


async def test_the_time_that_lipsync_took_is_no_slack_any_more(stage: Enhance) -> None:
    given = []

    async def submit(faces, urgency, caller):
        given.append(urgency)
        return BatchResult([np.zeros((512, 512, 3), np.uint8)], 0.0, 0.0, 0.0)

    stage._batcher.submit = submit
    timing = StageTiming("LipSync", 1, 0.0, 0.0, queue_s=0.5, compute_s=0.25, busy_s=0.1)
    await stage.restore(Stamped(plain(1), (timing,)), None, Urgency(2.0, 0.32, background=False))
    assert given[0].slack_s == pytest.approx(1.25, abs=0.1) and not given[0].background


async def test_the_stage_reports_whether_its_engine_needs_landmarks(stage: Enhance) -> None:
    assert await stage.needs_landmarks() is True
    stage.engine = Plain()
    assert await stage.needs_landmarks() is False


async def test_crops_are_taken_while_an_engine_with_landmarks_is_loaded(stage: Enhance, monkeypatch) -> None:
    stage.engine, stage.heads = Plain(), None
    loading, gate = threading.Event(), threading.Event()

    def heads(device: str) -> Heads:
        loading.set()
        assert gate.wait(30)
        return Heads(device)

    monkeypatch.setattr("models.restore.heads.Heads", heads)
    applying = asyncio.create_task(stage.worker.run(stage.apply, stage.config, None))
    assert await asyncio.to_thread(loading.wait, 30)
    call = asyncio.create_task(restored(stage, crops([1]), 1.0))
    while not stage._batcher.waiting() and not call.done():
        await asyncio.sleep(0.001)
    gate.set()
    await applying
    assert (await call).images.shape == (1, 512, 512, 3)
    assert stage.engine.needs_landmarks and stage.heads is not None


async def test_crops_that_wait_for_an_engine_with_landmarks_can_be_restored_without_them(stage: Enhance) -> None:
    [face] = await stage._faces_of(crops([1]), 1.0, None)
    stage.engine, stage.heads = Plain(), None
    assert face.points is not None and [image.shape for image in stage._start([face])()] == [(512, 512, 3)]


async def test_avatars_beyond_the_memory_are_loaded_again(stage: Enhance, tmp_path: Path, monkeypatch) -> None:
    stage.apply(stage.config.model_copy(update={"avatar_memory_mb": 130}), {"avatar_memory_mb"})
    loaded, load = [], stage._store.load
    monkeypatch.setattr(stage._store, "version", lambda avatar_id: "1")
    monkeypatch.setattr(stage._store, "load", lambda name, latents: loaded.append(name) or load("presenter", latents))
    for name in ("one", "two", "one", "three", "one", "two"):  # 64 MB each
        await restored(stage, crops([0], name))
    assert loaded == ["one", "two", "three", "two"]
