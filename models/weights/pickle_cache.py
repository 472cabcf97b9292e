"""The safetensors copy that a pickled checkpoint gets on its first load, so that later starts need not unpickle it.

`unet.pth` gets `unet.pth.safetensors` beside it. The copy names the size and time of its original, and is read only
while they are the same. It is a cache: where it cannot be read or written, the original is used. Deleting it is safe.
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
LEAST_BYTES = 1 << 20  # smaller pickles load in milliseconds
SPARE_DISK_BYTES = 1 << 30  # left free beside a copy
STALE_PART_S = 3600.0  # a part this old belongs to a process that died while writing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """What a copy was made of: one version of a file, and the wrappers under which its state dict was looked for."""

    path: Path
    size_bytes: int
    mtime_ns: int
    wrappers: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, wrappers: tuple[str, ...]) -> Source:
        """Take it before the original is read: a file that changes meanwhile must not pass for the copy's source."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns, wrappers)

    @property
    def copy(self) -> Path:
        return self.path.with_name(self.path.name + SUFFIX)

    @property
    def version(self) -> tuple[str, int, int]:
        return self.path.name, self.size_bytes, self.mtime_ns


def read(source: Source) -> dict[str, Any] | None:
    """The tensors of the copy; None where there is none, or one of another source, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    if _source_of(source.copy) != (source.version, source.wrappers):
        return None
    try:
        with safe_open(source.copy, framework="pt", device="cpu") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("%s cannot be read and is made anew: %s", source.copy, error)
        return None


def write(source: Source, state: Mapping[str, Any]) -> bool:
    """Write the copy, whole or not at all. Returns whether it is there: never raises for a disk that refuses."""
    from safetensors import SafetensorError

    if source.size_bytes < LEAST_BYTES:
        return False
    part = source.copy.with_name(f".{source.copy.name}.{uuid.uuid4().hex}.part")
    try:
        if _is_being_written(source.copy):
            return False
        version, wrappers = _source_of(source.copy) or (None, ())
        if version == source.version and wrappers != source.wrappers:
            return False  # made for another caller: the two must not rewrite it by turns
        if shutil.disk_usage(part.parent).free < _size(state) + SPARE_DISK_BYTES:
            return False
        _write(part, state, {"format": "pt", SOURCE_KEY: json.dumps([source.version, source.wrappers])})
        part.replace(source.copy)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:  # a full disk, a sparse tensor, …
        log.info("no safetensors copy of %s: %s", source.path, error)
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
    """The same tensors, contiguous, no two of them in one memory: safetensors holds no views and no shared storage."""
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
    """Version and wrappers of the file that a copy was made of; None where that cannot be read."""
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
    """Whether another process is at it: replicas that start together need not all write. Removes parts of dead ones."""
    writing = False
    for part in copy.parent.glob(f".{copy.name}.*.part"):
        if time.time() - part.stat().st_mtime > STALE_PART_S:
            part.unlink(missing_ok=True)
        else:
            writing = True
    return writing
