"""Finds an engine class by its short name or by `module:Class`: a new engine needs one file and one config line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from models.errors import ConfigError


def find_engine(name: str, known: Mapping[str, str]) -> Any:
    """The class for `name`: a key of `known` (short name → `module:Class`), or itself a `module:Class`.

    Raises ConfigError: the name is unknown (the remedy lists the known ones) or cannot be imported.
    """
    target = known.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        raise ConfigError(f"There is no engine {name!r}.", f"Use one of {', '.join(sorted(known))}, or 'module:Class'.")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The engine {name!r} cannot be imported: {error}.", "Check the name and that its extra is installed."
        ) from error
