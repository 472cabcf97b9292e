"""The avatars that a Stitch replica has loaded, and the sessions that speak with them. Knows no stage and no HTTP."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.schema import StitchConfig
from deployments.stitch.pasting import loaded
from deployments.stitch.utterance import LoadedAvatar
from models.avatar.store import AvatarStore
from models.errors import AvatarNotFound, ClosedError
from models.stitch.session import SessionFile


class Faces:
    """Loaded avatars, the latest used last. `load`, `clear` and `forget` belong to the compute thread."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[str, str], LoadedAvatar] = OrderedDict()  # by id and version
        self._speaking: dict[str, str] = {}  # sessions, and whose face says what they say

    def load(self, avatar_id: str, store: AvatarStore, config: StitchConfig) -> LoadedAvatar:
        """The avatar as it is on disk now, ready to be pasted into. Raises AvatarNotFound, CorruptError, IdError."""
        key = (avatar_id, store.version(avatar_id))
        if key not in self._loaded:
            self._loaded[key] = loaded(store.load(avatar_id, latents=False), config)
            while len(self._loaded) > config.cached_avatars:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def clear(self) -> None:
        self._loaded.clear()

    def forget(self, avatar_id: str) -> None:
        """Keep nothing of an avatar in memory."""
        for key in [key for key in self._loaded if key[0] == avatar_id]:
            del self._loaded[key]

    @contextmanager
    def speaking(self, session_id: str, avatar_id: str) -> Iterator[None]:
        """While it lasts, the session speaks with the avatar. A session says one thing at a time."""
        self._speaking[session_id] = avatar_id
        try:
            yield
        finally:
            del self._speaking[session_id]

    def speaking_with(self, avatar_id: str) -> list[str]:
        """Sessions that speak with the avatar."""
        return [session_id for session_id, face in self._speaking.items() if face == avatar_id]

    def all_speaking(self) -> set[str]:
        """Avatars that somebody speaks with."""
        return set(self._speaking.values())


def face_of(
    session: SessionFile | None, wanted: str | None, usual: str, load: Callable[[str], LoadedAvatar]
) -> LoadedAvatar:
    """The avatar that a session shows: the wanted one, else that which it was opened with, else the usual one.

    Raises ClosedError where the session's own avatar was removed since; AvatarNotFound.
    """
    own = session.avatar_id if session is not None else ""
    avatar_id = wanted or own or usual
    try:
        return load(avatar_id)
    except AvatarNotFound as error:
        if session is None or avatar_id != own:
            raise
        raise ClosedError(
            f"The avatar {own!r}, which the session {session.session_id!r} shows, was removed.",
            "Open another session; what this one has said can still be seen, until it is deleted, too.",
        ) from error
