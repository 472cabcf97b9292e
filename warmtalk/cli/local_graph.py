"""Starts the graph of a Serve config file on a local Ray, and stops it.

On a cluster the same files are deployed with `serve deploy`. Here they go to the Serve controller directly, which needs
no dashboard.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from configs.exposure import api_keys_env, exposure_warning
from configs.serve_file import ConfigFileError, gpu_stages, load_serve_config
from deployments.common import loopback
from models.errors import ConfigError, StageError
from warmtalk.cli import CODE
from warmtalk.cli.ports import require_free_port, server_url

RAY_START_ATTEMPTS = 2  # a node sometimes fails to start while another Ray on the machine shuts down
START_TIMEOUT_S = 600.0  # the first start may compile models
OBJECT_STORE_BYTES = 600 * 2**20  # one second of 512 px faces is 20 MB: enough for several sessions
GPU_OBJECT_STORE_BYTES = 4 * 2**30  # forty sessions with four chunks of 16 faces in flight: 0.5 GB, enhanced 2 GB

Progress = Callable[[int, int, str], None]  # healthy stages, all stages, names of the stages that are not healthy yet


class LocalGraph:
    """The graph on its own Ray. `with LocalGraph("demo") as graph: … graph.url …`"""

    def __init__(
        self,
        config: str = "demo",
        port: int | None = None,
        home: Path | None = None,
        adapt: Callable[[dict[str, Any]], None] | None = None,
        resources: dict[str, Any] | None = None,
    ) -> None:
        """config: a short name or a path. home: replaces $WARMTALK_HOME. adapt: changes the loaded config in place.
        resources: further arguments of ray.init. Raises ConfigError for an invalid config file.
        """
        try:
            self.config = load_serve_config(config)
        except ConfigFileError as error:
            raise ConfigError(str(error), "Correct the file, or name another with --config.") from error
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
        return server_url(self.host, self.port)

    def greeting(self) -> list[str]:
        """What to print when it runs, in rich's markup: address, a request to try, a warning if it is exposed."""
        url, key = self.url, api_keys_env(self.config)
        header = ' -H "Authorization: Bearer $WARMTALK_API_KEY"' if key else ""
        body = """-H 'Content-Type: application/json' -d '{"text": "Hello."}'"""
        lines = [f"[bold green]Open {url} and talk[/]  (API: {url}/docs, stop: Ctrl-C)"]
        lines += [f"  curl -X POST {url}/speak{header} {body}"]
        warning = exposure_warning(self.config)
        return [*lines, f"[bold yellow]{warning}[/]"] if warning else lines

    def use_own_key(self) -> None:
        """Set $WARMTALK_API_KEY to a key of this server if it requires one, so that this process can call it."""
        if name := api_keys_env(self.config):
            os.environ["WARMTALK_API_KEY"] = re.split(r"[\s,]+", os.environ[name].strip())[0]

    def start(self, progress: Progress | None = None) -> LocalGraph:
        """Start Ray and the graph; return when every stage is healthy.

        Raises ConfigError (also for a port in use) or StageError, after stopping what was started.
        """
        require_free_port(self.host, self.port)
        self._schema()
        try:
            self._start_ray()
            self._require_gpu()
            self._deploy()
            self._wait(progress or (lambda done, total, waiting: None))
        except BaseException:
            self.stop()
            raise
        return self

    def deploy(self, config: dict[str, Any]) -> None:
        """Apply a changed config to the running graph; Serve restarts only the stages that changed."""
        self.config = config
        self._deploy()

    def stop(self) -> None:
        """Stop every process of this Ray. Session files are playable at any byte, so nothing is awaited."""
        import ray
        from ray.serve.context import _get_global_client

        if not ray.is_initialized():
            return
        if client := _get_global_client(raise_if_no_controller_running=False):
            client.shutdown_cached_handles()  # or their threads keep calling a controller that is gone
        ray.shutdown()

    def __enter__(self) -> LocalGraph:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_ray(self) -> None:
        import ray
        from ray._private import auto_init_hook, ray_constants

        if "address" not in self.resources:
            # Ray's ports listen on 127.0.0.1 only, as by default on macOS: who reaches them can run any code.
            ray_constants.ENABLE_RAY_CLUSTER = False
            os.environ[loopback.VARIABLE] = "1"
        auto_init_hook.enable_auto_connect = False  # a handle used after stop() must not start another Ray
        os.environ["WARMTALK_HOME"] = str(self.home.resolve())
        paths = [str(CODE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # Ray's workers import graph from CODE
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")  # a frozen one does not finish its calls
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")  # a dead proxy is replaced after three
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")  # 5 s are too little on a busy machine
        # ten rounds a second, as by default, keep 0.07 cores busy while nobody speaks
        os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.2")
        os.environ.setdefault("RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000")  # Ray passes them on every 10 s
        arguments: dict[str, Any] = {
            "address": "local",  # never join a Ray that runs already
            "job_config": _job_config(),
            "namespace": "serve",
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "error",
            "object_store_memory": self._object_store_bytes(),
            "_system_config": {"prestart_worker_first_driver": False},  # an idle worker costs 100 MB and one second
        }
        on_sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        for attempt in range(RAY_START_ATTEMPTS):
            try:
                ray.init(**{**arguments, **self.resources})
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler prints a C++ stack
                return
            except Exception as error:
                ray.shutdown()
                if attempt == RAY_START_ATTEMPTS - 1 or "timed out during startup" not in str(error):
                    raise

    def _object_store_bytes(self) -> int:
        """More where a GPU serves more sessions, but at most half of the free shared memory."""
        if not gpu_stages(self.config):
            return OBJECT_STORE_BYTES
        shared = Path("/dev/shm")
        free = shutil.disk_usage(shared).free // 2 if shared.is_dir() else 0
        return max(OBJECT_STORE_BYTES, min(GPU_OBJECT_STORE_BYTES, free))

    def _require_gpu(self) -> None:
        """Raises ConfigError for a config that needs a GPU where Ray has none: its stages would wait for ever."""
        stages = gpu_stages(self.config)
        if not stages:
            return
        import ray

        if not ray.cluster_resources().get("GPU"):
            message = f"The config gives {', '.join(stages)} a share of a GPU, but Ray finds no GPU on this machine."
            raise ConfigError(message, "Use --config demo, which needs none; `warmtalk doctor` shows the GPUs.")

    def _schema(self) -> Any:
        """The config as Serve parses it. Raises ConfigError for a value that Serve refuses."""
        from ray.serve.schema import ServeDeploySchema

        try:
            return ServeDeploySchema.model_validate(self.config)
        except ValidationError as error:
            found = error.errors()[0]
            place = ".".join(map(str, found["loc"]))
            message = f"Ray Serve refuses the config file: {place}: {found['msg']}."
            raise ConfigError(message, f"Correct {place} in the config file.") from error

    def _deploy(self) -> None:
        from ray.exceptions import RayError
        from ray.serve._private.api import serve_start
        from ray.serve.config import gRPCOptions

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        schema = self._schema()
        try:
            client = serve_start(
                http_options=schema.http_options.model_dump(),
                proxy_location=schema.proxy_location,
                grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
                global_logging_config=schema.logging_config,
            )
        except (RayError, TimeoutError) as error:  # Serve replaces a proxy that takes too long, and waits for the first
            reason = str(error).splitlines()[0]
            raise StageError(
                f"Ray Serve did not start: {reason}", f"If this machine is busy, try again. {_LOGS}"
            ) from error
        client.deploy_apps(schema, _blocking=False)

    def _wait(self, progress: Progress) -> None:
        from ray import serve

        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s:
            applications = serve.status().applications
            for name, application in applications.items():
                if application.status in ("DEPLOY_FAILED", "UNHEALTHY") or _is_permanent(application):
                    raise StageError(f"The application {name!r} did not start: {_reason(application)}", _LOGS)
            stages = {name: d.status for a in applications.values() for name, d in a.deployments.items()}
            waiting = [name for name, status in stages.items() if status != "HEALTHY"]
            progress(len(stages) - len(waiting), max(len(stages), 1), ", ".join(waiting))
            if applications and all(a.status == "RUNNING" for a in applications.values()):
                return
            time.sleep(0.2)
        raise StageError(f"The graph was not ready after {START_TIMEOUT_S:.0f} s.", _LOGS)


def _job_config() -> Any:
    """Workers import our code from CODE, even if the working folder contains a graph.py or models/ of its own.

    Ray inserts the working folder at the front of their sys.path, before PYTHONPATH.
    """
    from ray.job_config import JobConfig

    class CodeFirst(JobConfig):  # type: ignore[misc]
        def _serialize(self) -> Any:
            self._py_driver_sys_path.append(str(CODE))  # each entry goes to the front: the last one wins
            return super()._serialize()

    return CodeFirst()


# Errors that Serve's further attempts (three in all, about ten seconds each) cannot fix.
PERMANENT_ERRORS = (
    "ConfigError",
    "WeightsError",
    "CorruptError",
    "VideoError",
    "NoFaceError",
    "IdError",
    "AvatarNotFound",
)
_LOGS = "Logs of every stage: /tmp/ray/session_latest/logs/serve."


def _is_permanent(application: Any) -> bool:
    """Whether a replica failed to start with an error that every further attempt would raise again."""
    text = "\n".join(_lines(application))
    return any(kind in PERMANENT_ERRORS for kind in re.findall(r"^models\.errors\.(\w+): ", text, re.MULTILINE))


def _reason(application: Any) -> str:
    """The message of our own error in Serve's report of a failed start; else the report's last line."""
    lines = _lines(application)
    sentences = re.findall(r"^models\.errors\.\w+: (.+)$", "\n".join(lines), re.MULTILINE)
    return str((sentences or lines or ["Serve gives no reason"])[-1])


def _lines(application: Any) -> list[str]:
    """Serve's messages about an application and about its deployments that are not healthy."""
    messages = [d.message for d in application.deployments.values() if d.status != "HEALTHY"]
    lines = [line.strip() for text in [application.message, *messages] for line in (text or "").splitlines()]
    return [line for line in lines if line]
