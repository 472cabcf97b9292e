"""AvatarCache that Stitch has loaded: read anew when they change, not shown once they are removed."""

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


def test_a_face_is_read_once_a_version_and_not_spoken_with_once_it_is_removed():
    faces, store = AvatarCache(), Store(me="1", you="1")
    first = faces.load("me", store, CONFIG)
    assert faces.load("me", store, CONFIG) is first and store.reads == 1
    store.versions["me"] = "2"  # prepared anew
    assert faces.load("me", store, CONFIG).version == "2" and store.reads == 2
    del store.versions["me"]
    with pytest.raises(AvatarNotFound):
        faces.load("me", store, CONFIG)
    faces.load("you", store, CONFIG)
    faces.forget("me")
    assert list(faces._loaded) == [("you", "1")]


def test_it_is_known_who_speaks_with_which_face():
    faces = AvatarCache()
    with faces.speaking("alice", "me"), faces.speaking("bob", "you"), faces.speaking("carol", "me"):
        assert faces.sessions_speaking_with("me") == ["alice", "carol"] and faces.speaking_avatars() == {"me", "you"}
    assert faces.sessions_speaking_with("me") == [] and faces.speaking_avatars() == set()


def test_a_session_shows_what_is_wanted_else_its_own_else_the_usual_face():
    session = SimpleNamespace(session_id="alice", avatar_id="me")
    assert avatar_of(session, "you", "presenter", str.upper) == "YOU"
    assert avatar_of(session, None, "presenter", str.upper) == "ME"
    assert avatar_of(None, None, "presenter", str.upper) == "PRESENTER"


def test_a_session_whose_face_was_removed_says_so_and_a_face_that_never_was_is_not_found():
    session, store = SimpleNamespace(session_id="alice", avatar_id="me"), Store(presenter="1")
    for wanted in (None, "me"):
        with pytest.raises(ClosedError, match="'me', which the session 'alice' shows, was removed.*Open another"):
            avatar_of(session, wanted, "presenter", store.version)
    for where in (session, None):
        with pytest.raises(AvatarNotFound, match="no avatar 'nobody'"):
            avatar_of(where, "nobody", "presenter", store.version)
    assert avatar_of(session, "presenter", "presenter", store.version) == "1"
