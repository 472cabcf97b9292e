"""The LipSync stage: feature windows and an avatar's latents in, generated face crops out."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from configs.schema import LipSyncConfig
from deployments.batching import FrameBatcher, stacked
from deployments.common.keyed_lock import KeyedLock
from deployments.common.paths import builtin_avatars, cache_dir, input_path, output_path, set_inductor_cache
from deployments.common.requests import stage_call
from deployments.common.safe_batches import Computed
from deployments.common.stage import Stage, Stamped
from deployments.common.urgency import NO_HURRY, Urgency
from models.avatar.decoding import choose_decoder, own_faces
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.errors import ConfigError, FencedError
from models.mouth_gain import MouthGain
from models.runtime.registry import find_engine
from models.types import CROP_PX, CropWindow, FaceCrops, FeatureWindows, Float16, Float32, PreparedAvatar, UInt8

log = logging.getLogger("ray.serve")

FRAME_CACHE_BYTES = 64 << 20  # decoded frames per avatar; small, because each frame is read once, in order
READ_FRAMES = 16  # own faces that are read ahead at a time

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


class HeldAvatar(Protocol):
    """What an engine keeps of an avatar. window: what is decoded of its faces."""

    @property
    def window(self) -> CropWindow: ...

    @property
    def nbytes(self) -> int: ...


class FaceGenerator(Protocol):
    """Generates faces of held avatars: models/musetalk_cuda.py on CUDA, models/openvino_faces.py on a CPU."""

    exact_crops: bool
    whole_faces: bool

    def hold(self, latents: Float16, window: CropWindow = ..., statistics: Float32 | None = ...) -> HeldAvatar: ...

    def start(self, frames: list[Any]) -> Computed[UInt8]: ...

    def report(self) -> dict[str, Any]: ...


class OwnFaces:
    """The avatar's own faces, into which a decoded window is put. Each is read from the video when it is first used."""

    def __init__(self, avatar: PreparedAvatar) -> None:
        """avatar: with its frames."""
        self._avatar: PreparedAvatar | None = avatar  # until all have been read: it keeps decoded frames in memory
        self._faces = np.empty((len(avatar), CROP_PX, CROP_PX, 3), np.uint8)  # takes memory when it is written
        self._read = np.zeros(len(avatar), np.bool_)

    def read(self, indices: npt.NDArray[np.int64]) -> None:
        """Read the faces of these frames, unless they have been. No caller waits for the frames of another one."""
        avatar = self._avatar  # before `missing`: there is none only when no frame is missing any more
        missing = np.unique(indices[~self._read[indices]])
        if len(missing):
            assert avatar is not None
            self._faces[missing] = own_faces(avatar, missing.tolist())
            self._read[missing] = True

    def read_all(self) -> None:
        """Read the others too, a few at a time, so that no later session waits for them."""
        for start in range(0, len(self._read), READ_FRAMES):
            self.read(np.arange(start, min(start + READ_FRAMES, len(self._read))))
        self._avatar = None

    def around(self, windows: UInt8, indices: npt.NDArray[np.int64], window: CropWindow) -> UInt8:
        """Whole faces `(n, 256, 256, 3)` of frames that have been read, with these windows `(n, rows, columns, 3)`."""
        faces = self._faces[indices]
        window.cut(faces)[:] = windows
        return faces

    @property
    def nbytes(self) -> int:
        return self._faces.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAvatar:
    """What LipSync keeps of an avatar.

    latents: `(n, 8, 32, 32)`. held: what the engine keeps of them, if it keeps anything. own: where the engine gives
    only `held.window`. decoding: how the faces are decoded, and why.
    """

    latents: Float16
    decoding: str
    held: HeldAvatar | None = None
    own: OwnFaces | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.latents, self.held, self.own) if part is not None)

    def decoded(self, face: UInt8) -> UInt8:
        """Of a whole face, what this avatar's frames need."""
        return face if self.own is None or self.held is None else self.held.window.cut(face[None])[0]


Frame = tuple[LoadedAvatar, int, Float16, Float16 | None]  # avatar, its frame, window and resting window (50, 384)


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
        self._avatars: LRUCache[tuple[str, str], LoadedAvatar] = LRUCache(1)  # by avatar id and version
        self._loading = KeyedLock()  # by avatar id
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
        if changed is None or changed & (MODEL_KEYS | {"compile", "batch_size", "mouth_amplitude"}):
            gain = config.mouth_amplitude
            self._mouth_gain = None if gain == 1 else MouthGain(self.model, gain)
            self._faces: FaceGenerator | None = None if gain != 1 else getattr(self.model, "recorded", None)
        if changed is None or changed - {"batch_wait_ms"}:
            self._decode = config.decode
            limit = config.avatar_memory_mb << 20
            # a new object: the event loop may be using the old one. An avatar that is too large is alone
            self._avatars = LRUCache(limit, lambda avatar: min(avatar.nbytes, limit))
        if self._mouth_gain is not None and config.compile != "off":
            log.warning("LipSync: mouth_amplitude %g disables compile: %s", config.mouth_amplitude, config.compile)
        self._store = AvatarStore(output_path(config.avatars_dir), builtin_avatars(), FRAME_CACHE_BYTES)
        new_engine = changed is None or bool(changed & (MODEL_KEYS | {"compile", "mouth_amplitude"}))
        self._batcher.configure(config.batch_size, config.batch_wait_ms / 1e3, new_engine)

    @stage_call
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
        avatar = await self._avatar(avatar_id, avatar_version)
        indices = ping_pong(position, count, len(avatar.latents))
        windows = features.value.windows[start : start + count]
        rest = features.value.rest
        frames = [(avatar, index, window, rest) for index, window in zip(indices.tolist(), windows, strict=True)]
        loading_s = time.perf_counter() - began_s  # of an avatar that was not in memory; counted as queue time
        generating = self._batcher.submit(frames, urgency.after(loading_s), session_id)
        if avatar.own is None:
            done = await generating
            faces = stacked(done.results)
        else:
            assert avatar.held is not None
            done, _ = await asyncio.gather(generating, asyncio.to_thread(avatar.own.read, indices))
            faces = avatar.own.around(stacked(done.results), indices, avatar.held.window)
        crops = FaceCrops(faces, first_frame, avatar_id, indices)
        timing = self.meter.record_call(count, received_s, loading_s + done.queue_s, done.compute_s, done.busy_s)
        return Stamped(crops, (timing,))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics for deployments.common.autoscaling:ByDeadline; Serve's controller calls this."""
        return self._batcher.load_metrics(self._start_s)

    async def stats(self) -> dict[str, Any]:
        """As for every stage, and counts of UNet calls, their frames, and the calls that several sessions share.

        avatars: which decoder makes their faces, and why. networks: how long recorded ones take, see CudaFaces.
        """
        avatars = {avatar_id: avatar.decoding for (avatar_id, _), avatar in list(self._avatars.items())}
        faces = self._faces if self._configured else None  # once: `apply` may change it
        networks = {} if faces is None else faces.report()
        return {**await super().stats(), **self._batcher.counts(), "avatars": avatars, "networks": networks}

    def _generate(self, frames: list[Frame]) -> Computed[UInt8]:
        """On the compute thread: faces `(256, 256, 3)`, or a function that waits for them."""
        if (faces := self._faces) is not None:
            # an avatar that was loaded before the networks were recorded has whole faces
            return faces.start(
                [(avatar.held or faces.hold(avatar.latents), index, window) for avatar, index, window, _ in frames]
            )
        latents = np.stack([avatar.latents[index] for avatar, index, _, _ in frames])  # (n, 8, 32, 32)
        windows = np.stack([window for _, _, window, _ in frames])  # (n, 50, 384)
        resting = frames[0][3]  # the same in all requests
        if self._mouth_gain is not None and resting is not None:
            made = self._mouth_gain.generate(latents, windows, resting)
        else:
            made = self.model.generate(latents, windows)  # (n, 256, 256, 3)
        return [avatar.decoded(face) for (avatar, *_), face in zip(frames, made, strict=True)]

    async def _avatar(self, avatar_id: str, version: str) -> LoadedAvatar:
        cached, store = self._avatars, self._store
        # the store on a thread: a shared folder that stalls must not stop the event loop
        if not await asyncio.to_thread(
            store.exists, avatar_id
        ):  # never generate from, or keep, latents of a removed avatar
            for stale in [key for key in cached if key[0] == avatar_id]:
                del cached[stale]
        key = (avatar_id, version or await asyncio.to_thread(store.version, avatar_id))
        self.meter.record_cache(hit=key in cached)
        if (avatar := cached.get(key)) is not None:
            return avatar
        async with self._loading.hold(avatar_id):  # sessions that begin at once load it once
            if (avatar := cached.get(key)) is not None:
                return avatar
            # with checksums of all files: other sessions' frames need the compute thread meanwhile
            prepared = await asyncio.to_thread(store.load, avatar_id, frames=self._puts_windows)
            if prepared.version != key[1]:
                raise FencedError(f"The avatar {avatar_id!r} has been prepared again.", "Send the request again.")
            # it may record a new window
            loading = self.worker.run_long(self.config.load_limit_s, self._hold_avatar, prepared)
            avatar = cached[key] = (await loading).value
        log.info("LipSync: avatar %r: the decoder is %s", avatar_id, avatar.decoding)
        if avatar.own is not None:
            asyncio.get_running_loop().run_in_executor(None, avatar.own.read_all)
        return avatar

    @property
    def _puts_windows(self) -> bool:
        """Whether this stage puts what the engine decodes into the avatar's own faces, and so needs its frames."""
        return self._faces is not None and not self._faces.whole_faces

    def _hold_avatar(self, avatar: PreparedAvatar) -> LoadedAvatar:
        """On the compute thread."""
        faces = self._faces
        if avatar.vae_fingerprint != self.model.vae_fingerprint:
            raise ConfigError(
                f"The avatar {avatar.avatar_id!r} was prepared with another VAE ({avatar.vae_fingerprint}) than "
                f"LipSync uses ({self.model.vae_fingerprint}).",
                f"Prepare it again: warmtalk prepare VIDEO --avatar-id {avatar.avatar_id} --force.",
            )
        assert avatar.latents is not None
        if faces is None:
            return LoadedAvatar(avatar.latents, "full: this engine does not crop this decoder, see `decode`")
        window, why = choose_decoder(self._decode, avatar, faces.exact_crops)
        if window is not None and not faces.exact_crops and self.model.decoder is not self.model.vae:
            window, why = None, "full: the avatar's statistics are those of `vae_dir`, not of `decoder_dir`"
        if window is None:
            return LoadedAvatar(avatar.latents, why, faces.hold(avatar.latents))
        statistics = None if avatar.decoding is None else avatar.decoding.statistics
        held = faces.hold(avatar.latents, window, statistics)
        own = OwnFaces(avatar) if self._puts_windows and avatar.frames is not None else None
        return LoadedAvatar(avatar.latents, why, held, own)
