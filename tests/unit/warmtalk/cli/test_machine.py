"""Specification of machine: versions compared by number, requirements as they are written, limits of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from warmtalk.cli import machine


@pytest.mark.parametrize(
    ("version", "specifier", "meets"),
    [
        ("2.13.0+cpu", ">=2.6", True),
        ("2.5.1", ">=2.6", False),
        ("2.10.0", ">=2.9", True),
        ("5", ">=5", True),
        ("4.99.3", ">=5", False),
        ("0.2.1", "==0.2.1", True),
        ("0.2.10", "==0.2.1", False),
        ("5.0.0", "==5", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_number(version: str, specifier: str, meets: bool) -> None:
    assert machine.satisfies(version, specifier) is meets


def test_requirements_txt_says_the_same_as_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = machine.REQUIREMENTS.read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == project["dependencies"]
    assert len(machine.requirements()) == len(project["dependencies"]), "each line is understood"


def test_gpus_are_what_the_driver_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A, 100 MiB'\necho 'NVIDIA B, 200 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == ["NVIDIA A, 100 MiB", "NVIDIA B, 200 MiB"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.nvidia_gpus() == []


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu.max": "150000 100000", "memory.max": str(2 * 10**9)}
    monkeypatch.setattr(machine, "_cgroup", limits.get)
    assert 1 <= machine.usable_cores() <= 1.5
    assert machine.usable_memory_bytes() == 2 * 10**9
    monkeypatch.setattr(machine, "_cgroup", lambda file: "max 100000" if file == "cpu.max" else "max")
    assert machine.usable_cores() >= 1 and machine.usable_memory_bytes() > 2 * 10**9
