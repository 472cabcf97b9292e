"""The avatars that a Stitch replica has loaded, and what its config makes of them: paster, mouth, media spec."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cachetools import LRUCache

from configs.schema import StitchConfig
from deployments.common.metrics import increment
from models.avatar.store import AvatarStore
from models.errors import AvatarNotFound, ClosedError, ResetNeededError
from models.media.encode import MediaSpec, init_segment
from models.media.h264 import choose_encoder, with_encoder
from models.stitch.crop_filter import WHOLE_CROP, CropFilter, pasted_box
from models.stitch.mouth import Mouth
from models.stitch.paste import Paster
from models.stitch.rest import RestSettings, own_mouth_rests
from models.stitch.session import SessionFile
from models.types import Box, PreparedAvatar

PASTE_KEYS = {"blend_mode", "color_match", "sharpness_match", "jaw_follow"}  # config keys that need new pasters


@dataclass(frozen=True, slots=True)
class LoadedAvatar:
    """A prepared avatar with its frames, and pasters for them."""

    prepared: PreparedAvatar
    paster: Paster
    mouth_rests: bool = True  # the mouth keeps still in the avatar's own frames
    visible_box: Box = WHOLE_CROP  # the part of a crop that a paste can show
    _free: deque[Paster] = field(default_factory=deque, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._free.append(self.paster)

    @contextmanager
    def borrow_paster(self) -> Iterator[Paster]:
        """A paster for one thread alone: the one returned last, else a new clone. Thread-safe."""
        try:
            paster = self._free.pop()
        except IndexError:
            paster = self.paster.clone()
        try:
            yield paster
        finally:
            self._free.append(paster)


class AvatarCache:
    """An LRU cache of loaded avatars, and which session speaks with which avatar.

    `load`, `clear` and `forget` run on the compute thread, the rest on the event loop.
    """

    def __init__(self) -> None:
        self._loaded: LRUCache[tuple[str, str], LoadedAvatar] = LRUCache(maxsize=1)  # by id and version
        self._speaking: dict[str, str] = {}  # session id → avatar id

    def load(self, avatar_id: str, store: AvatarStore, config: StitchConfig) -> LoadedAvatar:
        """The avatar as it is on disk now, ready for pasting. Raises AvatarNotFound, CorruptError, IdError."""
        if self._loaded.maxsize != config.cached_avatars:
            self._resize(config.cached_avatars)
        key = (avatar_id, store.version(avatar_id))
        avatar = self._loaded.get(key)
        increment(f"warmtalk_cache_{'misses' if avatar is None else 'hits'}_total", stage="Stitch")
        if avatar is None:
            avatar = self._loaded[key] = load_avatar(store.load(avatar_id, latents=False), config)
        return avatar

    def _resize(self, capacity: int) -> None:
        loaded: LRUCache[tuple[str, str], LoadedAvatar] = LRUCache(capacity)
        while self._loaded:
            key, avatar = self._loaded.popitem()  # the least recently used first
            loaded[key] = avatar
        self._loaded = loaded

    def clear(self) -> None:
        self._loaded.clear()

    def forget(self, avatar_id: str) -> None:
        """Drop all versions of an avatar."""
        for key in [key for key in self._loaded if key[0] == avatar_id]:
            del self._loaded[key]

    @contextmanager
    def speaking(self, session_id: str, avatar_id: str) -> Iterator[None]:
        """Record that the session speaks with the avatar while the block runs."""
        self._speaking[session_id] = avatar_id
        try:
            yield
        finally:
            del self._speaking[session_id]

    def sessions_speaking_with(self, avatar_id: str) -> list[str]:
        return [session_id for session_id, speaking in self._speaking.items() if speaking == avatar_id]

    def speaking_avatars(self) -> set[str]:
        """Ids of the avatars that some session speaks with now."""
        return set(self._speaking.values())


def load_avatar(prepared: PreparedAvatar, config: StitchConfig) -> LoadedAvatar:
    """A prepared avatar with its paster. Raises ConfigError for an unknown blend mode."""
    paster = Paster(
        prepared,
        config.blend_mode,
        color_match=config.color_match,
        sharpness_match=config.sharpness_match,
        jaw_follow=config.jaw_follow,
    )
    return LoadedAvatar(prepared, paster, own_mouth_rests(prepared), pasted_box(prepared))


def avatar_of(
    session: SessionFile | None, requested: str | None, default: str, load: Callable[[str], LoadedAvatar]
) -> LoadedAvatar:
    """The avatar of a request: the requested one, else the session's own, else the default.

    Raises ClosedError if the session's own avatar was removed since the session was opened; AvatarNotFound.
    """
    own = session.avatar_id if session is not None else ""
    avatar_id = requested or own or default
    try:
        return load(avatar_id)
    except AvatarNotFound as error:
        if session is None or avatar_id != own:
            raise
        raise ClosedError(
            f"The avatar {own!r} of the session {session.session_id!r} was removed.",
            "Open another session. The video of this one stays until the session is deleted.",
        ) from error


def mouth_of(avatar: LoadedAvatar, config: StitchConfig, fps: int) -> Mouth:
    """The mouth of one utterance: its rest pose settings and its temporal filter."""
    source_rests = avatar.mouth_rests if config.rest_mouth == "auto" else config.rest_mouth == "source"
    times_s = (config.rest_fade_ms / 1e3, config.rest_pause_ms / 1e3, config.av_offset_ms / 1e3)
    rest = RestSettings(*times_s, source_rests=source_rests)
    return Mouth(fps, rest, CropFilter(avatar.visible_box) if config.steady_crops else None)


def media_spec(prepared: PreparedAvatar, config: StitchConfig) -> MediaSpec:
    """How a new session of the avatar is encoded. Raises ConfigError."""
    spec = MediaSpec.for_source(
        prepared.width,
        prepared.height,
        prepared.fps,
        sample_rate_hz=config.sample_rate_hz,
        crf=config.crf,
        preset=config.preset,
        first_fragment_frames=config.first_chunk_frames,
        fragment_frames=config.chunk_frames,
    )
    return with_encoder(spec, choose_encoder(config.encoder)[0])


def spec_of(session: SessionFile | None, prepared: PreparedAvatar, config: StitchConfig) -> MediaSpec:
    """How the next utterance is encoded: as the session's video, or, without video, as a new session.

    Raises ResetNeededError if the avatar was prepared again with another format than the video's, or if the encoder
    now makes video that does not fit to the beginning of the file.
    """
    new = media_spec(prepared, config)
    if session is None or not session.frames:
        return new
    spec = session.spec
    if (spec.width, spec.height, spec.fps) != (new.width, new.height, new.fps):
        raise ResetNeededError(
            f"The avatar {prepared.avatar_id!r} was prepared again with {new.width}×{new.height} px at {new.fps} fps; "
            f"the video of the session {session.session_id!r} has {spec.width}×{spec.height} px at {spec.fps} fps.",
            _reset_remedy(session),
        )
    if init_segment(spec) != session.init_segment:  # players would decode it with the wrong parameter sets
        raise ResetNeededError(
            f"The video of the session {session.session_id!r} was begun by another version, whose encoder had other "
            "settings.",
            _reset_remedy(session),
        )
    return spec


def _reset_remedy(session: SessionFile) -> str:
    return f"Use another session_id, or empty this session: GET /reset?session_id={session.session_id}."
