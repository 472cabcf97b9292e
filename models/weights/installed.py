"""The manifest's checkpoints on disk: their state, the lock file, and files that are in the wrong folder.

`weights.lock.json`, next to them, stores the sha256 of each file that was downloaded or verified. No network access.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from models.errors import CorruptError
from models.runtime.atomic_file import replace_file
from models.weights.checksums import sha256_of
from models.weights.manifest import HubFile, WeightFile, all_files

LOCK_NAME = "weights.lock.json"
LOCK_VERSION = 1
PART_SUFFIX = ".part"  # of a file whose download is not complete


@dataclass(frozen=True, slots=True)
class LockEntry:
    """A file when it was hashed. While its size and modification time are the same, it is not hashed again."""

    sha256: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class FileState:
    """A file of the manifest on disk.

    found_bytes: its size, None if it does not exist. part_bytes: size of an incomplete download, else 0. verified: its
    hash was correct, and size and modification time have not changed since.
    """

    file: WeightFile
    path: Path
    found_bytes: int | None
    part_bytes: int
    verified: bool

    @property
    def present(self) -> bool:
        return self.found_bytes is not None

    @property
    def right_size(self) -> bool:
        return self.present and self.file.size_bytes in (None, self.found_bytes)


def file_state(root: Path, file: WeightFile, lock: dict[str, LockEntry]) -> FileState:
    path, entry = root / file.path, lock.get(file.path)
    part = path.with_name(path.name + PART_SUFFIX)
    part_bytes = part.stat().st_size if part.is_file() else 0
    if not path.is_file():
        return FileState(file, path, None, part_bytes, False)
    stat = path.stat()
    unchanged = entry is not None and (entry.size_bytes, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    verified = unchanged and entry is not None and file.sha256 in (None, entry.sha256)
    return FileState(file, path, stat.st_size, part_bytes, verified)


def file_states(root: Path, files: Iterable[WeightFile] | None = None) -> list[FileState]:
    """The state of each file, without reading its content. Raises CorruptError: the lock file cannot be read."""
    lock = read_lock(root)
    return [file_state(root, file, lock) for file in (all_files() if files is None else files)]


def read_lock(root: Path) -> dict[str, LockEntry]:
    """Path under `weights/` → entry; empty if there is no lock file. Raises CorruptError: it cannot be read."""
    path = root / LOCK_NAME
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != LOCK_VERSION:
            raise ValueError(f"its version is not {LOCK_VERSION}")
        return {name: LockEntry(**entry) for name, entry in document["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "Delete it and run `warmtalk fetch-weights`, which verifies the existing files again."
        raise CorruptError(f"{path} cannot be read: {error}.", remedy) from error


def record_hash(root: Path, file: WeightFile, sha256: str) -> None:
    """Store a file's hash, size and modification time in the lock file, which is replaced atomically."""
    stat = (root / file.path).stat()
    entries = {**read_lock(root), file.path: LockEntry(sha256, stat.st_size, stat.st_mtime_ns)}
    document = {"version": LOCK_VERSION, "files": {name: asdict(entries[name]) for name in sorted(entries)}}
    replace_file(root / LOCK_NAME, (json.dumps(document, indent=1) + "\n").encode())


# --- files in the wrong folder


def find_misplaced(root: Path, file: WeightFile) -> Path | None:
    """Where an earlier download has put the file; None if it is in its place or not found.

    `hf_hub_download(..., local_dir="musetalkV15")` repeats a repository's folders: `musetalkV15/musetalkV15/unet.pth`.
    MuseTalk's manual has resnet18 in the top folder; MuseTalk v1.0 has the VAE in `sd-vae-ft-mse`. A file with the
    wrong size is ignored. If several files have the same name (`config.json`), the hash must match.
    """
    if (root / file.path).is_file():
        return None
    places = [PurePosixPath(file.path).parent / file.name / file.name, PurePosixPath(file.name)]
    if isinstance(file.source, HubFile):
        repository = PurePosixPath(file.source.repository).name
        places[:0] = [
            PurePosixPath(file.path).parent / file.source.file,
            PurePosixPath(file.path).parent / repository / file.source.file,
            PurePosixPath(repository) / file.source.file,
            PurePosixPath(file.source.file),
        ]
    places.append(PurePosixPath(file.path).parent / file.path)
    right_places = {other.path for other in all_files()}
    for place in dict.fromkeys(places):
        if str(place) not in right_places and _matches(root / place, file):
            return root / place
    return None


def _matches(path: Path, file: WeightFile) -> bool:
    if not path.is_file() or path.is_symlink() or file.size_bytes not in (None, path.stat().st_size):
        return False
    shared = sum(other.name == file.name for other in all_files()) > 1
    return not shared or (file.sha256 is not None and sha256_of(path) == file.sha256)


def move_into_place(root: Path, file: WeightFile, found: Path) -> Path:
    """Move a file from `found` to its place and remove folders that become empty. Returns the new path."""
    target = root / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():  # GFPGANv1.4.pth/GFPGANv1.4.pth
        temp = target.with_name(target.name + PART_SUFFIX)
        found.replace(temp)
        _remove_empty(found.parent, root)
        found = temp
    found.replace(target)
    _remove_empty(found.parent, root)
    return target


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
