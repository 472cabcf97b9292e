"""Caches a pickled checkpoint as safetensors at its first load, so that later starts are faster.

`unet.pth` gets `unet.pth.safetensors` next to it. The copy stores the size and modification time of its original and is
read only while they match. If it cannot be read or written, the original is used. It can be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".safetensors"
SOURCE_KEY = "warmtalk.source"  # in the metadata of the copy
MIN_BYTES = 1 << 20  # smaller pickles load in milliseconds and get no copy
MIN_FREE_DISK_BYTES = 1 << 30  # must remain free after writing a copy
STALE_PART_S = 3600.0  # an older temporary file belongs to a process that died while writing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointVersion:
    """One version of a checkpoint file, and the wrapper keys with which its state dict is read."""

    path: Path
    size_bytes: int
    mtime_ns: int
    wrappers: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, wrappers: tuple[str, ...]) -> CheckpointVersion:
        """Call this before the original is read: if the file changes meanwhile, the copy must not match it."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns, wrappers)

    @property
    def copy(self) -> Path:
        return self.path.with_name(self.path.name + SUFFIX)

    @property
    def key(self) -> tuple[str, int, int]:
        return self.path.name, self.size_bytes, self.mtime_ns


def read(version: CheckpointVersion) -> dict[str, Any] | None:
    """The tensors of the copy; None if it is missing, damaged, or made from another version."""
    from safetensors import SafetensorError, safe_open

    if _source_of(version.copy) != (version.key, version.wrappers):
        return None
    try:
        with safe_open(version.copy, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("The cached copy %s cannot be read and is replaced: %s", version.copy, error)
        return None


def write(version: CheckpointVersion, state: Mapping[str, Any]) -> bool:
    """Write the copy atomically. Returns False if it was not written; disk errors are logged, not raised."""
    from safetensors import SafetensorError

    if version.size_bytes < MIN_BYTES:
        return False
    part = version.copy.with_name(f".{version.copy.name}.{uuid.uuid4().hex}.part")
    try:
        if _is_being_written(version.copy):
            return False
        key, wrappers = _source_of(version.copy) or (None, ())
        if key == version.key and wrappers != version.wrappers:
            return False  # written for a caller with other wrappers: the two must not overwrite it alternately
        if shutil.disk_usage(part.parent).free < _size(state) + MIN_FREE_DISK_BYTES:
            return False
        _write(part, state, {"format": "pt", SOURCE_KEY: json.dumps([version.key, version.wrappers])})
        part.replace(version.copy)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:  # a full disk, a sparse tensor, …
        log.info("No safetensors copy of %s was written: %s", version.path, error)
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _write(part: Path, state: Mapping[str, Any], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(independent(state), part, metadata)
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def independent(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors, contiguous and without shared memory: safetensors cannot store views or shared storage."""
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    return {
        key: tensor.contiguous()
        if owners[tensor.untyped_storage().data_ptr()] == 1 and tensor.untyped_storage().nbytes() == _bytes(tensor)
        else tensor.contiguous().clone()
        for key, tensor in state.items()
    }


def _bytes(tensor: Any) -> int:
    return int(tensor.numel()) * int(tensor.element_size())


def _size(state: Mapping[str, Any]) -> int:
    return sum(_bytes(tensor) for tensor in state.values())


def _source_of(copy: Path) -> tuple[tuple[str, int, int], tuple[str, ...]] | None:
    """The key and wrappers of the checkpoint from which `copy` was made; None if they cannot be read."""
    from safetensors import SafetensorError, safe_open

    if not copy.is_file():
        return None
    try:
        with safe_open(copy, framework="pt", device="cpu") as file:
            (name, size_bytes, mtime_ns), wrappers = json.loads((file.metadata() or {})[SOURCE_KEY])
        return (name, size_bytes, mtime_ns), tuple(wrappers)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _is_being_written(copy: Path) -> bool:
    """True if another process is writing the copy, so that replicas that start together do not all write it.

    Removes the temporary files of dead processes.
    """
    writing = False
    for part in copy.parent.glob(f".{copy.name}.*.part"):
        if time.time() - part.stat().st_mtime > STALE_PART_S:
            part.unlink(missing_ok=True)
        else:
            writing = True
    return writing
