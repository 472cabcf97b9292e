"""What the page /admin shows: each stage with its replicas, sessions and their owners, and recent errors. Read only."""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

import asyncio
import contextvars
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.context import _get_global_client

from deployments.ingress.app import api
from models.errors import BusyError

log = logging.getLogger("ray.serve")

VALID_S = 1.0  # several pages that are open share an answer
ANSWER_S = 1.5  # a replica that takes longer is left out
SECRET = re.compile(r"(key|token|secret|password|credential)s?$", re.IGNORECASE)
USER_OF_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
MAX_ERRORS = 50
MAX_MESSAGE_CHARS = 300


def deployments_of_this_app() -> dict[str, Any]:
    """What Serve's controller knows of each deployment, as its REST API reports it. Blocks."""
    details = _get_global_client().get_serve_details()
    found: dict[str, Any] = details["applications"][serve.get_replica_context().app_name]["deployments"]
    return found


def handle_of(stage: str) -> Any:
    return serve.get_deployment_handle(stage, serve.get_replica_context().app_name)


class AdminState:
    """Collects the state of all replicas, at most once per VALID_S. Use it from one event loop."""

    def __init__(
        self, read: Callable[[], dict[str, Any]] = deployments_of_this_app, handle: Callable[[str], Any] = handle_of
    ) -> None:
        self._read, self._handle_of = read, handle
        self._handles: dict[str, Any] = {}
        self._collecting: asyncio.Task[dict[str, Any]] | None = None
        self._collected_s = float("-inf")
        self._reading: asyncio.Future[dict[str, Any]] | None = None  # on a thread

    async def get(self) -> dict[str, Any]:
        """The state as /admin/state describes it. Raises BusyError if Serve's controller does not answer."""
        old = self._collecting
        if old is None or (old.done() and (old.exception() or time.monotonic() - self._collected_s > VALID_S)):
            # in a new context, so that the end of one request does not end it for the others
            self._collecting = contextvars.Context().run(asyncio.create_task, self._collect())
        assert self._collecting is not None
        return await asyncio.shield(self._collecting)

    async def _collect(self) -> dict[str, Any]:
        # one read at a time: where the controller hangs, each would keep a thread of those that all requests share
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._read))
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await asyncio.shield(self._reading)
        except TimeoutError as error:
            raise BusyError("Serve's controller does not answer.", "Try again in a few seconds.") from error
        names = sorted(found)
        answers = await asyncio.gather(*(self._stats(name, found[name]) for name in names))
        errors: list[dict[str, Any]] = []
        for replica in (replica for replicas in answers for replica in replicas):
            errors += [{**error, "replica": replica["replica"]} for error in replica.pop("errors", ())]
        stages = {name: _stage(found[name], replicas) for name, replicas in zip(names, answers, strict=True)}
        ingress = stages.get("Ingress", {}).get("replicas", [])
        viewers = {key: sum(replica[key] for replica in ingress) for key in ("viewers", "webrtc", "late", "dropped")}
        self._collected_s = time.monotonic()
        return {
            "time_s": time.time(),
            "stages": stages,
            "sessions": _sessions(stages.get("Stitch", {}).get("replicas", [])),
            "viewers": viewers,
            "errors": sorted(errors, key=lambda error: -error["time_s"])[:MAX_ERRORS],
        }

    async def _stats(self, stage: str, details: dict[str, Any]) -> list[dict[str, Any]]:
        """The stats of the replicas that answer in time."""
        if not any(replica["state"] == "RUNNING" for replica in details["replicas"]):
            return []
        if stage not in self._handles:
            self._handles[stage] = self._handle_of(stage)
        try:
            async with asyncio.timeout(ANSWER_S):
                answers = await self._handles[stage].broadcast("stats").results_async(return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - the page shows what it can get
            log.info("The replicas of %s did not report: %s", stage, type(error).__name__)
            return []
        return [without_secrets(answer) for answer in answers if isinstance(answer, dict)]


def _stage(details: dict[str, Any], replicas: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "target": details["target_num_replicas"],
        "status": details["status"],
        "message": details["message"][:MAX_MESSAGE_CHARS],
        "states": dict(Counter(replica["state"] for replica in details["replicas"])),
        "replicas": replicas,
    }


def _sessions(owners: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each session in use, with the replica of Stitch that owns it."""
    return sorted(
        (
            {"session_id": session_id, "owner": owner["replica"], **use}
            for owner in owners
            for session_id, use in owner.pop("sessions", {}).items()
        ),
        key=lambda session: session["session_id"],
    )


def without_secrets(value: Any, name: str = "") -> Any:
    """The value with `…` for keys, passwords and the like, and for the user and the password in a URL."""
    if isinstance(value, dict):
        return {key: without_secrets(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_secrets(entry, name) for entry in value]
    if isinstance(value, str) and value:
        return "…" if SECRET.search(name) else USER_OF_URL.sub("…", value)
    return value


class AdminRoutes:
    _admin: AdminState

    @api.get(
        "/admin/state",
        summary="What the page /admin shows: stages and their replicas, sessions and owners, viewers, recent errors",
    )
    async def admin_state(self) -> JSONResponse:
        return JSONResponse(await self._admin.get(), headers={"Cache-Control": "no-store"})
