"""Exclusive locks between processes and hosts, by flock(2), with a timeout."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from models.errors import LockedError

LOCK_TIMEOUT_S = 10.0  # locks are held for one write and its fsync
POLL_S = (0.001, 0.05)  # the first and the longest pause between two attempts
LOCKS = Path("/proc/locks")  # proc_locks(5): `1: FLOCK ADVISORY WRITE <pid> <device>:<inode> 0 EOF`


@contextlib.contextmanager
def hold_lock(path: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of a file while the block runs. The file is created if it is missing, and never replaced.

    Raises LockedError if another process holds it for longer than timeout_s, and OSError.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(file, path, timeout_s)
        yield
    finally:
        os.close(file)  # releases the lock


def _wait_for(file: int, path: Path, timeout_s: float) -> None:
    end_s, pause_s = time.monotonic() + timeout_s, POLL_S[0]
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end_s:
                break
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_S[1])
    raise LockedError(
        f"{path} has been locked for {timeout_s:g} s by {_holder(os.fstat(file).st_ino)}.",
        "Try again. If it lasts, stop that process; the lock ends with it.",
    )


def _holder(inode: int) -> str:
    """The process on this host that has a file locked, as words."""
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        for line in LOCKS.read_text().splitlines():
            _, kind, _, _, pid, place, *_ = line.split()
            if kind == "FLOCK" and place.endswith(f":{inode}"):
                return f"process {pid} ({psutil.Process(int(pid)).name()})"
    return "a process of another host or container"
