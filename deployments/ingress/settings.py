"""The part of the ingress config that the middlewares and the login routes need, as one object per replica."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

from collections.abc import Callable
from dataclasses import dataclass

from ray import serve

from configs.schema import IngressConfig
from deployments.ingress.security.keys import Keys

ANY = "*"  # any host, any origin


@dataclass(frozen=True, slots=True)
class IngressSettings:
    """Access control and limits."""

    max_json_bytes: int
    keys: Keys
    login_s: float  # lifetime of the page's cookie
    allowed_hosts: tuple[str, ...]  # beside the names that no stranger can own; "*": any
    allowed_origins: frozenset[str]  # of other sites; "*": any

    @classmethod
    def of(cls, config: IngressConfig) -> "IngressSettings":
        """With keys and no configured host, any host is allowed. Raises ConfigError for missing or unfit keys."""
        keys = Keys.from_environment(config.api_keys_env)
        return cls(
            max_json_bytes=int(config.max_json_kb * 2**10),
            keys=keys,
            login_s=config.login_days * 86400,
            allowed_hosts=tuple(config.allowed_hosts) or ((ANY,) if keys else ()),
            allowed_origins=frozenset(config.allowed_origins),
        )


GetSettings = Callable[[], IngressSettings]


def replica_settings() -> IngressSettings:
    """The settings of the ingress replica that this process runs.

    Middlewares get this function, not the settings: serve.ingress copies the app, with all that it holds, when it is
    imported, and `reconfigure` replaces the settings later. A module-level function is copied by reference.
    """
    settings: IngressSettings = serve.get_replica_context().servable_object.settings
    return settings
