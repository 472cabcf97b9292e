"""Checks whether a port is free, and whether a WarmTalk server already listens on it."""

from __future__ import annotations

import errno
import socket

import httpx

from models.errors import ConfigError

PROBE_TIMEOUT_S = 2.0


class ServerRunningError(ConfigError):
    """A WarmTalk server already listens on the port. `url`: its address."""

    def __init__(self, url: str) -> None:
        super().__init__(f"A WarmTalk server is already running at {url}.", "Pass --port to start another.")
        self.url = url


def server_url(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens on `host`."""
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def is_warmtalk(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether a WarmTalk server answers at `url`. It may require an API key for everything but /healthz."""
    try:
        with httpx.Client(base_url=url, timeout=timeout_s, trust_env=False) as client:
            if client.get("/healthz").json() != {"status": "ok"}:
                return False
            answer = client.get("/abilities")
            return answer.status_code == 401 or "recognition" in answer.json()
    except (httpx.HTTPError, ValueError, TypeError):
        return False


def require_free_port(host: str, port: int) -> None:
    """Raises ServerRunningError or ConfigError if the port is in use, ConfigError if it cannot be used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError, TypeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                remedy = "Pass another with --port, or correct http_options in the config file."
                raise ConfigError(f"Port {port} on {host} cannot be used: {error}.", remedy) from error
            url = server_url(host, port)
            if is_warmtalk(url):
                raise ServerRunningError(url) from error
            message = f"Port {port} on {host} is in use by another process."
            raise ConfigError(message, "Pass another with --port, or stop that process.") from error
