"""Reads checkpoints safely and says exactly what is wrong with one. Knows nothing of any single model.

A checkpoint is data: safetensors, or a pickle read with `weights_only=True`. A pickle that would run code is refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.errors import WeightsError
from models.weights import pickle_cache as converted
from models.weights.manifest import missing_error, remedy_for

FETCH_AGAIN = "Fetch the file again: it is partial or damaged."
WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")  # where trainers nest weights
SHOWN_KEYS = 3  # keys named in an error, of each kind
_HASH_CHUNK_BYTES = 1 << 20


def fetch_again(path: Path) -> str:
    """The remedy for a damaged file; `warmtalk fetch-weights` replaces bad files of its manifest."""
    command = remedy_for(path)
    return f"It is partial or damaged. {command}" if command else FETCH_AGAIN


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises WeightsError where it is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing_error(path, remedy="Put the model's config file beside its weights.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable as JSON: {error}.", fetch_again(path)) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds no JSON object.", fetch_again(path))
    return value


def find_weights(folder: Path, names: Iterable[str]) -> Path:
    """The first of `names` that `folder` holds. Raises WeightsError, which lists the names."""
    names = tuple(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise missing_error(
        folder, f"{folder} holds none of {', '.join(names)}", "Put the weights there, or correct the folder's path."
    )


def load_state_dict(path: Path | str, wrappers: Iterable[str] = WRAPPERS) -> dict[str, Any]:
    """The tensors of a checkpoint, by key, on the CPU and in the file's own dtypes.

    path: `.safetensors`, or a file of `torch.save` (zip or legacy), of which the first load leaves a safetensors copy
    beside it, which later loads read (models/weights/pickle_cache.py). A state dict nested under one of `wrappers` is
    taken out of it. Raises WeightsError: missing, truncated, not a checkpoint, or a pickle that holds code.
    """
    path, wrappers = Path(path), tuple(wrappers)
    if not path.is_file():
        raise missing_error(path)
    if _starts(path, b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer and not the file itself.", "Run `git lfs pull` where it came from."
        )
    if path.suffix == ".safetensors":
        return _named(_read_safetensors(path), wrappers, path)
    source = converted.Source.of(path, wrappers)
    state = converted.read(source)
    if state is None:
        state = _named(_read_pickle(path), wrappers, path)
        converted.write(source, state)
    return state


def _named(state: Any, wrappers: tuple[str, ...], path: Path) -> dict[str, Any]:
    tensors = _unwrap(state, wrappers)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name.", "Give a state dict: a mapping of names to tensors.")
    return tensors


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is no complete safetensors file: {error}.", fetch_again(path)) from error


def _read_pickle(path: Path) -> Any:
    import torch

    mmap = zipfile.is_zipfile(path)  # the legacy format cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "reduce" in str(error) or _starts(path, b"\x80"):  # it names a function to call
            raise WeightsError(
                f"{path} is a pickle that holds more than tensors, and loading it could run code.",
                "Use a plain state dict, or a safetensors file, from a source that you trust.",
            ) from error
        raise WeightsError(f"{path} is no complete checkpoint: no file of torch.save.", fetch_again(path)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is no complete checkpoint: {_cause(error)}.", fetch_again(path)) from error


def _cause(error: Exception) -> str:
    """The first sentence of torch's long message."""
    lines = str(error).strip().splitlines() or ["it ends too early"]
    return lines[0].split(". ")[0].rstrip(".")


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _unwrap(state: Any, wrappers: tuple[str, ...]) -> dict[str, Any]:
    """The named tensors in a loaded object, or `{}`; what is no tensor (an epoch counter) is left out."""
    import torch

    if not isinstance(state, Mapping):
        return {}
    for wrapper in wrappers:
        if isinstance(state.get(wrapper), Mapping):
            return _unwrap(state[wrapper], wrappers)
    return {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def check_keys(module: Any, state: Mapping[str, Any], where: Path | str) -> None:
    """Raise WeightsError unless `state` holds exactly the module's keys and shapes.

    The error names the first missing, unexpected and mis-shaped keys, and how many there are of each.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    misshaped = [
        f"{key} {given[key]} instead of {shape}"
        for key, shape in wanted.items()
        if key in given and given[key] != shape
    ]
    faults = [
        _name_some(kind, keys)
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if keys
    ]
    if faults:
        raise WeightsError(
            f"{where} does not fit {type(module).__name__}: {'; '.join(faults)}.",
            "Check that the weights and the config belong together.",
        )


def _name_some(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} {kind} ({', '.join(keys[:SHOWN_KEYS])}{more})"


def build_module(
    build: Callable[[], Any], state: Mapping[str, Any], where: Path | str, device: Any = "cpu", dtype: Any = None
) -> Any:
    """The module that `build` makes, holding `state`, in eval mode and without gradients.

    Built without memory or random initialisation (on torch's meta device), so that a large net costs its weights once.
    dtype: floating tensors are cast to it; None keeps the file's. Raises WeightsError, see `check_keys`.
    """
    import torch

    with torch.device("meta"):
        module = build()
    check_keys(module, state, where)
    cast = {
        key: value.to(device, dtype if value.is_floating_point() else None, copy=True)  # copy: never a mapped file
        for key, value in state.items()
    }
    module.load_state_dict(cast, assign=True)
    return module.eval().requires_grad_(False)


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(*paths: Path | str) -> str:
    """The first 16 hex digits of a sha256 over the sha256 of each file's bytes, in the order given.

    Read once a process for each version of a file (by size and time). Raises WeightsError where one is missing.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        if not path.is_file():
            raise missing_error(path)
        stat = path.stat()
        digest.update(_sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
