"""Finds the files and folders that a config names. Knows nothing of what is in them."""

from __future__ import annotations

import os
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]


def home() -> Path:
    """Where results, caches and weights live: $WARMTALK_HOME, else the working folder."""
    return Path(os.environ.get("WARMTALK_HOME") or Path.cwd())


def input_path(name: str) -> Path:
    """A file or folder to read: absolute, or under home(), or, where only that is there, beside the code."""
    path = Path(name)
    if path.is_absolute() or (home() / path).exists() or not (CODE / path).exists():
        return home() / path  # a path that is missing is named where fetch-weights would put it
    return CODE / path


def output_path(name: str) -> Path:
    """A folder that may be written: absolute, or under home()."""
    path = Path(name)
    return path if path.is_absolute() else home() / path


def cache_dir() -> Path:
    """Where compiled models are kept: $WARMTALK_CACHE, else `.cache` under home()."""
    return Path(os.environ.get("WARMTALK_CACHE") or home() / ".cache")


def keep_compiled() -> None:
    """Let torch keep fused kernels in cache_dir(), so that the next start finds them; the environment may say where."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))


def builtin_avatars() -> Path:
    """The avatars that ship with the project."""
    return CODE / "models" / "embedded" / "avatars"
