"""Faults that a test injects into running replicas, through files in $CHAOS_FAULTS.

`put` writes <stage>.json; the fake engine of that stage calls `strike` before each call. Kinds:

    hang     one call never returns; the other replicas go on
    cuda     one call raises a CUDA error, and so does every later call of that process, as a poisoned context does
    oom      calls with more than `above` items raise torch.OutOfMemoryError, until `clear`
    slow     calls take `ms_per_item` longer per item, until `clear`

site/sitecustomize.py reads clock.json (`offset_s`) and disk.json (`ms_per_write`) in every process of the graph.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

VARIABLE = "CHAOS_FAULTS"
ONCE = ("hang", "cuda")  # one call takes the fault; the others do not see it
DEVICE_ASSERT = "CUDA error: device-side assert triggered"

_poisoned = False  # this process's CUDA context


def put(folder: Path, target: str, **fault: Any) -> None:
    """Inject a fault into a stage, `clock` or `disk`. It takes effect with the next call."""
    draft = folder / f".{target}"
    draft.write_text(json.dumps(fault))
    draft.rename(folder / f"{target}.json")


def taken(folder: Path, target: str) -> bool:
    """Whether a call has taken a fault of ONCE."""
    return (folder / f"{target}.taken").exists()


def clear(folder: Path) -> None:
    """Take back all faults. A process that hangs or is poisoned stays so."""
    for path in folder.iterdir():
        path.unlink()


def strike(stage: str, items: int) -> None:
    """Fail, hang or slow down as the stage's fault says. Called by fake engines, on the compute thread."""
    global _poisoned
    if _poisoned:
        raise _device_assert()
    path = Path(os.environ[VARIABLE]) / f"{stage}.json"
    try:
        fault = json.loads(path.read_text())
        if fault["kind"] in ONCE:
            path.rename(path.with_suffix(".taken"))  # of several replicas, one succeeds
    except FileNotFoundError:
        return
    if fault["kind"] == "hang":
        time.sleep(3600)
    elif fault["kind"] == "cuda":
        _poisoned = True
        raise _device_assert()
    elif fault["kind"] == "oom" and items > fault["above"]:
        import torch

        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {items}.00 GiB.")
    elif fault["kind"] == "slow":
        time.sleep(items * fault["ms_per_item"] / 1e3)


def _device_assert() -> Exception:
    import torch

    kind = getattr(torch, "AcceleratorError", RuntimeError)
    with contextlib.suppress(TypeError):
        return kind(DEVICE_ASSERT)
    return RuntimeError(DEVICE_ASSERT)
