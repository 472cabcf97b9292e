"""Which stages can serve, as Serve's controller sees them. It asks no stage, so no busy stage delays the answer.

A replica runs only after its first health check, which loads its engine (common/stage.py).
"""

# no `from __future__ import annotations`: FastAPI must see the real types

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping

import ray
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.schema import DeploymentStatusOverview

log = logging.getLogger("ray.serve")

ANSWER_S = 0.8  # a controller that takes longer is not waited for
VALID_S = 30.0  # the controller's latest answer counts for this long; while its node is down, replicas go on serving
OPTIONAL = ("Avatars", "Chat", "Recognize")  # speech needs all others
SERVING = ("RUNNING", "PENDING_MIGRATION")
MAX_REASON_CHARS = 200

Deployments = Mapping[str, DeploymentStatusOverview]


class StageReadiness(BaseModel):
    """One stage."""

    stage: str
    ready: bool = Field(description="Whether a replica serves, with its engine loaded.")
    required: bool = Field(description="Whether speech needs this stage.")
    replicas: dict[str, int] = Field(description="Number of replicas per state of Serve: `RUNNING`, `STARTING` …")
    reason: str | None = Field(None, description="Why the stage is not ready.")


class Readiness(BaseModel):
    """The whole server. `ready`: every required stage is."""

    ready: bool
    age_s: float | None = Field(description="Seconds since Serve's controller reported this; null: it does not answer.")
    stages: list[StageReadiness]


def deployments_of_this_app() -> Deployments:
    """What the controller reports. Blocks until it answers. Raises ConnectionError outside of Ray."""
    if not ray.is_initialized():  # serve.status() would start one
        raise ConnectionError("This process is not connected to Ray.")
    app = serve.status().applications.get(serve.get_replica_context().app_name)
    return app.deployments if app is not None else {}


class ReadinessProbe:
    """Asks the controller, one call at a time however many probes there are."""

    def __init__(self, read: Callable[[], Deployments] = deployments_of_this_app) -> None:
        self._read = read
        self._reading: asyncio.Task[None] | None = None
        self._known: list[StageReadiness] = []
        self._known_s = float("-inf")

    async def report(self) -> Readiness:
        """The state of all stages, within about ANSWER_S."""
        if self._reading is None or self._reading.done():
            # in a new context, so that the end of one request does not end it for the others
            self._reading = contextvars.Context().run(asyncio.create_task, self._refresh())
        await asyncio.wait({self._reading}, timeout=ANSWER_S)
        age_s = time.monotonic() - self._known_s
        if age_s > VALID_S:
            return Readiness(ready=False, age_s=None, stages=[])
        ready = bool(self._known) and all(stage.ready or not stage.required for stage in self._known)
        return Readiness(ready=ready, age_s=round(age_s, 2), stages=self._known)

    async def _refresh(self) -> None:
        try:
            found = await asyncio.to_thread(self._read)
        except Exception:
            log.exception("Serve's controller did not report the state of the stages")
            return
        self._known = [_readiness(stage, state) for stage, state in found.items() if stage != "Ingress"]
        self._known_s = time.monotonic()


def _readiness(stage: str, state: DeploymentStatusOverview) -> StageReadiness:
    replicas = {str(getattr(key, "value", key)): count for key, count in state.replica_states.items()}
    ready = sum(replicas.get(key, 0) for key in SERVING) > 0
    reason = None if ready else _reason(replicas, state.message)
    return StageReadiness(stage=stage, ready=ready, required=stage not in OPTIONAL, replicas=replicas, reason=reason)


def _reason(replicas: Mapping[str, int], message: str) -> str:
    """In one line, because Serve's messages end with a traceback, and this route needs no key."""
    now = "Its replica is starting." if replicas.get("STARTING") else "It has no replica."
    first = message.strip().splitlines()[0] if message.strip() else ""
    return f"{now} {first}".strip()[:MAX_REASON_CHARS]
