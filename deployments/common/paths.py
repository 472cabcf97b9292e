"""Resolves the files and folders that a config names."""

from __future__ import annotations

import os
from pathlib import Path

from models.errors import InputError

UPLOADS = "results/uploads"  # what the ingress has received; other stages read it there
CODE = Path(__file__).resolve().parents[2]  # the folder that holds graph.py, models/ and deployments/


def home() -> Path:
    """The folder of results, caches and weights: $WARMTALK_HOME, or the working folder."""
    return Path(os.environ.get("WARMTALK_HOME") or Path.cwd())


def input_path(name: str) -> Path:
    """A file or folder to read: an absolute path, or a path under home(), or else one beside the code.

    A path that exists in neither place is resolved under home(), where `fetch-weights` would put it.
    """
    path = Path(name)
    if path.is_absolute() or (home() / path).exists() or not (CODE / path).exists():
        return home() / path
    return CODE / path


def output_path(name: str) -> Path:
    """A folder to write to: an absolute path, or a path under home()."""
    return home() / name


def uploaded_file(path: str) -> Path:
    """The file of an upload, by the path that the ingress has sent. Raises InputError for a path elsewhere."""
    file, folder = Path(path).resolve(), output_path(UPLOADS).resolve()
    if not file.is_relative_to(folder):
        raise InputError(f"{path} is not an upload.", f"All stages must share the folder {folder}.")
    if not file.is_file():
        raise InputError("The upload is no longer there.", "Send it again.")
    return file


def cache_dir() -> Path:
    """The folder of compiled models: $WARMTALK_CACHE, or `.cache` under home()."""
    return Path(os.environ.get("WARMTALK_CACHE") or home() / ".cache")


def set_inductor_cache() -> None:
    """Let torch store its compiled kernels under cache_dir(), so that the next start reuses them.

    A TORCHINDUCTOR_CACHE_DIR or TRITON_CACHE_DIR that is already set is kept.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))


def builtin_avatars() -> Path:
    """The avatars that are part of WarmTalk."""
    return CODE / "models" / "embedded" / "avatars"
