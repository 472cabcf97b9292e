"""Loads checkpoints safely, and builds modules from them with precise errors.

Reads safetensors, and pickles only with `weights_only=True`: a pickle that would run code is refused.
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
from models.weights import pickle_cache
from models.weights.checksums import sha256_of
from models.weights.manifest import missing_error, remedy_for

DOWNLOAD_AGAIN = "Download the file again: it is incomplete or damaged."
# Keys under which training code stores a state dict.
WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")
MAX_SHOWN_KEYS = 3  # keys per kind that an error names


def fetch_again(path: Path) -> str:
    """The remedy for a damaged file; `warmtalk fetch-weights` replaces bad files of the manifest."""
    command = remedy_for(path)
    return f"It is incomplete or damaged. {command}" if command else DOWNLOAD_AGAIN


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises WeightsError: the file is missing or is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing_error(path, remedy="Put the model's config file next to its weights.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}.", fetch_again(path)) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} does not contain a JSON object.", fetch_again(path))
    return value


def find_weights(folder: Path, names: Iterable[str]) -> Path:
    """The path of the first of `names` that exists in `folder`. Raises WeightsError if none exists."""
    names = tuple(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise missing_error(
        folder, f"{folder} contains none of {', '.join(names)}", "Put the weights there, or correct the folder's path."
    )


def load_state_dict(path: Path | str, wrappers: Iterable[str] = WRAPPERS) -> dict[str, Any]:
    """The tensors of a checkpoint by key, on the CPU, in the file's dtypes.

    path: a `.safetensors` file, or a file of `torch.save` (zip or legacy format). The first load of the latter writes a
    safetensors copy next to it, which later loads read (models/weights/pickle_cache.py). wrappers: keys under which the
    state dict may be nested.

    Raises WeightsError: the file is missing, truncated, not a checkpoint, or a pickle that contains code.
    """
    path, wrappers = Path(path), tuple(wrappers)
    if not path.is_file():
        raise missing_error(path)
    if _starts(path, b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the file itself.",
            "Run `git lfs pull` in the repository that it is from.",
        )
    if path.suffix == ".safetensors":
        return _named_tensors(_read_safetensors(path), wrappers, path)
    version = pickle_cache.CheckpointVersion.of(path, wrappers)
    state = pickle_cache.read(version)
    if state is None:
        state = _named_tensors(_read_pickle(path), wrappers, path)
        pickle_cache.write(version, state)
    return state


def _named_tensors(state: Any, wrappers: tuple[str, ...], path: Path) -> dict[str, Any]:
    tensors = _unwrap(state, wrappers)
    if not tensors:
        raise WeightsError(f"{path} contains no named tensors.", "Use a state dict: a mapping of names to tensors.")
    return tensors


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}.", fetch_again(path)) from error


def _read_pickle(path: Path) -> Any:
    import torch

    mmap = zipfile.is_zipfile(path)  # only the zip format can be memory-mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "reduce" in str(error) or _starts(path, b"\x80"):  # the pickle calls a function
            raise WeightsError(
                f"{path} is a pickle that contains more than tensors; loading it could run code.",
                "Use a plain state dict or a safetensors file from a source that you trust.",
            ) from error
        raise WeightsError(f"{path} is not a complete checkpoint of torch.save.", fetch_again(path)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path} is not a complete checkpoint: {_cause(error)}.", fetch_again(path)) from error


def _cause(error: Exception) -> str:
    """The first sentence of torch's long message."""
    lines = str(error).strip().splitlines() or ["the file ends too early"]
    return lines[0].split(". ")[0].rstrip(".")


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _unwrap(state: Any, wrappers: tuple[str, ...]) -> dict[str, Any]:
    """The named tensors in a loaded object, or `{}`. Other values (an epoch counter) are dropped."""
    import torch

    if not isinstance(state, Mapping):
        return {}
    for wrapper in wrappers:
        if isinstance(state.get(wrapper), Mapping):
            return _unwrap(state[wrapper], wrappers)
    return {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def check_keys(module: Any, state: Mapping[str, Any], where: Path | str) -> None:
    """Raises WeightsError unless `state` has exactly the module's keys and shapes.

    The error has the number of missing, unexpected and mis-shaped keys, and names the first of each.
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
        _summary(kind, keys)
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if keys
    ]
    if faults:
        raise WeightsError(
            f"{where} does not fit {type(module).__name__}: {'; '.join(faults)}.",
            "Use weights and config of the same model.",
        )


def _summary(kind: str, keys: list[str]) -> str:
    more = f" and {len(keys) - MAX_SHOWN_KEYS} more" if len(keys) > MAX_SHOWN_KEYS else ""
    return f"{len(keys)} {kind} ({', '.join(keys[:MAX_SHOWN_KEYS])}{more})"


def build_module(
    build: Callable[[], Any], state: Mapping[str, Any], where: Path | str, device: Any = "cpu", dtype: Any = None
) -> Any:
    """The module that `build` returns, with the tensors in `state`, in eval mode and without gradients.

    It is built on torch's meta device, without memory and random initialisation, so that only the weights use memory.
    where: names the weights in errors. dtype: for floating-point tensors; None keeps those of `state`.

    Raises WeightsError: keys or shapes do not match (`check_keys`).
    """
    import torch

    with torch.device("meta"):
        module = build()
    check_keys(module, state, where)
    cast = {
        key: value.to(
            device, dtype if value.is_floating_point() else None, copy=True
        )  # copy: do not keep the file mapped
        for key, value in state.items()
    }
    module.load_state_dict(cast, assign=True)
    return module.eval().requires_grad_(False)


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _mtime_ns: int) -> str:
    return sha256_of(Path(path))


def fingerprint(*paths: Path | str) -> str:
    """The first 16 hex digits of the sha256 of the files' sha256 hex digests, in the given order.

    A process reads each version of a file (by size and modification time) once. Raises WeightsError: a file is missing.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        if not path.is_file():
            raise missing_error(path)
        stat = path.stat()
        digest.update(_sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
