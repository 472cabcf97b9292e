"""Who can reach a server of a config file, and what of that its owner should know. Knows the file only."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from configs.serve_file import deployment_of

DEFAULT_HOST = "0.0.0.0"  # Serve's own, where http_options name none


def host_of(config: dict[str, Any]) -> str:
    """The address that the server listens on."""
    return str((config.get("http_options") or {}).get("host") or DEFAULT_HOST)


def api_keys_env(config: dict[str, Any]) -> str | None:
    """The environment variable with the server's keys; None: it is open to all who reach it."""
    ingress = deployment_of(config, "Ingress").get("user_config") or {}
    name: str | None = ingress.get("api_keys_env")
    return name


def exposure_warning(config: dict[str, Any]) -> str:
    """What its owner should know before it is started; "" where nothing is to be said."""
    name = api_keys_env(config)
    if name is not None and not os.environ.get(name, "").strip():
        return f"The environment variable {name}, which api_keys_env of Ingress names, is not set here."
    if name is not None or _is_loopback(host_of(config)):
        return ""
    return (
        f"Whoever can reach this machine can use the server: it listens on {host_of(config)} and wants no key. "
        "Name a variable with keys in api_keys_env of Ingress, or listen on 127.0.0.1."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
