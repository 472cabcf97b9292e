"""Loaded avatars: cached by version, and not used after their removal."""

from types import SimpleNamespace

import pytest

from configs.schema import StitchConfig
from deployments.stitch import avatar_cache as module
from deployments.stitch.avatar_cache import AvatarCache, avatar_of
from models.errors import AvatarNotFound, ClosedError


class Store:
    """Avatars by id, with their versions; counts what is read."""

    def __init__(self, **versions: str) -> None:
        self.versions, self.reads = versions, 0

    def version(self, avatar_id: str) -> str:
        if avatar_id not in self.versions:
            raise AvatarNotFound(f"There is no avatar {avatar_id!r}.", "Prepare it.")
        return self.versions[avatar_id]

    def load(self, avatar_id: str, latents: bool) -> SimpleNamespace:
        self.reads += 1
        return SimpleNamespace(avatar_id=avatar_id, version=self.version(avatar_id))


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(module, "load_avatar", lambda prepared, config: prepared)


CONFIG = StitchConfig(cached_avatars=2)


def test_an_avatar_is_loaded_once_per_version_and_not_after_its_removal():
    cache, store = AvatarCache(), Store(me="1", you="1")
    first = cache.load("me", store, CONFIG)
    assert cache.load("me", store, CONFIG) is first and store.reads == 1
    store.versions["me"] = "2"  # prepared again
    assert cache.load("me", store, CONFIG).version == "2" and store.reads == 2
    del store.versions["me"]
    with pytest.raises(AvatarNotFound):
        cache.load("me", store, CONFIG)
    cache.load("you", store, CONFIG)
    cache.forget("me")
    assert list(cache._loaded) == [("you", "1")]


def test_a_full_cache_drops_the_avatar_that_was_used_least_recently():
    cache, store = AvatarCache(), Store(a="1", b="1", c="1")
    for avatar_id in ("a", "b", "a", "c"):
        cache.load(avatar_id, store, CONFIG)
    assert store.reads == 3
    cache.load("a", store, CONFIG)
    assert store.reads == 3
    cache.load("b", store, CONFIG)
    assert store.reads == 4
    for avatar_id in ("b", "a"):  # a smaller cache keeps the latest
        cache.load(avatar_id, store, StitchConfig(cached_avatars=1))
    assert store.reads == 5


def test_the_sessions_that_speak_with_an_avatar_are_known():
    cache = AvatarCache()
    with cache.speaking("alice", "me"), cache.speaking("bob", "you"), cache.speaking("carol", "me"):
        assert cache.sessions_speaking_with("me") == ["alice", "carol"] and cache.speaking_avatars() == {"me", "you"}
    assert cache.sessions_speaking_with("me") == [] and cache.speaking_avatars() == set()


def test_a_session_shows_the_requested_avatar_else_its_own_else_the_default():
    session = SimpleNamespace(session_id="alice", avatar_id="me")
    assert avatar_of(session, "you", "presenter", str.upper) == "YOU"
    assert avatar_of(session, None, "presenter", str.upper) == "ME"
    assert avatar_of(None, None, "presenter", str.upper) == "PRESENTER"


def test_a_session_whose_avatar_was_removed_is_closed_and_an_unknown_avatar_is_not_found():
    session, store = SimpleNamespace(session_id="alice", avatar_id="me"), Store(presenter="1")
    for wanted in (None, "me"):
        with pytest.raises(ClosedError, match="The avatar 'me' of the session 'alice' was removed.*Open another"):
            avatar_of(session, wanted, "presenter", store.version)
    for where in (session, None):
        with pytest.raises(AvatarNotFound, match="no avatar 'nobody'"):
            avatar_of(where, "nobody", "presenter", store.version)
    assert avatar_of(session, "presenter", "presenter", store.version) == "1"
