"""The checkpoints of the manifest as they lie on a disk: their state, their lock file, and those in wrong places.

`weights.lock.json` beside them remembers the sha256 of every file that was fetched or found good. No network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from models.errors import CorruptError
from models.weights.manifest import HubFile, WeightFile, all_files

LOCK_NAME = "weights.lock.json"
LOCK_VERSION = 1
PART_SUFFIX = ".part"  # of a file that is not whole yet
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LockEntry:
    """What a file was when its sha256 was read. While size and time are the same, it need not be read again."""

    sha256: str
    size_bytes: int
    mtime_ns: int


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """The hex digest of a file's bytes; `progress` gets the number of bytes of each block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class FileState:
    """A file of the manifest as it lies on the disk. `found_bytes` is None for one that is not there.

    `verified`: its bytes were hashed, the hash was right, and size and time are what they were then.
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
    """The state of each file, without reading any. Raises CorruptError for a lock file that cannot be read."""
    lock = read_lock(root)
    return [file_state(root, file, lock) for file in (all_files() if files is None else files)]


def read_lock(root: Path) -> dict[str, LockEntry]:
    """Path under `weights/` → entry; empty without a lock file. Raises CorruptError."""
    path = root / LOCK_NAME
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != LOCK_VERSION:
            raise ValueError(f"its version is not {LOCK_VERSION}")
        return {name: LockEntry(**entry) for name, entry in document["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "Delete it and run `warmtalk fetch-weights`, which checks the files that are there anew."
        raise CorruptError(f"{path} cannot be read: {error}.", remedy) from error


def record_hash(root: Path, file: WeightFile, sha256: str) -> None:
    """Write a file's hash, size and time into the lock file, which is replaced whole."""
    stat = (root / file.path).stat()
    entries = {**read_lock(root), file.path: LockEntry(sha256, stat.st_size, stat.st_mtime_ns)}
    document = {"version": LOCK_VERSION, "files": {name: asdict(entries[name]) for name in sorted(entries)}}
    part = root / (LOCK_NAME + PART_SUFFIX)
    with part.open("w", encoding="utf-8") as out:
        out.write(json.dumps(document, indent=1) + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(root / LOCK_NAME)


# --- files that earlier downloads left in other places


def find_misplaced(root: Path, file: WeightFile) -> Path | None:
    """The file where an earlier download has put it; None where it is in place, or nowhere.

    `hf_hub_download(..., local_dir="musetalkV15")` repeats a repository's folders: `musetalkV15/musetalkV15/unet.pth`.
    The manual's tree has resnet18 at the top, MuseTalk v1.0's the VAE in `sd-vae-ft-mse`. One of the wrong size is not
    taken, nor one whose name several files share (`config.json`) unless its hash is right.
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
    homes = {other.path for other in all_files()}
    for place in dict.fromkeys(places):
        if str(place) not in homes and _is_it(root / place, file):
            return root / place
    return None


def _is_it(path: Path, file: WeightFile) -> bool:
    if not path.is_file() or path.is_symlink() or file.size_bytes not in (None, path.stat().st_size):
        return False
    shared = sum(other.name == file.name for other in all_files()) > 1
    return not shared or (file.sha256 is not None and sha256_of(path) == file.sha256)


def move_into_place(root: Path, file: WeightFile, found: Path) -> Path:
    """Move a misplaced file to where it belongs, and remove the folders that it leaves empty. Returns its new path."""
    home = root / file.path
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.is_dir():  # GFPGANv1.4.pth/GFPGANv1.4.pth
        aside = home.with_name(home.name + PART_SUFFIX)
        found.replace(aside)
        _remove_empty(found.parent, root)
        found = aside
    found.replace(home)
    _remove_empty(found.parent, root)
    return home


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and folder.is_relative_to(root) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
