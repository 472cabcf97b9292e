"""Reads Serve config files and checks them before anything is started."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.schema import STAGES, AppConfig

FOLDER = Path(__file__).parent

# The keys of an entry under `deployments` in Serve 2.60. Serve ignores unknown ones, so a misspelt limit has no effect.
DEPLOYMENT_KEYS = (
    "name", "num_replicas", "max_ongoing_requests", "max_queued_requests", "backpressure_config", "user_config",
    "autoscaling_config", "graceful_shutdown_wait_loop_s", "graceful_shutdown_timeout_s", "health_check_period_s",
    "health_check_timeout_s", "ray_actor_options", "placement_group_bundles", "placement_group_strategy",
    "placement_group_bundle_label_selector", "max_replicas_per_node", "logging_config", "request_router_config",
    "gang_scheduling_config", "deployment_actors", "rolling_update_percentage", "max_surge_percent",
)  # fmt: skip

SINGLE_REPLICA = ("Chat",)  # stages that must have one replica


class ConfigFileError(ValueError):
    """A config file that cannot be used. The message names the place and the reason."""


def config_path(name: str) -> Path:
    """The config file for a short name (`demo`, `gpu`, `node`, `cluster`) or a path. Raises ConfigFileError."""
    path = Path(name)
    if not path.suffix and (FOLDER / f"{name}.yaml").is_file():
        return FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in FOLDER.glob("*.yaml")))
        raise ConfigFileError(f"There is no config file {name!r}. Use a path, or one of: {known}.")
    return path


def load_serve_config(name: str) -> dict[str, Any]:
    """The config as a dictionary. Every user_config is checked against the schema of its stage.

    Sections of stages that `args` leave out of the graph are removed, because Serve refuses options for deployments
    that do not exist. Raises ConfigFileError.
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
        raise ConfigFileError(f"{path}: a Serve config file needs a list named 'applications'.")
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
        raise ConfigFileError(f"{path}: 'deployments' must be a list of stages, each with its name.")
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
        _check_replicas(path, deployment)
    absent = {name for name, present in (("Enhance", args.enhance), ("Recognize", args.recognize)) if not present}
    if absent:
        application["deployments"] = [entry for entry in deployments if entry["name"] not in absent]


def _check_replicas(path: Path, deployment: dict[str, Any]) -> None:
    """Chat must have one replica: only the replica that runs a job can interrupt it, and calls are not routed to it."""
    replicas = deployment.get("num_replicas") or 1
    most = (deployment.get("autoscaling_config") or {}).get("max_replicas", 100 if replicas == "auto" else 1)
    if deployment["name"] in SINGLE_REPLICA and (replicas not in (1, "auto") or most != 1):
        raise ConfigFileError(
            f"{path}: {deployment['name']} must have exactly one replica. "
            "Set num_replicas: 1, or max_replicas: 1 in its autoscaling_config."
        )


def deployment_of(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """The entry of `stage` under `deployments` of the first application. It is added if it is missing."""
    deployments: list[dict[str, Any]] = config["applications"][0].setdefault("deployments", [])
    for deployment in deployments:
        if deployment["name"] == stage:
            return deployment
    deployments.append({"name": stage})
    return deployments[-1]


def gpu_stages(config: dict[str, Any]) -> list[str]:
    """The stages to which the config gives a share of a GPU. Ray starts none of them on a machine without one."""
    entries = [entry for application in config["applications"] for entry in application.get("deployments") or []]
    return [entry["name"] for entry in entries if (entry.get("ray_actor_options") or {}).get("num_gpus")]


def _are_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}".lstrip(": ") for detail in error.errors()
    )
