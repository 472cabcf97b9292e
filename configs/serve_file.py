"""Reads Serve config files and checks our part of them before anything is started. Knows YAML and the schema only."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.schema import STAGES, AppConfig

FOLDER = Path(__file__).parent

# Serve 2.60's own keys of an entry under `deployments`. It passes over others, so a misspelt limit would be no limit.
DEPLOYMENT_KEYS = (
    "name", "num_replicas", "max_ongoing_requests", "max_queued_requests", "backpressure_config", "user_config",
    "autoscaling_config", "graceful_shutdown_wait_loop_s", "graceful_shutdown_timeout_s", "health_check_period_s",
    "health_check_timeout_s", "ray_actor_options", "placement_group_bundles", "placement_group_strategy",
    "placement_group_bundle_label_selector", "max_replicas_per_node", "logging_config", "request_router_config",
    "gang_scheduling_config", "deployment_actors", "rolling_update_percentage", "max_surge_percent",
)  # fmt: skip

SINGLE = ("Chat",)  # stages of one replica


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
    """The config as a dictionary, checked: every user_config against its stage's schema. Raises ConfigFileError.

    Where `args` leave a stage out of the graph its section goes, too: Serve refuses options of what is not there.
    """
    path = config_path(name)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"{path}: not valid YAML: {error}") from error
    except OSError as error:
        raise ConfigFileError(f"{path}: cannot be read: {error.strerror}.") from error
    applications = config.get("applications") if isinstance(config, dict) else None
    if not applications or not _are_mappings(applications):
        raise ConfigFileError(f"{path}: a Serve config file has a list named 'applications'.")
    for application in applications:
        _check_application(path, application)
    return dict(config)


def _check_application(path: Path, application: dict[str, Any]) -> None:
    try:
        args = AppConfig.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise ConfigFileError(f"{path}: args: {_sentence(error)}") from error
    deployments = application.get("deployments") or []
    if not _are_mappings(deployments):
        raise ConfigFileError(f"{path}: 'deployments' is a list of stages, each with its name.")
    for deployment in deployments:
        name = deployment.get("name")
        if name not in STAGES:
            raise ConfigFileError(f"{path}: there is no stage {name!r}. Stages are {', '.join(STAGES)}.")
        for key in deployment:
            if key not in DEPLOYMENT_KEYS:
                near = difflib.get_close_matches(str(key), DEPLOYMENT_KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(DEPLOYMENT_KEYS)}."
                raise ConfigFileError(f"{path}: {name}: unknown key {key!r}: {hint}")
        try:
            STAGES[name].model_validate(deployment.get("user_config") or {})
        except ValidationError as error:
            raise ConfigFileError(f"{path}: {name}.user_config: {_sentence(error)}") from error
        _refuse_replicas(path, deployment)
    absent = {name for name, there in (("Enhance", args.enhance), ("Recognize", args.recognize)) if not there}
    if absent:
        application["deployments"] = [entry for entry in deployments if entry["name"] not in absent]


def _refuse_replicas(path: Path, deployment: dict[str, Any]) -> None:
    """Chat is one: a job's replica alone can interrupt it, and nothing leads a session's calls to it."""
    wanted = deployment.get("num_replicas") or 1
    most = (deployment.get("autoscaling_config") or {}).get("max_replicas", 100 if wanted == "auto" else 1)
    if deployment["name"] in SINGLE and (wanted not in (1, "auto") or most != 1):
        raise ConfigFileError(
            f"{path}: {deployment['name']}: it has one replica: messages wait for others, and jobs outlive it. "
            "Set num_replicas: 1, or max_replicas: 1 of its autoscaling_config."
        )


def deployment_of(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """The entry of `stage` under `deployments` of the first application, made if it is not there."""
    deployments: list[dict[str, Any]] = config["applications"][0].setdefault("deployments", [])
    for deployment in deployments:
        if deployment["name"] == stage:
            return deployment
    deployments.append({"name": stage})
    return deployments[-1]


def _are_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}".lstrip(": ") for detail in error.errors()
    )
