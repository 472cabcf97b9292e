"""Answers only under names that are the server's own, against DNS rebinding. Belongs to the ingress; knows no route.

A page may let its own name point to this machine; a viewer's browser then takes the server for the page's own, and no
origin gives the page away. Its Host header does. An address of digits, a name without a dot and the names that no
stranger can own (RFC 2606, RFC 6761, RFC 6762, a cluster's) cannot be had in that way; others are to be named. Where a
key is wanted, such a page has none, and every name will do.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.ingress.security.origins import POLICY_VIOLATION

OWN = ("localhost", "local", "internal", "svc", "test", "home.arpa")  # ends of names that strangers cannot own
ANY = "*"


class KnownHosts:
    """Refuses with 421 what asks for another host. `/healthz` answers anybody: probes send what they like."""

    allowed: Collection[str] = ()  # the replica's: Ingress.reconfigure sets them

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else ""
        if known_host(host, self.allowed) or route_path(scope) == "/healthz":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "The host is not known."})
        else:
            await JSONResponse({"error": _refusal(host)}, 421)(scope, receive, send)


def known_host(host: str, allowed: Collection[str] = ()) -> bool:
    """Whether a Host header names this server. allowed: further names; "*.my.site": any below; "*": any at all."""
    name = _name(host)
    if not name or _is_address(name) or "." not in name:
        return True  # no browser sends none
    ends = [*OWN, *(entry[2:] for entry in map(_name, allowed) if entry.startswith("*."))]
    return name in map(_name, allowed) or ANY in allowed or any(name.endswith(f".{end}") for end in ends)


def route_path(scope: Scope) -> str:
    """A request's path below where the application is mounted."""
    path: str = scope.get("path", "")
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _name(host: str) -> str:
    """The host in lower case, without port, brackets and the root's dot."""
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
        "message": f"This server does not answer under the name {shown}.",
        "remedy": "Name it in allowed_hosts of Ingress, or have the server want a key: api_keys_env.",
    }
