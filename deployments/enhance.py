"""The Enhance stage: face crops of 256 px in, restored crops of 512 px out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from cachetools import LRUCache

from configs.schema import EnhanceConfig
from deployments.common.paths import builtin_avatars, cache_dir, input_path, output_path, set_inductor_cache
from deployments.common.stage import Stage, Stamped
from models.avatar.store import AvatarStore
from models.restore import ENGINES
from models.restore.avatar_faces import AvatarFaces
from models.restore.base import needs_landmarks
from models.runtime.registry import find_engine
from models.types import CROP_PX, FaceCrops

FILE_OPTIONS = ("path", "weights")  # engine options that are resolved by input_path
GFPGAN_WEIGHTS = "weights/GFPGANv1.4.pth"
CACHED_AVATARS = 4  # avatars whose landmarks and heads stay in memory
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


class Enhance(Stage[EnhanceConfig]):
    stage = "Enhance"
    engine: Any  # FaceRestorer or LandmarkRestorer

    def __init__(self) -> None:
        super().__init__()
        self._faces: LRUCache[tuple[str, str], AvatarFaces] = LRUCache(CACHED_AVATARS)  # by avatar id and version

    def apply(self, config: EnhanceConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.engine = load_engine(config.engine, config.options)
            self.engine.restore(np.zeros((config.batch_size, CROP_PX, CROP_PX, 3), np.uint8))  # warm up
        self._store = AvatarStore(output_path(config.avatars_dir), builtin_avatars(), FRAME_CACHE_BYTES)

    async def restore(self, crops: Stamped[FaceCrops], strength: float | None = None) -> Stamped[FaceCrops]:
        """The same faces at 512 px, with the timings of the calls before.

        strength: 0 to 1; None means the config's. For an engine that needs landmarks, the crops' avatar id and frame
        numbers give them; crops without `avatar_frames` must already be on the FFHQ template. Raises AvatarNotFound,
        InputError.
        """
        received_s = time.time()
        await self.ready()
        faces = crops.value
        done = await self.worker.run(self._restore, faces, self.config.strength if strength is None else strength)
        timing = self.meter.record_call(len(faces), received_s, done.queue_s, done.compute_s)
        return Stamped(done.value, (*crops.timings, timing))

    async def needs_landmarks(self) -> bool:
        """Whether the engine works on faces that are aligned to the FFHQ template."""
        await self.ready()
        return needs_landmarks(self.engine)

    def _restore(self, crops: FaceCrops, strength: float) -> FaceCrops:
        size = self.config.batch_size
        avatar_faces = self._avatar_faces(crops)
        parts = []
        for k in range(0, len(crops), size):
            extra = {}
            if avatar_faces is not None and crops.avatar_frames is not None:
                frames = crops.avatar_frames[k : k + size]
                points = avatar_faces.points(frames, crops.images.shape[1])
                extra = {"landmarks": points, "around": avatar_faces.heads(frames)}
            parts.append(self.engine.restore(crops.images[k : k + size], strength, **extra))  # (≤ size, 512, 512, 3)
        return FaceCrops(np.concatenate(parts), crops.first_frame, crops.avatar_id, crops.avatar_frames)

    def _avatar_faces(self, crops: FaceCrops) -> AvatarFaces | None:
        """Landmarks and surroundings of the avatar's faces; None if the engine or the crops do not use them."""
        if crops.avatar_frames is None or not needs_landmarks(self.engine):
            return None
        key = (crops.avatar_id, self._store.version(crops.avatar_id))
        faces = self._faces.get(key)
        if faces is None:
            faces = self._faces[key] = AvatarFaces(self._store.load(crops.avatar_id, latents=False))
        return faces
