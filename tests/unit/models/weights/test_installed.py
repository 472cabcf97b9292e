"""models.weights.installed: the state of files, the lock file, and files in the wrong folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from models.errors import CorruptError
from models.weights import installed as weight_files
from models.weights import manifest as weights
from models.weights.checksums import sha256_of
from models.weights.installed import (
    file_state,
    file_states,
    find_misplaced,
    move_into_place,
    read_lock,
    record_hash,
)
from models.weights.manifest import HubFile, WebFile, WeightFile, WeightSet


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


UNET = WeightFile("netV15/unet.pth", HubFile("owner/net", "netV15/unet.pth"), 7, sha256(b"weights"))
VAE_CONFIG = WeightFile("sd-vae/config.json", HubFile("owner/sd-vae-ft", "config.json"), 2, sha256(b"{}"))
VAE = WeightFile("sd-vae/vae.bin", HubFile("owner/sd-vae-ft", "vae.bin"))
EAR_CONFIG = WeightFile("ear/config.json", HubFile("owner/ear", "config.json"), 2, sha256(b"[]"))
RESTORER = WeightFile("GFPGAN.pth", WebFile("http://127.0.0.1/GFPGAN.pth"), 3, sha256(b"gan"))
RESNET = WeightFile("parse/resnet.pth", WebFile("http://127.0.0.1/resnet.pth"), 3, sha256(b"res"))
ALL = (UNET, VAE_CONFIG, VAE, EAR_CONFIG, RESTORER, RESNET)


@pytest.fixture(autouse=True)
def small_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SETS", (WeightSet("all", "nets", "LipSync", "MIT", ALL),))


def put(root: Path, name: str, data: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_sha256_and_its_progress(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    blocks: list[int] = []
    assert sha256_of(put(tmp_path, "a", data), blocks.append) == sha256(data)
    assert sum(blocks) == len(data) and len(blocks) == 3


def test_a_file_is_absent_partial_wrong_present_or_verified(tmp_path: Path) -> None:
    def state() -> tuple[bool, bool, bool, int]:
        found = file_state(tmp_path, UNET, read_lock(tmp_path))
        return found.present, found.right_size, found.verified, found.part_bytes

    assert state() == (False, False, False, 0)
    part = put(tmp_path, "netV15/unet.pth.part", b"wei")
    assert state() == (False, False, False, 3)
    part.unlink()
    put(tmp_path, "netV15/unet.pth", b"weight")
    assert state() == (True, False, False, 0)
    put(tmp_path, "netV15/unet.pth", b"weights")
    assert state() == (True, True, False, 0)
    record_hash(tmp_path, UNET, sha256(b"weights"))
    assert state() == (True, True, True, 0)


def test_a_changed_file_is_not_verified(tmp_path: Path) -> None:
    path = put(tmp_path, "netV15/unet.pth", b"weights")
    record_hash(tmp_path, UNET, sha256(b"weights"))
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(1, 1))
    assert not file_state(tmp_path, UNET, read_lock(tmp_path)).verified


def test_a_recorded_hash_must_equal_the_manifests(tmp_path: Path) -> None:
    put(tmp_path, "netV15/unet.pth", b"WEIGHTS")
    record_hash(tmp_path, UNET, sha256(b"WEIGHTS"))
    assert not file_state(tmp_path, UNET, read_lock(tmp_path)).verified


def test_any_size_is_right_if_the_manifest_has_none(tmp_path: Path) -> None:
    put(tmp_path, "sd-vae/vae.bin", b"any")
    assert [state.right_size for state in file_states(tmp_path, [VAE, UNET])] == [True, False]


def test_the_lock_file_contains_each_file(tmp_path: Path) -> None:
    for file, data in ((UNET, b"weights"), (RESTORER, b"gan")):
        put(tmp_path, file.path, data)
        record_hash(tmp_path, file, sha256(data))
    document = json.loads((tmp_path / "weights.lock.json").read_text())
    assert list(document["files"]) == ["GFPGAN.pth", "netV15/unet.pth"] and document["version"] == 1
    entry = read_lock(tmp_path)["netV15/unet.pth"]
    stat = (tmp_path / "netV15/unet.pth").stat()
    assert (entry.sha256, entry.size_bytes, entry.mtime_ns) == (sha256(b"weights"), 7, stat.st_mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GFPGAN.pth", "netV15", "weights.lock.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": {}}}'])
def test_a_damaged_lock_file_gives_a_remedy(tmp_path: Path, text: str) -> None:
    put(tmp_path, weight_files.LOCK_NAME, text.encode())
    with pytest.raises(CorruptError, match="cannot be read") as caught:
        read_lock(tmp_path)
    assert "Delete it and run `warmtalk fetch-weights`" in caught.value.remedy


@pytest.mark.parametrize(
    ("file", "place", "data"),
    [
        (UNET, "netV15/netV15/unet.pth", b"weights"),  # the manual's hf_hub_download(local_dir="weights/netV15")
        (UNET, "net/netV15/unet.pth", b"weights"),  # a clone of the repository
        (UNET, "unet.pth", b"weights"),
        (RESNET, "resnet.pth", b"res"),  # as in the manual
        (RESTORER, "GFPGAN.pth/GFPGAN.pth", b"gan"),
        (VAE_CONFIG, "sd-vae-ft/config.json", b"{}"),  # the folder's name in MuseTalk v1.0
        (VAE_CONFIG, "sd-vae/sd-vae-ft/config.json", b"{}"),
        (EAR_CONFIG, "config.json", b"[]"),
        (VAE, "sd-vae/sd-vae/vae.bin", b"any size"),
    ],
)
def test_a_file_in_a_wrong_place_is_found_and_moved(tmp_path: Path, file: WeightFile, place: str, data: bytes) -> None:
    found = put(tmp_path, place, data)
    assert find_misplaced(tmp_path, file) == found
    assert move_into_place(tmp_path, file, found) == tmp_path / file.path
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file.path]
    assert (tmp_path / file.path).read_bytes() == data
    assert all(path == (tmp_path / file.path).parent for path in tmp_path.rglob("*") if path.is_dir()), (
        "empty folders must be removed"
    )


@pytest.mark.parametrize(
    ("file", "place", "data"),
    [
        (UNET, "netV15/netV15/unet.pth", b"weigh"),  # truncated
        (VAE_CONFIG, "config.json", b"[]"),  # of another model, with the same size
        (UNET, "somewhere/else/unet.pth", b"weights"),
    ],
)
def test_a_file_that_may_be_another_is_not_moved(tmp_path: Path, file: WeightFile, place: str, data: bytes) -> None:
    put(tmp_path, place, data)
    assert find_misplaced(tmp_path, file) is None


def test_a_file_in_its_place_is_not_misplaced(tmp_path: Path) -> None:
    put(tmp_path, "netV15/netV15/unet.pth", b"weights")
    put(tmp_path, "netV15/unet.pth", b"weights")
    assert find_misplaced(tmp_path, UNET) is None


def test_a_file_that_belongs_to_another_set_is_not_taken(tmp_path: Path) -> None:
    """Such as `musetalk/musetalk.json` and `musetalkV15/musetalk.json`, which have the same content."""
    same = WeightFile("other/config.json", HubFile("owner/sd-vae", "config.json"), 2, sha256(b"{}"))
    put(tmp_path, "sd-vae/config.json", b"{}")
    assert find_misplaced(tmp_path, same) is None


def test_other_files_beside_a_moved_one_stay(tmp_path: Path) -> None:
    found = put(tmp_path, "netV15/netV15/unet.pth", b"weights")
    put(tmp_path, "netV15/netV15/notes.txt", b"mine")
    move_into_place(tmp_path, UNET, found)
    assert (tmp_path / "netV15" / "netV15" / "notes.txt").read_bytes() == b"mine"
