"""The Enhance stage: face crops of 256 px in, restored crops of 512 px out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from configs.schema import EnhanceConfig
from deployments.batching import FrameBatcher, stacked
from deployments.common.paths import builtin_avatars, cache_dir, input_path, output_path, set_inductor_cache
from deployments.common.requests import stage_call
from deployments.common.stage import Stage, Stamped
from deployments.common.urgency import NO_HURRY, Urgency
from models.avatar.store import AvatarStore
from models.restore import ENGINES
from models.restore.align import check_strength
from models.restore.avatar_faces import AvatarFaces
from models.restore.base import needs_landmarks, start_each
from models.runtime.registry import find_engine
from models.types import CROP_PX, FaceCrops, Float32, UInt8

if TYPE_CHECKING:
    from models.restore.heads import Heads  # imports torch

FILE_OPTIONS = ("path", "weights")  # engine options that are resolved by input_path
GFPGAN_WEIGHTS = "weights/GFPGANv1.4.pth"
DRAWN_HEADS = 128  # of 0.75 MB: drawn last, and perhaps not on the device yet
FRAME_CACHE_BYTES = 64 << 20  # decoded frames per avatar; small, because each frame is read once, in order


def load_engine(name: str, options: dict[str, Any]) -> Any:
    """Load the engine with its options from the config. Relative FILE_OPTIONS are resolved by `input_path`.

    Raises ConfigError, WeightsError.
    """
    options = dict(options)
    if name == "small":
        options.setdefault("cache_dir", cache_dir())
    if name == "gfpgan":
        options.setdefault("path", GFPGAN_WEIGHTS)
    for key in FILE_OPTIONS:
        if isinstance(options.get(key), str):
            options[key] = input_path(options[key])
    set_inductor_cache()
    return find_engine(name, ENGINES).load(**options)


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A crop to restore. points and avatar: only for an engine that needs landmarks, of crops of an avatar."""

    crop: UInt8  # (s, s, 3)
    strength: float
    points: Float32 | None = None  # (5, 2), px of the crop
    avatar: AvatarFaces | None = None  # has the head around the face, of avatar frame `frame`
    frame: int = 0
    head: UInt8 | None = None  # that head, where the device did not have it


class Enhance(Stage[EnhanceConfig]):
    stage = "Enhance"
    engine: Any  # FaceRestorer or LandmarkRestorer
    heads: Heads | None = None  # where the engine needs landmarks

    def __init__(self) -> None:
        super().__init__()
        self._drawn: LRUCache[tuple[tuple[str, str], int], asyncio.Future[UInt8]] = LRUCache(DRAWN_HEADS)
        self._batcher: FrameBatcher[Face, UInt8] = FrameBatcher(
            self.worker.guard(self._start), self.worker.run, 1, 0.0, self.stage, self.meter.record_batch_limit
        )

    def apply(self, config: EnhanceConfig, changed: set[str] | None) -> None:
        new_engine = changed is None or bool(changed & {"engine", "options"})
        if new_engine:
            engine, heads = load_engine(config.engine, config.options), None
            if needs_landmarks(engine):
                from models.restore.heads import Heads

                heads = Heads(engine.device if hasattr(engine, "start") else "cpu")
            self.engine, self.heads = engine, heads  # together: the event loop may be using them
            for size in getattr(self.engine, "batch_sizes", (config.batch_size,)):  # warm up
                self.engine.restore(np.zeros((size, CROP_PX, CROP_PX, 3), np.uint8))
        if changed is None or changed & {"avatar_memory_mb", "avatars_dir"}:
            # by avatar id and version; a new object, because the event loop may be using the old one
            limit = config.avatar_memory_mb << 20
            self._faces: LRUCache[tuple[str, str], AvatarFaces] = LRUCache(limit, lambda _: FRAME_CACHE_BYTES)
        self._store = AvatarStore(output_path(config.avatars_dir), builtin_avatars(), FRAME_CACHE_BYTES)
        self._batcher.configure(config.batch_size, config.batch_wait_ms / 1e3, new_engine)

    @stage_call
    async def restore(
        self,
        crops: Stamped[FaceCrops],
        strength: float | None = None,
        urgency: Urgency = NO_HURRY,
        session_id: str = "",
        shares: Float32 | None = None,
    ) -> Stamped[FaceCrops]:
        """The same faces at 512 px, with the timings of the calls before.

        strength: 0 to 1; None means the config's. For an engine that needs landmarks, the crops' avatar id and frame
        numbers give them; crops without `avatar_frames` must already be on the FFHQ template. urgency: of the whole
        chain, from LipSync on. shares: `(n,)`, 0 to 1, by which the strength of each face is multiplied. Raises
        AvatarNotFound, InputError.
        """
        received_s, began_s = time.time(), time.perf_counter()
        await self.ready()
        faces = await self._faces_of(crops.value, self.config.strength if strength is None else strength, shares)
        loading_s = time.perf_counter() - began_s  # of an avatar that was not in memory; counted as queue time
        spent_s = loading_s + sum(timing.queue_s + timing.compute_s for timing in crops.timings)
        done = await self._batcher.submit(faces, urgency.after(spent_s), session_id)
        restored = FaceCrops(
            stacked(done.results), crops.value.first_frame, crops.value.avatar_id, crops.value.avatar_frames
        )
        queue_s = loading_s + done.queue_s
        timing = self.meter.record_call(len(restored), received_s, queue_s, done.compute_s, done.busy_s)
        return Stamped(restored, (*crops.timings, timing))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics for deployments.common.autoscaling:ByDeadline; Serve's controller calls this."""
        return self._batcher.load_metrics(self._start_s)

    async def stats(self) -> dict[str, Any]:
        """As for every stage, and counts of calls of the engine, their faces, and the calls that sessions share."""
        return {**await super().stats(), **self._batcher.counts()}

    async def needs_landmarks(self) -> bool:
        """Whether the engine works on faces that are aligned to the FFHQ template."""
        await self.ready()
        return needs_landmarks(self.engine)

    async def _faces_of(self, crops: FaceCrops, strength: float, shares: Float32 | None) -> list[Face]:
        check_strength(strength)
        strengths = [strength * float(share) for share in (np.ones(len(crops)) if shares is None else shares)]
        heads = self.heads
        if crops.avatar_frames is None or heads is None or not needs_landmarks(self.engine):
            return [Face(*pair) for pair in zip(crops.images, strengths, strict=True)]
        avatar = await self._avatar_faces(crops.avatar_id)
        points = avatar.points(crops.avatar_frames, crops.images.shape[1])  # (n, 5, 2)
        frames: list[int] = crops.avatar_frames.tolist()
        missing = heads.missing(avatar, frames)
        drawn = await asyncio.gather(*(self._head(avatar, frame) for frame in missing))
        head_of = dict(zip(missing, drawn, strict=True))
        rows = zip(crops.images, strengths, points, frames, strict=True)
        return [Face(crop, weight, five, avatar, frame, head_of.get(frame)) for crop, weight, five, frame in rows]

    async def _head(self, avatar: AvatarFaces, frame: int) -> UInt8:
        """Drawn on another thread, because it takes as long as restoring several faces; once for all calls."""
        key = (avatar.key, frame)
        if key not in self._drawn:
            self._drawn[key] = asyncio.ensure_future(asyncio.to_thread(avatar.head, frame))
        try:
            return await asyncio.shield(self._drawn[key])  # another call may wait for it when this one is cancelled
        except Exception:
            self._drawn.pop(key, None)
            raise

    async def _avatar_faces(self, avatar_id: str) -> AvatarFaces:
        """Landmarks and surroundings of the avatar's faces. Raises AvatarNotFound."""
        key = (avatar_id, await asyncio.to_thread(self._store.version, avatar_id))
        faces = self._faces.get(key)
        self.meter.record_cache(hit=faces is not None)
        if faces is None:
            load = self._store.load
            faces = (await self.worker.run(lambda: AvatarFaces(load(avatar_id, latents=False), key))).value
            self._faces[key] = faces
        return faces

    def _start(self, faces: list[Face]) -> Callable[[], list[UInt8]]:
        """On the compute thread: begin to restore crops `(s, s, 3)`; the function returned waits for `(512, 512, 3)`.

        One call of the engine per kind of faces.
        """
        kinds: dict[tuple[int, bool], list[int]] = {}
        for k, face in enumerate(faces):
            kinds.setdefault((len(face.crop), face.points is None), []).append(k)
        started = []
        for members in kinds.values():
            same = [faces[k] for k in members]
            given = [face.crop for face in same], [face.strength for face in same]
            started.append((members, start_each(self.engine, *given, **self._extra(same))))

        def wait() -> list[UInt8]:
            results: dict[int, UInt8] = {}
            for members, restored in started:
                results.update(zip(members, restored(), strict=True))
            return [results[k] for k in range(len(faces))]

        return wait

    def _extra(self, faces: list[Face]) -> dict[str, Any]:
        """What a LandmarkRestorer also gets for these faces."""
        if faces[0].points is None or self.heads is None:  # these faces may be older than the engine
            return {}
        around: Any = self.heads.rows([(face.avatar, face.frame, face.head) for face in faces if face.avatar])
        if not hasattr(self.engine, "start"):  # which takes it on its device
            around = around.numpy()
        return {"landmarks": np.stack([face.points for face in faces if face.points is not None]), "around": around}
