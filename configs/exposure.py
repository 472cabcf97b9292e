"""Who can reach the server of a config file, and a warning if it is open to everybody on the network."""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from configs.serve_file import deployment_of

DEFAULT_HOST = "0.0.0.0"  # Serve's default when http_options name no host


def listen_host(config: dict[str, Any]) -> str:
    """The address that the server listens on."""
    return str((config.get("http_options") or {}).get("host") or DEFAULT_HOST)


def api_keys_env(config: dict[str, Any]) -> str | None:
    """The environment variable that holds the API keys; None: the server requires no key."""
    ingress = deployment_of(config, "Ingress").get("user_config") or {}
    name: str | None = ingress.get("api_keys_env")
    return name


def exposure_warning(config: dict[str, Any]) -> str:
    """A warning to show before the server starts, or an empty text."""
    name = api_keys_env(config)
    if name is not None and not os.environ.get(name, "").strip():
        return f"The environment variable {name}, which api_keys_env of Ingress names, is not set here."
    host = listen_host(config)
    if name is not None or _is_loopback(host):
        return ""
    return (
        f"The server listens on {host} and requires no API key: everybody who can reach this machine can use it. "
        "Set api_keys_env of Ingress to a variable with keys, or listen on 127.0.0.1."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
