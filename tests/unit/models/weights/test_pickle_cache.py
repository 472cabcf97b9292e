"""models.weights.pickle_cache: when the safetensors copy is written, read, replaced or ignored."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.errors import WeightsError
from models.weights import pickle_cache
from models.weights.loading import find_weights, fingerprint, load_state_dict

ROWS = 300  # 300 × 1024 float32 values are more than MIN_BYTES


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"weight": torch.randn(ROWS, 1024), "half": torch.randn(7).half(), "steps": torch.tensor(3)}


@pytest.fixture
def original(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "unet.pth"
    torch.save(state, path)
    return path


def copy_of(path: Path) -> Path:
    return path.with_name(path.name + ".safetensors")


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(
        torch.equal(got[key], wanted[key]) and got[key].dtype == wanted[key].dtype for key in wanted
    )


def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the original was read")

    monkeypatch.setattr(torch, "load", refuse)


def test_the_first_load_writes_a_copy_that_the_second_reads(
    original: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(load_state_dict(original), state)
    assert same(load_file(copy_of(original)), state)
    no_unpickling(monkeypatch)
    assert same(load_state_dict(original), state)


def test_the_copy_is_synced_to_disk_before_it_appears(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visible_at_sync: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: visible_at_sync.append(copy_of(original).exists()))
    load_state_dict(original)
    assert visible_at_sync == [False] and copy_of(original).exists()


def test_the_legacy_format_is_copied_too(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    load_state_dict(path)
    no_unpickling(monkeypatch)
    assert same(load_state_dict(path), state)


def test_a_changed_original_is_copied_again(original: Path, state: dict[str, torch.Tensor]) -> None:
    load_state_dict(original)
    changed = {**state, "weight": state["weight"] + 1}
    torch.save(changed, original)
    os.utime(original, ns=(time.time_ns(), time.time_ns() + 10**9))
    assert same(load_state_dict(original), changed)
    assert same(load_file(copy_of(original)), changed)


def test_a_changed_modification_time_alone_replaces_the_copy(original: Path) -> None:
    load_state_dict(original)
    before = copy_of(original).stat().st_ino
    os.utime(original, ns=(1, 10**9))
    load_state_dict(original)
    assert copy_of(original).stat().st_ino != before


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign"])
def test_a_damaged_or_foreign_copy_is_replaced(original: Path, state: dict[str, torch.Tensor], damage: str) -> None:
    load_state_dict(original)
    copy = copy_of(original)
    if damage == "truncated":
        copy.write_bytes(copy.read_bytes()[:5000])
    elif damage == "text":
        copy.write_text("not found")
    else:
        save_file({"weight": torch.zeros(3)}, copy, {"format": "pt"})
    assert same(load_state_dict(original), state)
    assert same(load_file(copy), state)


def test_shared_views_and_transposed_tensors_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(ROWS * 2048, dtype=torch.float32).reshape(ROWS, 2048)
    state = {"tied.a": whole, "tied.b": whole, "row": whole[1], "turned": whole[:3].T, "empty": torch.empty(0, 4)}
    path = tmp_path / "a.pth"
    torch.save(state, path)
    assert same(load_state_dict(path), state)
    assert copy_of(path).is_file()
    assert same(load_state_dict(path), state)


def test_the_copy_has_the_nested_state_dict(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "GFPGANv1.4.pth"
    torch.save({"iteration": 3, "params_ema": state}, path)
    load_state_dict(path, wrappers=("params_ema",))
    assert same(load_file(copy_of(path)), state)


def test_callers_with_different_wrappers_get_their_own_tensors(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "both.pth"
    averaged = {"weight": state["weight"] * 2}
    torch.save({"params": state, "params_ema": averaged}, path)
    assert same(load_state_dict(path, wrappers=("params_ema",)), averaged)
    kept = copy_of(path).stat().st_ino
    assert same(load_state_dict(path, wrappers=("params",)), state)
    assert copy_of(path).stat().st_ino == kept, "two callers must not overwrite the copy alternately"
    no_unpickling(monkeypatch)
    assert same(load_state_dict(path, wrappers=("params_ema",)), averaged)


def test_a_small_file_is_not_copied(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pth")
    load_state_dict(tmp_path / "a.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_full_disk_or_a_write_error_does_not_fail_the_load(
    original: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = pickle_cache.MIN_FREE_DISK_BYTES

    with monkeypatch.context() as patch:
        patch.setattr(pickle_cache.shutil, "disk_usage", lambda path: Full)
        assert same(load_state_dict(original), state)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pickle_cache, "_write", refuse)
    assert same(load_state_dict(original), state)
    assert [path.name for path in original.parent.iterdir()] == ["unet.pth"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to read-only folders")
def test_a_read_only_folder_does_not_fail_the_load(original: Path, state: dict[str, torch.Tensor]) -> None:
    original.parent.chmod(0o555)
    try:
        assert same(load_state_dict(original), state)
    finally:
        original.parent.chmod(0o755)


def test_a_failed_write_leaves_no_file(
    original: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(part: Path, *_: Any) -> None:
        part.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pickle_cache, "_write", half)
    assert same(load_state_dict(original), state)
    assert [path.name for path in original.parent.iterdir()] == ["unet.pth"]


def test_one_process_writes_and_stale_temporary_files_are_removed(
    original: Path, state: dict[str, torch.Tensor]
) -> None:
    part = original.with_name(f".{copy_of(original).name}.0123.part")
    part.write_bytes(b"x")
    assert same(load_state_dict(original), state)
    assert part.exists() and not copy_of(original).exists(), "another process writes it"
    os.utime(part, (0, time.time() - pickle_cache.STALE_PART_S - 1))
    assert same(load_state_dict(original), state)
    assert not part.exists() and copy_of(original).exists()


def test_a_copy_does_not_change_what_a_folder_loads(original: Path) -> None:
    """`x.bin.safetensors` is not `x.safetensors`: which file a folder loads, and its fingerprint, stay the same."""
    names = ["unet.safetensors", "unet.pth"]
    before = find_weights(original.parent, names), fingerprint(original)
    load_state_dict(original)
    assert (find_weights(original.parent, names), fingerprint(original)) == before


def test_a_large_pickle_with_code_is_refused_and_not_copied(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "victim",))

    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"x": Payload(), "padding": b"0" * pickle_cache.MIN_BYTES}))
    with pytest.raises(WeightsError, match="could run code"):
        load_state_dict(path)
    assert [found.name for found in tmp_path.iterdir()] == ["a.pth"]


def test_the_copy_contains_its_sources_version(original: Path) -> None:
    load_state_dict(original, wrappers=("params",))
    with safe_open(copy_of(original), framework="pt") as file:
        kept = json.loads(file.metadata()[pickle_cache.SOURCE_KEY])
    stat = original.stat()
    assert kept == [["unet.pth", stat.st_size, stat.st_mtime_ns], ["params"]]
