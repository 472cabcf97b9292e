"""Locks between processes: they exclude one another, end with their process, and time out with the holder's name."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

import psutil
import pytest

from models.errors import LockedError
from models.runtime import file_lock
from models.runtime.file_lock import hold_lock


def test_a_lock_that_is_held_for_too_long_is_an_error_that_names_the_process(tmp_path: Path) -> None:
    path, name = tmp_path / "lock", re.escape(psutil.Process().name())
    expected = rf"locked for 0.02 s by process {os.getpid()} \({name}\)\."
    with hold_lock(path), pytest.raises(LockedError, match=expected), hold_lock(path, timeout_s=0.02):
        pass
    with hold_lock(path, timeout_s=0.0):  # it was released
        pass


def test_a_holder_on_another_host_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "LOCKS", tmp_path / "missing")
    path = tmp_path / "lock"
    with hold_lock(path), pytest.raises(LockedError, match="of another host") as caught, hold_lock(path, timeout_s=0.0):
        pass
    assert caught.value.status == 503 and "stop that process" in caught.value.remedy


def test_a_lock_is_taken_as_soon_as_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 8:
                fcntl.flock(held, fcntl.LOCK_UN)

        monkeypatch.setattr("models.runtime.file_lock.time.sleep", pause)
        with hold_lock(tmp_path / "lock"):
            assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05]
