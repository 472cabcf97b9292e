"""models.runtime.atomic_file: the data is on disk before it replaces the old file, and a failure changes nothing."""

import os
from pathlib import Path

import pytest

from models.errors import DiskFullError
from models.runtime.atomic_file import replace_file


@pytest.mark.parametrize("sync", [True, False])
def test_data_is_synced_before_it_becomes_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    visible_at_sync: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: visible_at_sync.append(path.read_bytes()))
    replace_file(path, b"new", sync)
    assert path.read_bytes() == b"new" and visible_at_sync == ([b"old"] if sync else [])


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFullError, match="The disk is full: .*a.json cannot be written"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
