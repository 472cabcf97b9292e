"""models.avatar.store: avatars on disk, written completely or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.avatar import store as store_module
from models.avatar import swap
from models.avatar.drafts import hold_draft
from models.avatar.store import FRAMES, GEOMETRY, LATENTS, MASKS, META, AvatarStore, Draft
from models.errors import AvatarNotFound, CorruptError, ExistsError, IdError, InputError
from models.media.frames import write_frames
from models.types import CroppedDecoding, CropWindow
from tests.support.avatar import astronaut

N = 5


def fill(store: AvatarStore, avatar_id: str = "ada", seed: int = 0, masks: int = 1, force: bool = False) -> dict:
    """Write an avatar of random numbers; return the numbers."""
    random = np.random.default_rng(seed)
    arrays = {
        "transforms": random.normal(size=(N, 2, 3)).astype(np.float32),
        "landmarks": random.normal(size=(N, 68, 2)).astype(np.float32),
        "has_face": random.random(N) < 0.7,
        "masks": random.integers(0, 256, (masks, 256, 256)).astype(np.uint8),
        "mask_index": (np.arange(N) % masks).astype(np.int32),
        "latents": random.normal(size=(N, 8, 32, 32)).astype(np.float16),
    }
    with store.write(avatar_id, force) as draft:
        write_frames(draft.folder / FRAMES, [np.roll(astronaut(), 7 * k + seed, 1) for k in range(N)], 25)
        draft.write_geometry(*(arrays[k] for k in ("transforms", "landmarks", "has_face", "masks", "mask_index")))
        draft.write_latents(arrays["latents"])
        draft.meta |= {"fps": 25, "width": 300, "height": 300, "frames": N, "vae_fingerprint": "vae-1"}
        draft.meta["facts"] = {"cuts": [2, 3]}
    return arrays


@pytest.fixture()
def store(tmp_path: Path) -> AvatarStore:
    return AvatarStore(tmp_path / "avatars")


@pytest.mark.parametrize("masks", [1, 3, 5])
def test_an_avatar_is_loaded_as_written(store: AvatarStore, masks: int) -> None:
    arrays = fill(store, masks=masks)
    avatar = store.load("ada")
    for name in ("transforms", "landmarks", "has_face", "latents"):
        assert np.array_equal(getattr(avatar, name), arrays[name]), name
        assert getattr(avatar, name).dtype == arrays[name].dtype
    assert np.array_equal(avatar.masks, arrays["masks"][arrays["mask_index"]])
    assert (avatar.fps, avatar.width, avatar.height, avatar.vae_fingerprint) == (25, 300, 300, "vae-1")
    assert len(avatar) == len(avatar.frames) == N and avatar.cuts == (2, 3)
    assert avatar.frames[3].shape == (300, 300, 3)


def test_latents_and_frames_are_read_only_on_request(store: AvatarStore) -> None:
    fill(store)
    (store.folder("ada") / LATENTS).unlink()
    (store.folder("ada") / FRAMES).unlink()
    avatar = store.load("ada", latents=False, frames=False)
    assert avatar.latents is None and avatar.frames is None and len(avatar) == N


def test_a_shared_mask_is_not_copied_per_frame(store: AvatarStore) -> None:
    fill(store)
    masks = store.load("ada").masks
    assert masks.shape == (N, 256, 256) and masks.strides[0] == 0


def test_arrays_are_read_only(store: AvatarStore) -> None:
    fill(store)
    avatar = store.load("ada")
    for array in (avatar.transforms, avatar.landmarks, avatar.masks, avatar.has_face, avatar.latents):
        assert not array.flags.writeable


def test_files_are_synced_before_the_avatar_appears(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the draft with its files, then, after the rename, the folder of all avatars."""
    sync, calls = swap.sync_folder, []

    def record(folder: Path, files: bool = True) -> None:
        calls.append((folder.name.startswith(".draft-ada"), files, store.exists("ada")))
        sync(folder, files)

    monkeypatch.setattr(store_module, "sync_folder", record)
    fill(store)
    assert calls == [(True, True, False), (False, False, True)]


def test_ids_are_sorted_and_other_folders_ignored(store: AvatarStore) -> None:
    assert store.ids() == []
    for name in ("zoe", "ada"):
        fill(store, name)
    (store.root / "no-avatar").mkdir()
    (store.root / ".draft-bob.0.0.0").mkdir()
    assert store.ids() == ["ada", "zoe"]
    assert store.exists("ada") and not store.exists("no-avatar")


def test_an_unknown_id_names_the_known_ones_and_the_command(store: AvatarStore) -> None:
    fill(store)
    with pytest.raises(AvatarNotFound, match=r"known avatars: ada.*warmtalk prepare VIDEO --avatar-id bob"):
        store.load("bob")


@pytest.mark.parametrize("avatar_id", ["", "Ada", "../ada", "a" * 65, "a b", ".draft", "ä"])
def test_invalid_ids_are_refused(store: AvatarStore, avatar_id: str) -> None:
    for call in (store.load, store.exists, store.describe, store.remove):
        with pytest.raises(IdError):
            call(avatar_id)
    with pytest.raises(IdError), store.write(avatar_id):
        pass


def test_an_existing_id_needs_force(store: AvatarStore) -> None:
    fill(store)
    before = store.version("ada")
    with pytest.raises(ExistsError, match="--force"):
        fill(store, seed=1)
    assert store.version("ada") == before
    fill(store, seed=1, force=True)
    assert store.version("ada") != before


def test_the_version_depends_only_on_the_content(store: AvatarStore, tmp_path: Path) -> None:
    fill(store)
    other = AvatarStore(tmp_path / "elsewhere")
    fill(other)
    assert store.version("ada") == other.version("ada")
    ours, theirs = store.folder("ada"), other.folder("ada")
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in (META, GEOMETRY, MASKS, FRAMES))


@pytest.mark.parametrize("name", [GEOMETRY, LATENTS, MASKS, FRAMES])
def test_a_flipped_bit_is_found_and_named(store: AvatarStore, name: str) -> None:
    fill(store)
    path = store.folder("ada") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=rf"{name} of avatar 'ada' does not match.*--force"):
        store.load("ada")
    with pytest.raises(CorruptError, match=name):
        store.check("ada")


@pytest.mark.parametrize("name", [GEOMETRY, LATENTS, MASKS, FRAMES])
def test_a_missing_file_is_found_and_named(store: AvatarStore, name: str) -> None:
    fill(store)
    (store.folder("ada") / name).unlink()
    with pytest.raises(CorruptError, match=name):
        store.load("ada")


@pytest.mark.parametrize("change", ["edit", "cut", "format"])
def test_a_changed_avatar_json_is_found(store: AvatarStore, change: str) -> None:
    fill(store)
    path = store.folder("ada") / META
    meta = json.loads(path.read_text())
    meta |= {"fps": 30} if change == "edit" else {"format": 99}
    path.write_text(path.read_text()[:100] if change == "cut" else json.dumps(meta))
    with pytest.raises(CorruptError, match=r"avatar\.json|format 99"):
        store.load("ada")


def test_an_error_while_writing_leaves_nothing(store: AvatarStore) -> None:
    with pytest.raises(RuntimeError), store.write("ada") as draft:
        (draft.folder / GEOMETRY).write_bytes(b"half")
        raise RuntimeError
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_an_error_while_replacing_keeps_the_old_avatar(store: AvatarStore) -> None:
    arrays = fill(store)
    with pytest.raises(RuntimeError), store.write("ada", force=True) as draft:
        (draft.folder / GEOMETRY).write_bytes(b"half")
        raise RuntimeError
    assert np.array_equal(store.load("ada").transforms, arrays["transforms"])
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "ada"]


def test_a_replaced_avatar_can_still_be_read_where_it_is_open(store: AvatarStore) -> None:
    fill(store)
    old = store.load("ada")
    expected = AvatarStore(store.root).load("ada").frames[4].copy()
    fill(store, seed=9, force=True)
    assert np.array_equal(old.frames[4], expected)
    assert not np.array_equal(store.load("ada").frames[4], expected)


@pytest.mark.parametrize("swaps", [True, False], ids=["atomic exchange", "three renames"])
def test_replacing_leaves_one_folder(store: AvatarStore, swaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not swaps:
        monkeypatch.setattr(swap, "_swap", lambda first, second: False)
    fill(store)
    arrays = fill(store, seed=2, force=True)
    assert np.array_equal(store.load("ada").latents, arrays["latents"])
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "ada"]


def test_an_interrupted_replacement_is_undone(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an atomic exchange, a crash can happen between two renames; the old avatar is then restored."""
    arrays = fill(store)
    monkeypatch.setattr(swap, "_swap", lambda first, second: False)
    rename, calls = Path.rename, []

    def crash_at_second(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "the machine stops here")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash_at_second)
    with pytest.raises(OSError, match="the machine stops here"):
        fill(store, seed=3, force=True)
    monkeypatch.undo()
    assert not (store.root / "ada").exists()
    assert np.array_equal(AvatarStore(store.root).load("ada").transforms, arrays["transforms"])


def test_the_slower_of_two_writers_gets_an_error(store: AvatarStore) -> None:
    with pytest.raises(ExistsError), store.write("ada") as draft:
        arrays = fill(AvatarStore(store.root), seed=4)
        for path in store.folder("ada").iterdir():
            shutil.copy(path, draft.folder)
    assert np.array_equal(store.load("ada").transforms, arrays["transforms"])


def test_drafts_of_dead_processes_are_deleted(store: AvatarStore) -> None:
    store.root.mkdir()
    dead, living = store.root / ".draft-ada.1", store.root / ".draft-ada.2"
    for folder in (dead, living):
        folder.mkdir()
        os.utime(folder, (0, 0))  # the age does not matter
        folder.with_name(f"{folder.name}.held").touch()
    (store.root / ".draft-bob.3").mkdir()  # a crash came before its deletion was complete
    (store.root / ".draft-cy.4.held").touch()  # a crash came before it was begun
    held = hold_draft(living)
    assert store.clean() == [".draft-ada.1", ".draft-bob.3", ".draft-cy.4"]
    assert sorted(path.name for path in store.root.iterdir()) == [".draft-ada.2", ".draft-ada.2.held", ".lock"]
    held.release()
    assert store.clean() == [".draft-ada.2"]


def test_a_built_in_avatar_can_be_hidden_but_not_written(store: AvatarStore, tmp_path: Path) -> None:
    builtin = tmp_path / "builtin"
    shipped = fill(AvatarStore(builtin), "presenter")
    both = AvatarStore(store.root, builtin)
    assert both.ids() == ["presenter"]
    assert np.array_equal(both.load("presenter").transforms, shipped["transforms"])
    with pytest.raises(InputError, match="is part of WarmTalk"):
        both.remove("presenter")
    with pytest.raises(ExistsError):
        fill(both, "presenter", seed=1)
    own = fill(both, "presenter", seed=1, force=True)
    assert np.array_equal(both.load("presenter").transforms, own["transforms"])
    both.remove("presenter")
    assert np.array_equal(both.load("presenter").transforms, shipped["transforms"])


# --- removing


def test_a_removed_avatar_is_deleted_and_its_id_is_free(store: AvatarStore) -> None:
    fill(store)
    opened = store.load("ada")
    store.remove("ada")
    assert [path.name for path in store.root.iterdir()] == [".lock"] and store.ids() == []
    assert opened.frames is not None and opened.frames[4].shape == (300, 300, 3)  # still readable where it is open
    with pytest.raises(AvatarNotFound):
        store.remove("ada")
    again = fill(store, seed=1)
    assert np.array_equal(store.load("ada").transforms, again["transforms"])


def test_an_avatar_is_never_removed_in_part(store: AvatarStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    seen = []
    monkeypatch.setattr(store_module.shutil, "rmtree", lambda path, **options: seen.append(Path(path)))  # a crash
    store.remove("ada")
    assert not store.exists("ada") and store.ids() == []
    (left,) = seen
    assert left.parent == store.root and (left / META).is_file() and left.name.startswith(".gone-ada.")
    monkeypatch.undo()
    assert store.clean() == [left.name] and [path.name for path in store.root.iterdir()] == [".lock"]


def test_a_removed_avatar_is_not_restored_from_an_interrupted_replacement(store: AvatarStore) -> None:
    fill(store)
    shutil.copytree(store.root / "ada", store.root / ".aside-ada")
    store.remove("ada")
    with pytest.raises(AvatarNotFound):
        store.folder("ada")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_only_avatars_under_the_root_are_owned(store: AvatarStore, tmp_path: Path) -> None:
    builtin = tmp_path / "builtin"
    fill(AvatarStore(builtin), "presenter")
    fill(store, "ada")
    both = AvatarStore(store.root, builtin)
    assert [(both.owns(name), both.is_builtin(name)) for name in ("ada", "presenter", "bob")] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def decoding_of(frames: int) -> CroppedDecoding:
    statistics = np.random.default_rng(3).random((frames, 30, 2, 32)).astype(np.float32)
    return CroppedDecoding(CropWindow((118, 256), (20, 236)), statistics, 0.25, 2.0)


def rewritten(store: AvatarStore, write: Callable[[Draft], None]) -> None:
    """Write the avatar `odd`: `ada`, with one file written otherwise."""
    fill(store)
    with store.write("odd") as draft:
        for path in store.folder("ada").iterdir():
            shutil.copy(path, draft.folder) if path.name != META else None
        draft.meta |= store.describe("ada")
        write(draft)
        draft.meta |= {"id": "odd"}


def test_the_statistics_of_the_cropped_decoder_are_loaded_with_the_latents(store: AvatarStore) -> None:
    written = decoding_of(N)
    rewritten(store, lambda draft: draft.write_decoding(written))
    found = store.load("odd", frames=False).decoding
    assert found is not None and np.array_equal(found.statistics, written.statistics)
    assert (found.window, found.mean_error, found.p999_error) == (written.window, 0.25, 2.0)
    assert store.load("odd", latents=False).decoding is None and store.load("ada").decoding is None


@pytest.mark.parametrize(
    "write",
    [
        lambda draft: draft.write_latents(np.zeros((N - 1, 8, 32, 32), np.float16)),
        lambda draft: draft.write_decoding(decoding_of(N - 1)),
    ],
    ids=["latents", "decoding"],
)
def test_different_numbers_of_frames_are_corrupt(store: AvatarStore, write: Callable[[Draft], None]) -> None:
    rewritten(store, write)
    with pytest.raises(CorruptError, match="different numbers of frames"):
        store.load("odd")
