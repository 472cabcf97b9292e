"""Compares installed packages with what this project requires, and says how to install what is missing."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from warmtalk.cli import CODE

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

SERVER_INSTALL = "python -m pip install 'warmtalk[server]'"
CHECKOUT_INSTALL = "python -m pip install -r requirements.lock"
OWN_MODULES = ("configs", "deployments", "graph", "models", "warmtalk")

# Modules whose package has another name.
PACKAGES = {
    "cv2": "opencv-python-headless", "hibari": "hibari-tts", "huggingface_hub": "huggingface-hub",
    "multipart": "python-multipart", "PIL": "pillow", "yaml": "pyyaml",
}  # fmt: skip


def in_checkout(code: Path = CODE) -> bool:
    """Whether this process runs from a clone of the repository, where `make` works."""
    return (code / "Makefile").is_file()


def install_remedy() -> str:
    """How to install what the server needs, here."""
    return f"Run `make setup` or `{CHECKOUT_INSTALL}`." if in_checkout() else f"Run: {SERVER_INSTALL}"


def missing_package(error: ImportError) -> tuple[str, str]:
    """Message and remedy for a failed import. Raises `error` again if the missing module is one of ours."""
    module = (error.name or "").partition(".")[0]
    if not module or module in OWN_MODULES:
        raise error
    package = PACKAGES.get(module, module)
    if isinstance(error, ModuleNotFoundError):
        return f"The package {package!r} is not installed.", install_remedy()
    return f"The package {package!r} cannot be imported: {error}.", install_remedy()


def version_of(package: str) -> str | None:
    """The installed version, from its metadata: importing would take seconds. None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requires_of(package: str) -> list[str]:
    """The requirements in an installed package's metadata, such as `ray[serve]>=2.60; extra == "server"`."""
    try:
        return importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def requirements() -> dict[str, SpecifierSet]:
    """Package → version specifier of everything that the server needs; empty if warmtalk itself is not installed."""
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in requires_of("warmtalk")]
    wanted = [entry for entry in parsed if entry.marker is None or entry.marker.evaluate({"extra": "server"})]
    return {entry.name: entry.specifier for entry in wanted}


def exact_requirement(package: str, on: str) -> str | None:
    """The version of `on` that `package` pins with `==` in its metadata; None without such a pin."""
    from packaging.requirements import Requirement

    pinned = [entry for entry in map(Requirement, requires_of(package)) if entry.name == on]
    return next((part.version for entry in pinned for part in entry.specifier if part.operator == "=="), None)


def public(version: str) -> str:
    """A version without its local part: 2.13.0+cpu → 2.13.0."""
    return version.partition("+")[0]
