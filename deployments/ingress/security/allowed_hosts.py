"""Middleware against DNS rebinding: the server answers only requests for its own host names.

An attacker's page can make its own domain name resolve to this machine. The browser then takes this server for the
page's own origin, so a check of `Origin` does not help, but the Host header still holds the attacker's name. Accepted
are IP addresses, names without a dot, and names that no stranger can register (RFC 2606, RFC 6761, RFC 6762, names
inside a cluster); others must be configured. Where an API key is required, any host is accepted: such a page has no
key.

Starlette's TrustedHostMiddleware does not fit: it has a fixed list of names.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.common.requests import sent_error
from deployments.ingress.security.origins import POLICY_VIOLATION
from deployments.ingress.settings import ANY, GetSettings

PROBES = ("/healthz", "/readyz")
SAFE_SUFFIXES = ("localhost", "local", "internal", "svc", "test", "home.arpa")


class AllowedHosts:
    """Refuses other hosts with 421. PROBES accept any host, because probes send arbitrary ones."""

    def __init__(self, app: ASGIApp, settings: GetSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        host = Headers(scope=scope).get("host", "")
        if is_allowed_host(host, self._settings().allowed_hosts) or route_path(scope) in PROBES:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "This host is not allowed."})
        else:
            await JSONResponse({"error": sent_error(_refusal(host))}, 421)(scope, receive, send)


def is_allowed_host(host: str, allowed: Collection[str] = ()) -> bool:
    """Whether a Host header names this server.

    allowed: further names. "*.my.site" allows every name below my.site, "*" every name.
    """
    name = _name(host)
    if not name or _is_address(name) or "." not in name:  # a browser always sends a host
        return True
    suffixes = [*SAFE_SUFFIXES, *(entry[2:] for entry in map(_name, allowed) if entry.startswith("*."))]
    return name in map(_name, allowed) or ANY in allowed or any(name.endswith(f".{suffix}") for suffix in suffixes)


def route_path(scope: Scope) -> str:
    """The path of a request, relative to where the application is mounted."""
    path: str = scope.get("path", "")
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _name(host: str) -> str:
    """The host in lower case, without port, brackets and the dot of the DNS root."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return False


def _refusal(host: str) -> dict[str, str]:
    shown = ascii(_name(host)[:80])
    return {
        "code": "unknown_host",
        "message": f"This server does not answer requests for the host {shown}.",
        "remedy": "Add it to allowed_hosts of Ingress, or require an API key with api_keys_env.",
    }
