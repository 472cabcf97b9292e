"""The wheel of this checkout, installed in a fresh environment that borrows the other packages of this one."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.paths import ROOT

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """Build the wheel offline, with every intermediate file in `folder`: the checkout stays as it is."""
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    _build([*command, "--no-index", "--wheel-dir", str(folder), str(source)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_sdist(folder: Path) -> Path:
    """Build the source distribution, with every intermediate file in `folder`."""
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    _build(["-c", code], folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def _build(arguments: list[str], folder: Path) -> None:
    config = folder / "extra.cfg"
    config.write_text(f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n")
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(config)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


class Environment:
    """A virtual environment with the wheel. Its processes do not see the checkout."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site_packages = Path(self.run(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-deps", "--no-index"]
        command += ["--quiet", "--disable-pip-version-check", str(wheel)]
        subprocess.run(command, check=True, timeout=120)

    def borrow(self, packages: set[str] | None = None) -> None:
        """Make packages of this process's environment importable: those named with what they need, or all.

        The .pth files of the borrowed folder are not read, so its editable install of the checkout has no effect.
        """
        source = SITE_PACKAGES
        if packages is not None:
            source = self.folder / "borrowed"
            source.mkdir()
            for name in _with_requirements(packages):
                for entry in _top_level(name):
                    (source / entry).symlink_to(SITE_PACKAGES / entry)
        (self.site_packages / "borrowed.pth").write_text(f"{source}\n")

    def run(self, arguments: list[str], cwd: Path | None = None, **environment: str) -> str:
        """Run this environment's Python; returns its standard output."""
        done = self.result(arguments, cwd, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def result(
        self, arguments: list[str], cwd: Path | None = None, program: str = "python", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment's bin folder."""
        command = [str(self.folder / "bin" / program), *arguments]
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=cwd or self.folder, env=kept | environment, capture_output=True, text=True, timeout=280
        )


def _with_requirements(packages: set[str]) -> set[str]:
    """The packages and everything that they require, without extras."""
    found: set[str] = set()
    todo = list(packages)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        required = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [entry.name for entry in required if entry.marker is None or entry.marker.evaluate({"extra": ""})]
    return found


def _top_level(package: str) -> set[str]:
    """Names of the package's files and folders in site-packages."""
    files = importlib.metadata.files(package) or []
    return {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}
