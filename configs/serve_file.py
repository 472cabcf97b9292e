"""Reads Serve config files and checks our part of them before anything is started. Knows YAML and the schema only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.schema import STAGES, AppConfig

FOLDER = Path(__file__).parent


class ConfigFileError(ValueError):
    """A config file that cannot be used; the message says where and why."""


def config_path(name: str) -> Path:
    """The file of a short name (`demo`, `gpu`, `cluster`) or of a path. Raises ConfigFileError."""
    path = Path(name)
    if not path.suffix and (FOLDER / f"{name}.yaml").is_file():
        return FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in FOLDER.glob("*.yaml")))
        raise ConfigFileError(f"There is no config file {name!r}. Use a path, or one of: {known}.")
    return path


def load_serve_config(name: str) -> dict[str, Any]:
    """The config as a dictionary, checked: every user_config against its stage's schema. Raises ConfigFileError."""
    path = config_path(name)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(config, dict) or not config.get("applications"):
        raise ConfigFileError(f"{path}: a Serve config file has a list named 'applications'.")
    for application in config["applications"]:
        _check_application(path, application)
    return config


def _check_application(path: Path, application: dict[str, Any]) -> None:
    try:
        AppConfig.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise ConfigFileError(f"{path}: args: {_sentence(error)}") from error
    for deployment in application.get("deployments") or []:
        name = deployment.get("name")
        if name not in STAGES:
            raise ConfigFileError(f"{path}: there is no stage {name!r}. Stages are {', '.join(STAGES)}.")
        try:
            STAGES[name].model_validate(deployment.get("user_config") or {})
        except ValidationError as error:
            raise ConfigFileError(f"{path}: {name}.user_config: {_sentence(error)}") from error


def deployment_of(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """The entry of `stage` under `deployments` of the first application, made if it is not there."""
    deployments: list[dict[str, Any]] = config["applications"][0].setdefault("deployments", [])
    for deployment in deployments:
        if deployment["name"] == stage:
            return deployment
    deployments.append({"name": stage})
    return deployments[-1]


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}".lstrip(": ") for detail in error.errors()
    )
