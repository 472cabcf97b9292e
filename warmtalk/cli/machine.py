"""What this machine is: installed versions, GPUs, cores, memory, within its container's limits. Judges nothing."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
COMMAND_TIMEOUT_S = 10.0


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requires_of(package: str) -> list[str]:
    return importlib.metadata.requires(package) or []


def requirements(path: Path = REQUIREMENTS) -> dict[str, str]:
    """Package → version specifier (`>=5`, `==0.2.1` or empty) of requirements.txt; empty without that file."""
    if not path.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = (re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?\s*((?:==|>=)[\d.]+)?", line) for line in lines if line)
    return {match.group(1): match.group(2) or "" for match in found if match}


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version meets `>=a.b` or `==a.b.c`; an empty specifier takes any. Local parts (`+cpu`) do not count."""
    if not specifier:
        return True
    wanted, found = _numbers(specifier[2:]), _numbers(public(version))
    width = max(len(wanted), len(found))
    padded = [part + (0,) * (width - len(part)) for part in (found, wanted)]
    return padded[0] == padded[1] if specifier.startswith("==") else padded[0] >= padded[1]


def public(version: str) -> str:
    """A version without its local part: 2.13.0+cpu → 2.13.0."""
    return version.partition("+")[0]


def nvidia_gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU, as the driver's own tool tells; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def usable_cores() -> float:
    """Cores that this process may use: the smaller of its affinity and its container's quota."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def usable_memory_bytes() -> int:
    """Memory that this process may use: the smaller of the machine's and its container's limit."""
    import psutil

    limit = _cgroup("memory.max")
    total = int(psutil.virtual_memory().total)
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(file: str) -> str:
    path = Path("/sys/fs/cgroup") / file
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path.cwd())
