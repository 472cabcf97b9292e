"""Starts the graph of a Serve config file on a local Ray, and stops it. Knows no model and no stage.

The same files go to a cluster with `serve deploy`; here they are handed to the Serve controller in process, so that no
dashboard is needed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from configs.exposure import keys_env_of, warning_of
from configs.serve_file import ConfigFileError, load_serve_config
from models.errors import ConfigError, StageError

CODE = Path(__file__).resolve().parents[2]
RAY_STARTS = 2  # a node now and then fails to come up beside another Ray that is still ending
START_TIMEOUT_S = 600.0  # a first start may compile models
OBJECT_STORE_BYTES = 600 * 2**20  # a second of 512 px frames is 20 MB; several sessions fit

Progress = Callable[[int, int, str], None]  # stages that run, stages in all, what is being waited for


class LocalGraph:
    """The graph on a Ray of its own. `with LocalGraph("demo") as graph: … graph.url …`"""

    def __init__(
        self,
        config: str = "demo",
        port: int | None = None,
        home: Path | None = None,
        adapt: Callable[[dict[str, Any]], None] | None = None,
        resources: dict[str, Any] | None = None,
    ) -> None:
        """config: a name or path. `adapt` may change the loaded config; `resources` are further arguments of ray.init.

        Raises ConfigError for a bad file or a port that is in use.
        """
        try:
            self.config = load_serve_config(config)
        except ConfigFileError as error:
            raise ConfigError(str(error), "`warmtalk doctor` checks the rest.") from error
        http = self.config["http_options"] = self.config.get("http_options") or {}
        if port is not None:
            http["port"] = port
        if adapt is not None:
            adapt(self.config)
        self.host, self.port = http.get("host", "127.0.0.1"), http.get("port", 8000)
        self.home = home or Path(os.environ.get("WARMTALK_HOME") or Path.cwd())
        self.resources = resources or {}

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}"

    def greeting(self) -> list[str]:
        """What to say of it when it runs, in rich's markup: where it is, how it is asked, who else can reach it."""
        url, key = self.url, keys_env_of(self.config)
        header = ' -H "Authorization: Bearer $WARMTALK_API_KEY"' if key else ""
        body = """-H 'Content-Type: application/json' -d '{"text": "Hello."}'"""
        lines = [f"[bold green]Open {url} and talk[/]  (API: {url}/docs, stop: Ctrl-C)"]
        lines += [f"  curl -X POST {url}/speak{header} {body}"]
        warning = warning_of(self.config)
        return [*lines, f"[bold yellow]{warning}[/]"] if warning else lines

    def hand_key(self) -> None:
        """Let this process ask its own server: $WARMTALK_API_KEY is its key, where it wants one."""
        if name := keys_env_of(self.config):
            os.environ["WARMTALK_API_KEY"] = re.split(r"[\s,]+", os.environ[name].strip())[0]

    def start(self, progress: Progress | None = None) -> LocalGraph:
        """Start Ray and the graph; return when every stage runs. Raises ConfigError, StageError, and leaves nothing."""
        require_free_port(self.host, self.port)
        self._schema()
        try:
            self._start_ray()
            self._deploy()
            self._wait(progress or (lambda done, total, waiting: None))
        except BaseException:
            self.stop()
            raise
        return self

    def deploy(self, config: dict[str, Any]) -> None:
        """Put a changed config into the running graph: only what changed is restarted."""
        self.config = config
        self._deploy()

    def stop(self) -> None:
        """End every process of this Ray. Session files are whole at any moment, so nothing needs to be waited for."""
        import ray
        from ray.serve.context import _get_global_client

        if not ray.is_initialized():
            return
        if client := _get_global_client(raise_if_no_controller_running=False):
            client.shutdown_cached_handles()  # their threads would go on asking a controller that is gone
        ray.shutdown()

    def __enter__(self) -> LocalGraph:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_ray(self) -> None:
        import ray
        from ray._private import auto_init_hook

        auto_init_hook.enable_auto_connect = False  # a handle that outlives stop() must not start another Ray
        os.environ["WARMTALK_HOME"] = str(self.home.resolve())
        paths = [str(CODE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # workers import graph and its rooms
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        arguments: dict[str, Any] = {
            "address": "local",  # never join, and never stop, a Ray that somebody else runs
            "namespace": "serve",
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "error",
            "object_store_memory": OBJECT_STORE_BYTES,
            "_system_config": {"prestart_worker_first_driver": False},  # idle workers cost 100 MB and a second each
        }
        for attempt in range(RAY_STARTS):
            try:
                ray.init(**{**arguments, **self.resources})
                return
            except Exception as error:
                ray.shutdown()
                if attempt == RAY_STARTS - 1 or "timed out during startup" not in str(error):
                    raise

    def _schema(self) -> Any:
        """The config as Serve reads it. Raises ConfigError for what Serve does not take."""
        from ray.serve.schema import ServeDeploySchema

        try:
            return ServeDeploySchema.model_validate(self.config)
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"]))
            raise ConfigError(f"The config file is not one of Serve: {place}: {found['msg']}.", "Mend it.") from error

    def _deploy(self) -> None:
        from ray.serve._private.api import serve_start
        from ray.serve.config import gRPCOptions

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        schema = self._schema()
        client = serve_start(
            http_options=schema.http_options.model_dump(),
            proxy_location=schema.proxy_location,
            grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
            global_logging_config=schema.logging_config,
        )
        client.deploy_apps(schema, _blocking=False)

    def _wait(self, progress: Progress) -> None:
        from ray import serve

        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s:
            applications = serve.status().applications
            for name, application in applications.items():
                if application.status in ("DEPLOY_FAILED", "UNHEALTHY") or _cannot_mend(application):
                    raise StageError(f"The application {name!r} did not start: {_reason(application)}", _LOGS)
            stages = {name: d.status for a in applications.values() for name, d in a.deployments.items()}
            waiting = [name for name, status in stages.items() if status != "HEALTHY"]
            progress(len(stages) - len(waiting), max(len(stages), 1), ", ".join(waiting))
            if applications and all(a.status == "RUNNING" for a in applications.values()):
                return
            time.sleep(0.2)
        raise StageError(f"The graph was not ready after {START_TIMEOUT_S:.0f} s.", _LOGS)


# Errors that another try of the same config cannot mend; Serve makes three, of some ten seconds each.
LASTING = ("ConfigError", "WeightsError", "CorruptError", "VideoError", "NoFaceError", "IdError", "AvatarNotFound")
_LOGS = "Logs of every stage: /tmp/ray/session_latest/logs/serve."


def _cannot_mend(application: Any) -> bool:
    """Whether a replica that failed to start gave an error that it would give at each further try."""
    text = "\n".join(_lines(application))
    return any(kind in LASTING for kind in re.findall(r"^models\.errors\.(\w+): ", text, re.MULTILINE))


def _reason(application: Any) -> str:
    """The error's own sentence, out of what Serve says of a failed start; else the last line of that."""
    lines = _lines(application)
    sentences = re.findall(r"^models\.errors\.\w+: (.+)$", "\n".join(lines), re.MULTILINE)
    return str((sentences or lines or ["no reason was given"])[-1])


def _lines(application: Any) -> list[str]:
    """All that Serve says of an application and of those of its deployments that do not run."""
    messages = [d.message for d in application.deployments.values() if d.status != "HEALTHY"]
    lines = [line.strip() for text in [application.message, *messages] for line in (text or "").splitlines()]
    return [line for line in lines if line]


def require_free_port(host: str, port: int) -> None:
    """Raises ConfigError when something listens there already, or nobody may."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError, TypeError) as error:
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise ConfigError(
                    f"Port {port} on {host} is in use.", "Stop what listens there, or choose another with --port."
                ) from error
            raise ConfigError(
                f"Port {port} on {host} cannot be used: {error}.", "Choose another with --port, or mend http_options."
            ) from error
