"""What this process takes: memory, files, threads, tasks. Two looks, with work between them, show what leaks."""

# no `from __future__ import annotations`: the ingress uses it

import asyncio
import os
from typing import Any

FOOTPRINT = ("pid", "rss_mb", "open_files", "threads", "tasks")


def footprint() -> dict[str, Any]:
    """Of the calling process, and the running event loop's tasks; `open_files` counts sockets, too."""
    import psutil

    process = psutil.Process()
    return {
        "pid": os.getpid(),
        "rss_mb": round(process.memory_info().rss / 1e6, 1),
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": len(asyncio.all_tasks()),
    }
