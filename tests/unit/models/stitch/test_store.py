"""The sessions below one folder: separated by id, created and removed atomically."""

from pathlib import Path

import pytest

from models.errors import ExistsError, IdError, SessionNotFound
from models.stitch.store import SessionStore
from tests.support.session import SPEC, speak


def test_a_store_keeps_sessions_apart(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "sessions")
    ann, bob = store.create("ann", SPEC), store.open_or_create("bob", SPEC, "presenter", "3")
    speak(ann)
    assert (store.open("ann").frames, store.open("bob").frames) == (10, 0)
    assert store.list() == ["ann", "bob"] and store.open("bob").avatar_id == "presenter"
    assert store.path("bob") == bob.path == tmp_path / "sessions" / "bob" / "full_session.mp4"
    with pytest.raises(SessionNotFound, match="default"):
        store.path()
    with pytest.raises(ExistsError):
        store.create("ann", SPEC)
    for wrong in ("../bob", "Ann", "", "a/b"):
        with pytest.raises(IdError):
            store.open(wrong)


def test_a_failed_creation_leaves_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.replace

    def crash(path: Path, target: Path) -> Path:
        if target.name == "session.json":
            raise KeyboardInterrupt
        return real(path, target)

    store = SessionStore(tmp_path)
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.create("ann", SPEC)
    monkeypatch.undo()
    assert store.list() == [] and not store.exists("ann")
    speak(store.create("ann", SPEC))
    assert store.open("ann").frames == 10


def test_what_a_killed_remover_left_is_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SessionStore(tmp_path)
    speak(store.create("ann", SPEC))
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *given, **options: None)
        store.remove("ann")
    (left,) = tmp_path.iterdir()
    assert store.list() == [] and (left / "full_session.mp4").stat().st_size > 0
    store.create("bob", SPEC)
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["bob"]
