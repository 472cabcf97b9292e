"""Ages of files count only the time in which the server ran, whatever the wall clock does."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from models.runtime.service_clock import MAX_SPANS, ServiceClock

DAY_S, START_S = 86_400.0, 1_800_000_000.0


class FileSystem:
    """A folder whose clock the test sets: the modification times of files written in it follow `now_s`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.now_s = root, START_S
        real = Path.touch

        def touch(path: Path, *given: object, **options: object) -> None:
            real(path)
            os.utime(path, (self.now_s, self.now_s))

        monkeypatch.setattr(Path, "touch", touch)

    def write(self, name: str) -> float:
        (self.root / name).touch()
        return (self.root / name).stat().st_mtime

    def serve(self, clock: ServiceClock, seconds: float) -> None:
        """Let a server run for this long."""
        clock.tick()
        for _ in range(round(seconds / 30)):
            self.now_s += 30
            clock.tick()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    return FileSystem(tmp_path, monkeypatch)


def test_while_the_server_runs_the_age_is_that_of_the_wall_clock(disk: FileSystem) -> None:
    clock = ServiceClock(disk.root)
    disk.serve(clock, 600)
    written_s = disk.write("a")
    assert clock.age_s(written_s) == 0
    disk.serve(clock, 3600)
    assert clock.age_s(written_s) == 3600 and ServiceClock(disk.root).age_s(written_s) == 0, "before its first tick"


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S, 400 * DAY_S, -400 * DAY_S, 151.0, -0.001])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_jump_of_the_clock_makes_nothing_older(disk: FileSystem, jump_s: float, restarted: bool) -> None:
    """The same holds for a machine that was suspended or switched off."""
    clock = ServiceClock(disk.root)
    disk.serve(clock, 600)
    before_s = disk.write("before")
    disk.serve(clock, 600)
    disk.now_s += jump_s
    clock = ServiceClock(disk.root) if restarted else clock
    clock.tick()
    assert clock.age_s(before_s) == 600
    after_s = disk.write("after")
    disk.serve(clock, 900)
    assert clock.age_s(before_s) == pytest.approx(1500, abs=1) and clock.age_s(after_s) == 900
    disk.now_s -= jump_s  # it is corrected
    disk.serve(clock, 300)
    assert clock.age_s(before_s) == pytest.approx(1800, abs=1200), "in doubt it is younger"
    assert clock.age_s(before_s) <= 1800.5


def test_a_file_from_the_future_is_new(disk: FileSystem) -> None:
    clock = ServiceClock(disk.root)
    disk.serve(clock, 600)
    assert clock.age_s(disk.now_s + DAY_S) == 0 == clock.age_s(float("inf"))


def test_files_from_before_the_first_tick_count_from_it(disk: FileSystem) -> None:
    clock = ServiceClock(disk.root)
    disk.serve(clock, 600)
    assert clock.age_s(START_S - 400 * DAY_S) == 600


def test_several_processes_share_one_clock(disk: FileSystem) -> None:
    one, two = ServiceClock(disk.root), ServiceClock(disk.root)
    written_s = disk.write("a")
    for _ in range(10):
        one.tick()
        disk.now_s += 15
        two.tick()
        disk.now_s += 15
    one.tick()
    assert one.age_s(written_s) == 300


def test_a_tick_does_not_wait_for_another_process(disk: FileSystem) -> None:
    clock = ServiceClock(disk.root)
    clock.tick()
    with (disk.root / ".clock.lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        disk.now_s += 30
        clock.tick()
    assert clock.age_s(START_S) == 0
    clock.tick()
    assert clock.age_s(START_S) == 30


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[[1, 2]]", b'[["a", 2, 3]]', b"[[NaN, 2, 3]]"])
def test_a_damaged_clock_begins_again_and_expires_nothing(disk: FileSystem, damage: bytes) -> None:
    clock = ServiceClock(disk.root)
    written_s = disk.write("a")
    disk.serve(clock, 600)
    (disk.root / ".clock").write_bytes(damage)
    clock.tick()
    assert clock.age_s(written_s) == 0
    disk.serve(clock, 60)
    assert clock.age_s(written_s) == 60


def test_the_file_stays_small_however_often_the_clock_jumps(disk: FileSystem) -> None:
    clock = ServiceClock(disk.root)
    clock.tick()
    for _ in range(2 * MAX_SPANS):
        disk.now_s += DAY_S
        disk.serve(clock, 30)
    assert len(json.loads((disk.root / ".clock").read_bytes())) == MAX_SPANS
    assert clock.age_s(START_S) == pytest.approx(MAX_SPANS * 30, abs=60)
