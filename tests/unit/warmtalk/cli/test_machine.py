"""What the machine offers: GPUs as the driver lists them, cores and memory within a container's limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmtalk.cli import machine


def test_gpus_are_those_that_nvidia_smi_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A, 100 MiB'\necho 'NVIDIA B, 200 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == ["NVIDIA A, 100 MiB", "NVIDIA B, 200 MiB"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.nvidia_gpus() == []


def test_cores_and_memory_obey_the_containers_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu.max": "50000 100000", "memory.max": str(2 * 10**8)}
    monkeypatch.setattr(machine, "_cgroup", limits.get)
    assert machine.usable_cores() == 0.5
    assert machine.usable_memory_bytes() == 2 * 10**8
    monkeypatch.setattr(machine, "_cgroup", lambda file: "max 100000" if file == "cpu.max" else "max")
    assert machine.usable_cores() >= 1 and machine.usable_memory_bytes() > 2 * 10**8
