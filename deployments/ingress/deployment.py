"""The Ingress deployment: builds the parts of an ingress replica and applies its config.

The routes are in routes/. Each one checks a request, calls the stages through their handles, and returns the result;
app.py maps errors to responses.
"""

# no `from __future__ import annotations`: FastAPI must see the real types after Serve has bound the routes

import asyncio
import time
from typing import Any

from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from configs.schema import IngressConfig
from deployments.common.messages import LiveResume
from deployments.common.metrics import repeat_gauges, set_gauge
from deployments.common.paths import output_path
from deployments.common.requests import RECENT_ERRORS
from deployments.common.stage import FOOTPRINT_KEYS, footprint, parse_config
from deployments.common.supervision import Supervision
from deployments.ingress.app import api
from deployments.ingress.downloads import FOLDER, Downloads
from deployments.ingress.draining import Draining, ListedReplicas, own_id
from deployments.ingress.limits import ConcurrencyLimit
from deployments.ingress.live.hubs import Hubs
from deployments.ingress.readiness import Readiness, ReadinessProbe
from deployments.ingress.routes.admin import AdminRoutes, AdminState
from deployments.ingress.routes.avatars import AvatarRoutes
from deployments.ingress.routes.chat import ChatRoutes
from deployments.ingress.routes.openai import OpenAIRoutes
from deployments.ingress.routes.sessions import SessionRoutes
from deployments.ingress.routes.speech import SpeechRoutes
from deployments.ingress.session_views import SessionViews
from deployments.ingress.settings import IngressSettings
from deployments.ingress.temp_dirs import TempDirs
from deployments.ingress.transcriptions import Transcriptions
from deployments.ingress.uploads import Uploads
from deployments.ingress.webrtc.whep import Whep, end_on_other_replica


@serve.ingress(api)  # here, and not in graph.py, so that the routes are bound wherever this module is imported
class Ingress(SpeechRoutes, ChatRoutes, AvatarRoutes, OpenAIRoutes, SessionRoutes, AdminRoutes):
    """Its `max_ongoing_requests` must exceed the number of viewers: an open stream is an ongoing request."""

    def __init__(
        self,
        stitch: DeploymentHandle,
        avatars: DeploymentHandle,
        tts: DeploymentHandle,
        chat: DeploymentHandle,
        recognize: DeploymentHandle | None = None,
    ) -> None:
        self._stitch, self._avatars, self._tts, self._chat = stitch, avatars, tts, chat
        self._started_s = int(time.time())
        self._supervision = Supervision("Ingress", self._report)
        self._admin = AdminState()
        self._readiness = ReadinessProbe()
        self.config = IngressConfig()
        self.settings = IngressSettings.of(self.config)
        self._uploads = Uploads(self.config)
        self._transcriptions = Transcriptions(recognize, self._uploads)
        self._views = SessionViews()
        self._temp_dirs = TempDirs(output_path(FOLDER))
        self._downloads = Downloads(self._temp_dirs.folder, self.config.max_downloads)
        self._sockets = ConcurrencyLimit(
            lambda: self.config.max_sockets, "The maximum number of WebSockets is open already."
        )
        self._background: set[asyncio.Task[None]] = set()  # speech that goes on after the response
        self._draining = Draining(ListedReplicas(), own_id)
        self._hubs = Hubs(
            self._subscribe, lambda: self.config.max_viewers, self._stitch_time, draining=self._draining.begun
        )
        self._whep = Whep(self._hubs, lambda: self.config, end_on_other_replica)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve before the first request and at each change of `user_config`. Raises ConfigError."""
        config = parse_config("Ingress", user_config)
        self.settings = IngressSettings.of(config)
        self.config = self._uploads.config = config
        self._downloads.close()
        self._downloads = Downloads(self._temp_dirs.folder, config.max_downloads)

    def _subscribe(self, session_id: str, resume: LiveResume | None) -> DeploymentResponseGenerator[Any]:
        stitch = self._stitch.options(stream=True, _by_reference=False, session_id=session_id)
        return stitch.live.remote(session_id, resume)

    async def _stitch_time(self, session_id: str) -> tuple[str, float]:
        """The host of a session's Stitch replica, and the monotonic clock there."""
        answer: tuple[str, float] = await self._stitch.options(session_id=session_id).clock.remote()
        return answer

    # --- the state of the server

    async def check_health(self) -> None:
        """Called by Serve, before the first request as well. It fails when the event loop hangs."""
        self._supervision.start()
        self._draining.start()

    @api.get("/healthz", summary="Whether the ingress runs and Stitch answers")
    async def healthz(self) -> dict[str, str]:
        await self._stitch.stats.remote()
        return {"status": "ok"}

    @api.head("/readyz", include_in_schema=False)
    @api.get(
        "/readyz",
        summary="Whether every stage that speech needs can serve; 503 if one cannot",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "A stage that speech needs cannot serve."}},
    )
    async def readyz(self) -> JSONResponse:
        report = await self._readiness.report()
        return JSONResponse(report.model_dump(), 200 if report.ready else 503, {"Cache-Control": "no-store"})

    @api.get("/abilities", summary="Optional abilities of this server: whether it recognizes speech")
    async def abilities(self) -> dict[str, bool]:
        return {"recognition": self._transcriptions.available}

    @api.get("/footprint", summary="Memory, open files, threads and tasks of the processes that hold sessions")
    async def footprint(self) -> dict[str, Any]:
        found = await asyncio.gather(*(stage.stats.remote() for stage in (self._stitch, self._chat, self._tts)))
        stages = {facts["stage"]: {key: facts[key] for key in FOOTPRINT_KEYS} for facts in found}
        return {"stages": {"Ingress": footprint(), **stages}, "live": self._hubs.stats()}

    async def stats(self) -> dict[str, Any]:
        """This replica's hubs, viewers, fragments that slow viewers missed, WebRTC connections, and errors."""
        live = {**self._hubs.stats(), "webrtc": len(self._whep.peers)}
        return {"replica": own_id(), **live, **footprint(), "errors": list(RECENT_ERRORS)}

    def _report(self) -> str:
        """Set the gauges of this replica; called by its supervision."""
        repeat_gauges()
        set_gauge("warmtalk_viewers", self._hubs.viewers())
        set_gauge("warmtalk_webrtc_viewers", len(self._whep.peers))
        return ""

    async def identify(self) -> str:
        """Called by ingress replicas to learn which of them get requests: this replica's id."""
        return own_id()

    async def end_peer(self, peer_id: str) -> bool:
        """Called by another ingress replica: end this WebRTC connection, if this replica has it."""
        return await self._whep.end_here(peer_id)
