"""The Enhance stage: 256 px crops in, restored 512 px crops out. Knows no other stage."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

import numpy as np

from configs.schema import EnhanceConfig
from deployments.common.paths import builtin_avatars, cache_dir, input_path, output_path, set_inductor_cache
from deployments.common.stage import Stage, Stamped
from models.avatar.store import AvatarStore
from models.restore import ENGINES
from models.restore.avatar_faces import AvatarFaces
from models.restore.base import needs_landmarks
from models.runtime.registry import find_engine
from models.types import CROP_PX, FaceCrops

FILE_OPTIONS = ("path", "weights")  # options of an engine that name a file
GFPGAN_WEIGHTS = "weights/GFPGANv1.4.pth"
CACHED_AVATARS = 4  # whose landmarks and heads are kept
FRAME_CACHE_BYTES = 64 << 20  # decoded frames an avatar: each is looked at once, in order


def load_engine(name: str, options: dict[str, Any]) -> Any:
    """The restorer behind a name, loaded with a config's options; relative files are looked up as everywhere.

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
        self._faces: OrderedDict[tuple[str, str], AvatarFaces] = OrderedDict()

    def apply(self, config: EnhanceConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            self.engine = load_engine(config.engine, config.options)
            self.engine.restore(np.zeros((config.batch_size, CROP_PX, CROP_PX, 3), np.uint8))  # warm up
        self._store = AvatarStore(output_path(config.avatars_dir), builtin_avatars(), FRAME_CACHE_BYTES)

    async def restore(self, crops: Stamped[FaceCrops], strength: float | None = None) -> Stamped[FaceCrops]:
        """The same faces at 512 px; `strength` 0 to 1, None for the config's. Keeps the timings of what came before.

        An engine that needs landmarks finds them by the crops' avatar and its frames; crops without `avatar_frames`
        must lie on the FFHQ template already. Raises AvatarNotFound, InputError.
        """
        received_s = time.time()
        await self.ready()
        faces = crops.value
        done = await self.worker.run(self._restore, faces, self.config.strength if strength is None else strength)
        timing = self.meter.record_call(len(faces), received_s, done.queue_s, done.compute_s)
        return Stamped(done.value, (*crops.timings, timing))

    async def needs_landmarks(self) -> bool:
        """Whether the engine works on faces laid onto the FFHQ template."""
        await self.ready()
        return needs_landmarks(self.engine)

    def _restore(self, crops: FaceCrops, strength: float) -> FaceCrops:
        size = self.config.batch_size
        known = self._avatar_faces(crops)
        parts = []
        for k in range(0, len(crops), size):
            given = {}
            if known is not None and crops.avatar_frames is not None:
                frames = crops.avatar_frames[k : k + size]
                given = {"landmarks": known.points(frames, crops.images.shape[1]), "around": known.heads(frames)}
            parts.append(self.engine.restore(crops.images[k : k + size], strength, **given))  # (≤ size, 512, 512, 3)
        return FaceCrops(np.concatenate(parts), crops.first_frame, crops.avatar_id, crops.avatar_frames)

    def _avatar_faces(self, crops: FaceCrops) -> AvatarFaces | None:
        """Where the faces lie and what is around them, if the engine asks for it and the crops say whose they are."""
        if crops.avatar_frames is None or not needs_landmarks(self.engine):
            return None
        key = (crops.avatar_id, self._store.version(crops.avatar_id))
        if key not in self._faces:
            self._faces[key] = AvatarFaces(self._store.load(crops.avatar_id, latents=False))
            while len(self._faces) > CACHED_AVATARS:
                self._faces.popitem(last=False)
        self._faces.move_to_end(key)
        return self._faces[key]
