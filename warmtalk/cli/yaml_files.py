"""YAML files that a command ships, that users copy and edit, and that are read again into a pydantic model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from models.errors import ConfigError, ExistsError

M = TypeVar("M", bound=BaseModel)


def read_model(path: Path, kind: type[M], missing: tuple[str, str], unreadable: str) -> M:
    """The file as `kind`. Raises ConfigError with the key that is wrong.

    missing: what to call the file, and the remedy, if there is none. unreadable: the remedy if it is no YAML.
    """
    name, remedy = missing
    try:
        return kind.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigError(f"{name} not found: {path}.", remedy) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no readable YAML: {error}", unreadable) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}.", "Correct the value.") from error


def copy_shipped(shipped: Path, path: Path) -> None:
    """Write a copy of a shipped file. Raises ExistsError."""
    if path.exists():
        raise ExistsError(f"{path} exists.", "Name a new file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shipped.read_bytes())
