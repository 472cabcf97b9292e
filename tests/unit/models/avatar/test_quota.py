"""The quota of avatars: their number, with those that wait or are written by any process, and their bytes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from models.avatar.drafts import hold_draft
from models.avatar.quota import AvatarQuota, size_of
from models.avatar.store import AvatarStore
from models.errors import DiskFullError, ExistsError, QuotaError
from tests.unit.models.avatar.test_store import fill


def limited(root: Path, max_avatars: float = 100, max_bytes: float = 1e9, builtin: Path | None = None) -> AvatarStore:
    return AvatarStore(root, builtin, quota=AvatarQuota(max_avatars, max_bytes))


def test_one_avatar_more_than_the_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = limited(tmp_path / "avatars", max_avatars=2, builtin=tmp_path / "builtin")
    fill(AvatarStore(tmp_path / "builtin"), "presenter")  # does not count
    fill(store, "one")
    fill(store, "two")
    with pytest.raises(QuotaError, match="There are 2 avatars, with those being prepared; the limit is 2") as caught:
        fill(store, "three")
    assert caught.value.status == 507 and "max_avatars of Avatars" in caught.value.remedy
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "one", "two"]
    fill(store, "two", seed=1, force=True)  # a replacement is not one more
    with pytest.raises(ExistsError):
        fill(store, "two")
    store.remove("one")
    fill(store, "three")


def test_those_that_wait_count_in_every_process_and_those_of_dead_processes_do_not(tmp_path: Path) -> None:
    one, two = limited(tmp_path, max_avatars=2), limited(tmp_path, max_avatars=2)
    (tmp_path / ".draft-dead.0.held").touch()
    with ExitStack() as waiting:
        waiting.enter_context(one.reserve("a"))
        waiting.enter_context(one.reserve("b"))
        with pytest.raises(QuotaError):
            two.reserve("c").__enter__()
        fill(two, "a")  # it has its place already
    fill(two, "c")
    assert two.ids() == ["a", "c"]


def test_without_room_for_more_bytes_nothing_is_begun(tmp_path: Path) -> None:
    store = limited(tmp_path)
    fill(store, "one")
    size = size_of(tmp_path / "one")
    full = limited(tmp_path, max_bytes=size)
    with pytest.raises(QuotaError, match=r"The avatars use 0\.\d\d GB; the limit is .* GB"):
        fill(full, "two")
    fill(limited(tmp_path, max_bytes=1.5 * size), "one", seed=1, force=True)  # the old one makes room


def test_an_avatar_that_becomes_too_large_is_deleted(tmp_path: Path) -> None:
    fill(limited(tmp_path / "other"), "one")
    size = size_of(tmp_path / "other" / "one")
    store = limited(tmp_path / "avatars", max_bytes=size - 1)
    with pytest.raises(QuotaError), store.write("one") as draft:
        (draft.folder / "frames.mp4").write_bytes(bytes(size - 2))
        draft.check_quota()
        (draft.folder / "latents.safetensors").write_bytes(b"12")
        draft.check_quota()
    assert [path.name for path in store.root.iterdir()] == [".lock"]
    with pytest.raises(QuotaError):
        fill(store, "one")
    assert store.ids() == []


def test_a_full_disk_leaves_the_old_avatar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = limited(tmp_path)
    fill(store, "one")
    version = store.version("one")
    real = Path.write_text

    def full(path: Path, *given: object, **options: object) -> int:
        if path.name == "avatar.json":
            raise OSError(28, "No space left on device")
        return real(path, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFullError, match="The disk is full: .* cannot be written"):
        fill(store, "one", seed=1, force=True)
    assert store.version("one") == version and store.load("one").avatar_id == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "one"]


def test_a_held_draft_is_released_once(tmp_path: Path) -> None:
    held = hold_draft(tmp_path / ".draft-a.0")
    held.release()
    held.release()
    assert list(tmp_path.iterdir()) == []
