"""Build hook: the wheel holds one package, `warmtalk`, with the server's code, weights and page in `warmtalk/_server/`.

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
SERVER = ("graph.py", "configs", "deployments", "models", "web")  # what the server's processes import and read
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


class BuildWithServer(build_py):
    """Copies SERVER into the built package."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "warmtalk"
        shutil.rmtree(package, ignore_errors=True)  # files of an earlier build that were since renamed
        super().run()
        for name in SERVER:
            source, target = ROOT / name, package / "_server" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=IGNORED)
            else:
                shutil.copy2(source, target)


class EditableWithServer(editable_wheel):
    """In a checkout, the server's modules are importable as they are: `serve deploy` needs no PYTHONPATH."""

    def run(self) -> None:
        self.distribution.packages = find_packages(include=["warmtalk*", *(f"{name}*" for name in SERVER)])
        self.distribution.py_modules = ["graph"]
        super().run()


setup(cmdclass={"build_py": BuildWithServer, "editable_wheel": EditableWithServer})
