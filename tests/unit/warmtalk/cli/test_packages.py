"""Installed packages against the requirements, and the advice for a missing one, in a checkout and from a wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT
from warmtalk.cli import packages


def test_requirements_are_those_of_the_server_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "httpx>=0.27",
        'torch>=2.6; extra == "server"',
        'pytest; extra == "dev"',
        'ray[serve]>=2; extra == "server"',
    ]
    monkeypatch.setattr(packages, "requires_of", lambda package: lines)
    found = packages.requirements()
    assert {name: str(specifier) for name, specifier in found.items()} == {
        "httpx": ">=0.27",
        "torch": ">=2.6",
        "ray": ">=2",
    }


def test_the_server_extra_names_every_package_once_and_the_client_needs_httpx_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = [Requirement(line).name for line in project["optional-dependencies"]["server"]]
    assert len(server) == len(set(server)) >= 20 and "httpx" not in server
    assert [Requirement(line).name for line in project["dependencies"]] == ["httpx"]


def test_every_requirement_is_pinned_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    pins = {Requirement(line).name.lower().replace("_", "-"): Requirement(line) for line in lines if line}
    for line in project["dependencies"] + project["optional-dependencies"]["server"]:
        wanted = Requirement(line)
        (pin,) = pins[wanted.name.lower()].specifier
        assert pin.operator == "==" and wanted.specifier.contains(pin.version), line


@pytest.mark.parametrize(
    ("requires", "version"),
    [(["numpy", "torch==2.13.0"], "2.13.0"), (["torch (==2.12.0)"], "2.12.0"), (["torch>=2"], None), ([], None)],
)
def test_an_exact_requirement_is_found(
    monkeypatch: pytest.MonkeyPatch, requires: list[str], version: str | None
) -> None:
    monkeypatch.setattr(packages, "requires_of", lambda package: requires)
    assert packages.exact_requirement("torchvision", on="torch") == version


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'cv2'", name="cv2.data")
    monkeypatch.setattr(packages, "in_checkout", lambda: False)
    assert packages.missing_package(error) == (
        "The package 'opencv-python-headless' is not installed.",
        "Run: python -m pip install 'warmtalk[server]'",
    )
    monkeypatch.setattr(packages, "in_checkout", lambda: True)
    assert "make setup" in packages.missing_package(error)[1]
    broken = ImportError("libGL.so.1: cannot open shared object file", name="cv2")
    assert "cannot be imported: libGL.so.1" in packages.missing_package(broken)[0]


def test_a_missing_module_of_our_own_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        packages.missing_package(ModuleNotFoundError("No module named 'models.x'", name="models.x"))


def test_a_folder_with_a_makefile_is_a_checkout(tmp_path: Path) -> None:
    assert packages.in_checkout(ROOT) and not packages.in_checkout(tmp_path)


def test_the_command_without_the_server_extra_says_what_to_install(tmp_path: Path) -> None:
    """An import of typer fails as it does where typer is not installed."""
    code = "import sys; sys.modules['typer'] = None; from warmtalk.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("The package 'typer' is not installed.\n→ ")
