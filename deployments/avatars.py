"""The Avatars stage: prepares avatars from videos, lists and removes them. It is not part of the speech pipeline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from configs.schema import AvatarsConfig
from deployments.common.paths import builtin_avatars, input_path, output_path
from deployments.common.requests import stage_call
from deployments.common.stage import Stage
from deployments.preparation import (
    SMOOTHING_KEYS,
    load_model,
    prepare_command,
    prepare_options,
    prepare_video,
    quota_of,
)
from models.avatar.poster import poster
from models.avatar.prepare import PrepareOptions, PrepareReport, Progress
from models.avatar.store import AvatarStore, file_sha256
from models.errors import AvatarNotFound, InputError, VideoError
from models.runtime.ids import check_id
from models.weights.vae_files import vae_fingerprint

# settings that a stored avatar must share with the config, with the values of avatars stored before they existed
SETTINGS = {"bbox_shift": 0, "extra_margin": 10, "fps": 25, "geometry": "similarity", "detector": "blazemesh"}
MASK_SETTINGS = {"parsing_mode": "jaw", "cheek_width": 90}  # for geometry `musetalk`
CACHED_POSTERS = 256  # 10 KB each


class _AbandonedError(Exception):
    """Ends a preparation whose caller has disconnected."""


class Avatars(Stage[AvatarsConfig]):
    stage = "Avatars"

    def __init__(self) -> None:
        super().__init__()
        self._posters: LRUCache[tuple[str, str], bytes] = LRUCache(CACHED_POSTERS)  # by avatar id and version

    def apply(self, config: AvatarsConfig, changed: set[str] | None) -> None:
        if changed is None or changed & {"vae_dir", "unet_config", "unet_weights", "device", "dtype"}:
            self._model: Any = None  # loaded at the first preparation, since most replicas never need it
        roots = output_path(config.avatars_dir), builtin_avatars()
        self._store = AvatarStore(*roots)
        self._store.clean()
        self._prepare_configured(config)  # without a quota: at the limit, this replica must start
        self._store = AvatarStore(*roots, quota=quota_of(config))

    @stage_call
    async def prepare(
        self, source: str, avatar_id: str, force: bool = False, options: dict[str, Any] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Prepare an avatar from the video or picture at `source`, a path that this replica can read.

        Yields `{"step", "done", "total"}` as progress, and at the end `{"report": {...}}`. options: overrides of
        PreparationOptions. Closing the generator stops the preparation and leaves no files. Raises IdError,
        ExistsError, QuotaError, DiskFullError, VideoError, NoFaceError.
        """
        await self.ready()
        with ExitStack() as stack:  # from now on it counts in the quota, while it waits for the compute thread as well
            await asyncio.to_thread(stack.enter_context, self._store.reserve(avatar_id, force))
            async with aclosing(self._progress(source, avatar_id, force, options)) as events:
                async for event in events:
                    yield event

    async def _progress(
        self, source: str, avatar_id: str, force: bool, options: dict[str, Any] | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        loop, events, closed = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]](), threading.Event()

        def progress(step: str, done: int, total: int) -> None:
            if closed.is_set():
                raise _AbandonedError
            self.worker.progressed()
            loop.call_soon_threadsafe(events.put_nowait, {"step": step, "done": done, "total": total})

        chosen = prepare_options(self.config, options or {})
        limit_s = self.config.hung_after_s
        work = asyncio.create_task(
            self.worker.run_long(limit_s, self._prepare, self.config, Path(source), avatar_id, chosen, force, progress)
        )
        getter = asyncio.create_task(events.get())
        try:
            while not work.done() or getter.done() or not events.empty():
                await asyncio.wait({getter, work}, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    event, getter = getter.result(), asyncio.create_task(events.get())
                    yield event
            yield {"report": work.result().value.to_dict()}
        finally:
            closed.set()
            getter.cancel()
            work.cancel()

    async def list(self) -> list[dict[str, Any]]:
        """Facts about every avatar: id, version, fps, size, frames, and whether it can be removed."""
        await self.ready()
        store, configured = self._store, self._configured_avatar()
        keys = ("version", "fps", "width", "height", "frames")

        def facts_of(avatar_id: str) -> dict[str, Any] | None:
            try:
                facts = store.describe(avatar_id)
            except AvatarNotFound:  # removed since ids() listed it
                return None
            removable = store.owns(avatar_id) and avatar_id != configured
            return {"avatar_id": avatar_id, **{key: facts[key] for key in keys}, "removable": removable}

        # not on the compute thread, which may be busy with a preparation for minutes
        found = await asyncio.to_thread(lambda: [facts_of(avatar_id) for avatar_id in store.ids()])
        return [facts for facts in found if facts is not None]

    async def remove(self, avatar_id: str, needed: str = "") -> None:
        """Delete an avatar permanently. needed: the default avatar of sessions, which must stay.

        Raises IdError, AvatarNotFound, and InputError for an avatar that cannot be removed.
        """
        await self.ready()
        store = self._store
        check_id(avatar_id, "avatar id")
        if avatar_id == self._configured_avatar():
            raise InputError(
                f"The avatar {avatar_id!r} is prepared from video_path at each start, so it would be prepared again.",
                "First remove video_path of Avatars from the config file.",
            )
        if avatar_id == needed and store.owns(avatar_id) and not store.is_builtin(avatar_id):
            raise InputError(
                f"The avatar {avatar_id!r} is the default of new sessions.",
                "First set another avatar_id of Stitch in the config file.",
            )
        await asyncio.to_thread(store.remove, avatar_id)
        for key in [key for key in self._posters if key[0] == avatar_id]:
            del self._posters[key]

    def _configured_avatar(self) -> str | None:
        """The id of the avatar that is prepared at start, if any."""
        return self.config.avatar_id if self.config.video_path is not None else None

    async def poster(self, avatar_id: str) -> bytes:
        """A small JPEG of the avatar's face. Raises IdError, AvatarNotFound, CorruptError."""
        await self.ready()
        store = self._store
        key = (avatar_id, await asyncio.to_thread(store.version, avatar_id))
        if key not in self._posters:
            self._posters[key] = await asyncio.to_thread(lambda: poster(store.load(avatar_id, latents=False)))
        return self._posters[key]

    def _prepare_configured(self, config: AvatarsConfig) -> None:
        """Prepare the configured avatar if it is missing or outdated; without `preparation`, raise AvatarNotFound."""
        if config.video_path is None:
            return
        source = input_path(config.video_path)
        if not source.is_file():
            raise VideoError(f"The input video {config.video_path!r} was not found.", "Check video_path of Avatars.")
        if self._is_current(config, source):
            return
        if not config.preparation:
            raise AvatarNotFound(
                f"The avatar {config.avatar_id!r} is missing or outdated.", f"Run: {prepare_command(config)}"
            )
        options = prepare_options(config, {})
        self._prepare(config, source, config.avatar_id, options, True, lambda step, done, total: None)

    def _is_current(self, config: AvatarsConfig, source: Path) -> bool:
        """Whether the stored avatar was prepared from this video with these settings and this VAE."""
        if not self._store.exists(config.avatar_id):
            return False
        facts = self._store.describe(config.avatar_id)
        with source.open("rb") as file:
            same = facts.get("source", {}).get("sha256") == file_sha256(file)
        settings = facts.get("settings", {})
        needed = SETTINGS | MASK_SETTINGS if config.geometry == "musetalk" else SETTINGS
        same &= all(settings.get(key, default) == getattr(config, key) for key, default in needed.items())
        # avatars stored before these settings existed stay valid
        same &= all(settings[key] == getattr(config, key) for key in SMOOTHING_KEYS if key in settings)
        return same and facts.get("vae_fingerprint") == vae_fingerprint(input_path(config.vae_dir))

    def _prepare(
        self,
        config: AvatarsConfig,
        source: Path,
        avatar_id: str,
        options: PrepareOptions,
        force: bool,
        progress: Progress,
    ) -> PrepareReport:
        if self._model is None:
            self._model = load_model(config)
        return prepare_video(config, self._model, source, avatar_id, self._store, options, force, progress)
