"""Describes this machine: GPUs, cores and memory, within the limits of its container."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

COMMAND_TIMEOUT_S = 10.0


def nvidia_gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU, from `nvidia-smi`; empty without a GPU."""
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
    """CPU cores available to this process: the smaller of its affinity and its container's quota."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def usable_memory_bytes() -> int:
    """Memory available to this process: the smaller of the machine's and its container's limit."""
    import psutil

    limit = _cgroup("memory.max")
    total = int(psutil.virtual_memory().total)
    return min(total, int(limit)) if limit.isdigit() else total


def ray_processes() -> list[int]:
    """Process ids of the Ray heads (GCS servers) on this machine."""
    import psutil

    return [p.info["pid"] for p in psutil.process_iter(["pid", "name"]) if p.info["name"] == "gcs_server"]


def existing(folder: Path) -> Path:
    """The folder itself, or its nearest parent that exists."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path.cwd())


def _cgroup(file: str) -> str:
    path = Path("/sys/fs/cgroup") / file
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
