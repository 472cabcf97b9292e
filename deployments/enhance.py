"""The Enhance stage: 256 px crops in, restored 512 px crops out. Knows no other stage."""

from __future__ import annotations

import time

import numpy as np

from configs.schema import EnhanceConfig
from deployments.paths import cache_dir
from deployments.stage import Stage, Stamped
from models.engines import find_engine
from models.restore import ENGINES
from models.restore.base import FaceRestorer
from models.types import CROP_PX, FaceCrops


class Enhance(Stage[EnhanceConfig]):
    stage = "Enhance"
    engine: FaceRestorer

    def apply(self, config: EnhanceConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"engine", "options"}:
            options = dict(config.options)
            if config.engine == "small":
                options.setdefault("cache_dir", cache_dir())
            self.engine = find_engine(config.engine, ENGINES).load(**options)
            self.engine.restore(np.zeros((config.batch_size, CROP_PX, CROP_PX, 3), np.uint8))  # warm up

    async def restore(self, crops: Stamped[FaceCrops], strength: float | None = None) -> Stamped[FaceCrops]:
        """The same faces at 512 px; `strength` 0 to 1, None for the config's. Keeps the timings of what came before."""
        received_s = time.time()
        await self.ready()
        faces = crops.value
        done = await self.worker.run(self._restore, faces, self.config.strength if strength is None else strength)
        timing = self.meter.stamp(len(faces), received_s, done.queue_s, done.compute_s)
        return Stamped(done.value, (*crops.timings, timing))

    def _restore(self, crops: FaceCrops, strength: float) -> FaceCrops:
        size = self.config.batch_size
        parts = [crops.images[k : k + size] for k in range(0, len(crops), size)]
        images = np.concatenate([self.engine.restore(part, strength) for part in parts])  # (n, 512, 512, 3)
        return FaceCrops(images, crops.first_frame, crops.avatar_id)
