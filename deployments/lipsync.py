"""The LipSync stage: feature windows and an avatar's latents in, generated face crops out."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import numpy as np
from cachetools import LRUCache

from configs.schema import LipSyncConfig
from deployments.batching import FrameBatcher
from deployments.common.paths import builtin_avatars, cache_dir, input_path, output_path, set_inductor_cache
from deployments.common.stage import Stage, Stamped
from deployments.common.urgency import NO_HURRY, Urgency
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.errors import ConfigError, FencedError
from models.mouth_gain import MouthGain
from models.runtime.registry import find_engine
from models.types import FaceCrops, FeatureWindows, Float16, UInt8

log = logging.getLogger("ray.serve")

ENGINES = {
    "openvino": "models.musetalk_openvino:OpenVINOMuseTalk",
    "torch": "models.musetalk_cuda:CudaMuseTalk",
}

MODEL_KEYS = frozenset(  # a change of one of these loads the engine again
    [
        "engine",
        "unet_config",
        "unet_weights",
        "vae_dir",
        "decoder",
        "decoder_dir",
        "device",
        "dtype",
        "precision",
        "threads",
    ]
)

Frame = tuple[Float16, Float16, Float16 | None]  # latents (8, 32, 32), window (50, 384), resting window (50, 384)


def load_engine(config: LipSyncConfig) -> Any:
    """Load the engine of a config. It compiles at its first call. Raises ConfigError, WeightsError."""
    engine = find_engine(config.engine, ENGINES)
    if config.compile != "off" and config.engine != "torch":
        message = f"The engine {config.engine!r} does not support compile: {config.compile}."
        raise ConfigError(message, "Use engine: torch on a GPU, or compile: off.")
    paths = [input_path(config.unet_config), input_path(config.unet_weights), input_path(config.vae_dir)]
    # passed only when needed, since an engine of module:Class may not support other decoders
    decoder: dict[str, Any] = {"decoder_dir": input_path(config.decoder_dir)} if config.decoder == "tiny" else {}
    if config.engine == "torch":
        import torch

        if config.device == "cpu":
            torch.set_num_threads(config.threads)
        set_inductor_cache()
        model = engine.load(*paths, device=config.device, dtype=getattr(torch, config.dtype), **decoder)
        model.record(config.compile, config.batch_size)
        return model
    if config.engine == "openvino":
        decoder["precision"] = config.precision
    return engine.load(*paths, cache_dir=cache_dir(), threads=config.threads, **decoder)


class LipSync(Stage[LipSyncConfig]):
    stage = "LipSync"

    def __init__(self) -> None:
        super().__init__()
        self._latents: LRUCache[tuple[str, str], Float16] = LRUCache(1)  # by avatar id and version
        self._batcher: FrameBatcher[Frame, UInt8] = FrameBatcher(
            self.worker.guard(self._generate), self.worker.run, 1, 0.0, self.stage, self.meter.record_batch_limit
        )

    def apply(self, config: LipSyncConfig, changed: set[str] | None) -> None:
        if changed is None or changed & MODEL_KEYS:
            self.model = load_engine(config)
            latents = np.zeros((config.batch_size, 8, 32, 32), np.float16)
            self.model.generate(latents, np.zeros((config.batch_size, 50, 384), np.float16))  # warm up
        elif changed & {"compile", "batch_size"} and config.engine == "torch":
            self.model.record(config.compile, config.batch_size)
        if changed is None or changed & (MODEL_KEYS | {"cached_avatars"}):
            self._latents = LRUCache(config.cached_avatars)  # not cleared: the event loop may be using the old object
        if changed is None or changed & (MODEL_KEYS | {"mouth_amplitude"}):
            gain = config.mouth_amplitude
            self._mouth_gain = None if gain == 1 else MouthGain(self.model, gain)
        if self._mouth_gain is not None and config.compile != "off":
            log.warning("LipSync: mouth_amplitude %g disables compile: %s", config.mouth_amplitude, config.compile)
        self._store = AvatarStore(output_path(config.avatars_dir), builtin_avatars())
        new_engine = changed is None or bool(changed & (MODEL_KEYS | {"compile", "mouth_amplitude"}))
        self._batcher.configure(config.batch_size, config.batch_wait_ms / 1e3, new_engine)

    async def generate(
        self,
        features: Stamped[FeatureWindows],
        start: int,
        count: int,
        avatar_id: str,
        position: int,
        first_frame: int,
        urgency: Urgency = NO_HURRY,
        session_id: str = "",
        avatar_version: str = "",
    ) -> Stamped[FaceCrops]:
        """Crops of `count` frames, from window `start` of the segment.

        position: the frame number of the first crop in the session, which selects the avatar's frames. first_frame: its
        number in the utterance. avatar_version: the version of the avatar frames into which the crops are pasted.
        Raises AvatarNotFound, FencedError (the avatar now has another version), ConfigError (the avatar was prepared
        with another VAE), BusyError (too little memory).
        """
        received_s, began_s = time.time(), time.perf_counter()
        await self.ready()
        latents = await self._avatar_latents(avatar_id, avatar_version)
        indices = ping_pong(position, count, len(latents))
        windows = features.value.windows[start : start + count]
        rest = features.value.rest
        frames = [(latents[index], window, rest) for index, window in zip(indices, windows, strict=True)]
        loading_s = time.perf_counter() - began_s  # of an avatar that was not in memory; counted as queue time
        done = await self._batcher.submit(frames, urgency.after(loading_s), session_id)
        crops = FaceCrops(np.stack(done.results), first_frame, avatar_id, indices)
        timing = self.meter.record_call(count, received_s, loading_s + done.queue_s, done.compute_s, done.busy_s)
        return Stamped(crops, (timing,))

    async def stats(self) -> dict[str, Any]:
        """As for every stage, and counts of UNet calls, their frames, and the calls that several sessions share."""
        return {**await super().stats(), **self._batcher.counts()}

    def _generate(self, frames: list[Frame]) -> list[UInt8]:
        latents = np.stack([frame[0] for frame in frames])  # (n, 8, 32, 32)
        windows = np.stack([frame[1] for frame in frames])  # (n, 50, 384)
        rest = frames[0][2]  # the same in all requests
        if self._mouth_gain is not None and rest is not None:
            return list(self._mouth_gain.generate(latents, windows, rest))
        return list(self.model.generate(latents, windows))  # n × (256, 256, 3)

    async def _avatar_latents(self, avatar_id: str, version: str) -> Float16:
        cached, store = self._latents, self._store
        # the store on a thread: a shared folder that stalls must not stop the event loop
        if not await asyncio.to_thread(
            store.exists, avatar_id
        ):  # never generate from, or keep, latents of a removed avatar
            for stale in [key for key in cached if key[0] == avatar_id]:
                del cached[stale]
        key = (avatar_id, version or await asyncio.to_thread(store.version, avatar_id))
        latents = cached.get(key)
        if latents is None:
            if await asyncio.to_thread(store.version, avatar_id) != key[1]:
                raise FencedError(f"The avatar {avatar_id!r} has been prepared again.", "Send the request again.")
            latents = cached[key] = (await self.worker.run(self._load_latents, avatar_id)).value
        return latents

    def _load_latents(self, avatar_id: str) -> Float16:
        avatar = self._store.load(avatar_id, frames=False)
        if avatar.vae_fingerprint != self.model.vae_fingerprint:
            raise ConfigError(
                f"The avatar {avatar_id!r} was prepared with another VAE ({avatar.vae_fingerprint}) than LipSync uses "
                f"({self.model.vae_fingerprint}).",
                f"Prepare it again: warmtalk prepare VIDEO --avatar-id {avatar_id} --force.",
            )
        assert avatar.latents is not None
        return avatar.latents
