"""The calls of Stitch about sessions that speak nothing: create, describe, reset, remove, close."""

from __future__ import annotations

import asyncio
from typing import Any

from configs.schema import StitchConfig
from deployments.common.keyed_lock import KeyedLock
from deployments.common.messages import Ending
from deployments.common.stage import Stage
from deployments.stitch.avatar_cache import LoadedAvatar, spec_of
from deployments.stitch.interrupts import Interrupts
from deployments.stitch.live.registry import LiveRegistry
from deployments.stitch.open_sessions import OpenSessions
from deployments.stitch.retention import Retention
from models.runtime.ids import check_id


class SessionCalls(Stage[StitchConfig]):
    """Stitch is the only subclass."""

    _sessions: OpenSessions
    _retention: Retention
    _session_lock: KeyedLock
    _interrupts: Interrupts
    _live: LiveRegistry

    def _load_avatar(self, avatar_id: str) -> LoadedAvatar:
        raise NotImplementedError

    async def create(self, session_id: str, avatar_id: str | None = None) -> dict[str, Any]:
        """Open a session without video and return its facts. Raises ExistsError, IdError, AvatarNotFound."""
        await self.ready()
        await asyncio.to_thread(self._sessions.store.refuse_existing, session_id)  # without waiting for its speech
        async with self._session_lock.hold(session_id):
            return (await self.worker.run(self._create, session_id, avatar_id)).value

    def _create(self, session_id: str, avatar_id: str | None) -> dict[str, Any]:
        self._retention.check(new=not self._sessions.store.exists(session_id))
        prepared = self._load_avatar(avatar_id or self.config.avatar_id).prepared
        spec = spec_of(None, prepared, self.config)
        self._sessions.store.create(session_id, spec, prepared.avatar_id, prepared.version)
        self._retention.opened()
        return self._sessions.describe(session_id)

    async def session(self, session_id: str, transcript: bool = True) -> dict[str, Any]:
        """Facts of a session: frames, duration, path, transcript, latest summary. Raises SessionNotFound, IdError.

        transcript: pass False when polling. The cost of a transcript grows with the session, and it is made on the
        compute thread.
        """
        await self.ready()
        return (await self.worker.run(self._sessions.describe, session_id, transcript)).value

    async def sessions(self) -> list[str]:
        """Ids of all sessions on disk."""
        await self.ready()
        return await asyncio.to_thread(self._sessions.store.list)

    async def reset(self, session_id: str) -> dict[str, Any]:
        """Empty a session and interrupt its utterances. Raises IdError."""
        await self.ready()
        self._interrupts.interrupt(check_id(session_id, "session id"))
        async with self._session_lock.hold(session_id):
            self._live.close(session_id, "reset")
            done = await self.worker.run(self._sessions.reset, session_id)
        return {"session_id": session_id, "reset": done.value}

    async def remove(self, session_id: str, why: Ending = "removed") -> dict[str, Any]:
        """Delete a session with its video, and interrupt its utterances. why: for its viewers. Raises IdError."""
        await self.ready()
        self._interrupts.interrupt(check_id(session_id, "session id"))
        async with self._session_lock.hold(session_id):
            self._live.close(session_id, why)
            done = await self.worker.run(self._sessions.remove, session_id)
        if done.value:
            self._retention.removed()
        return {"session_id": session_id, "removed": done.value}

    async def close(self, session_id: str) -> dict[str, Any]:
        """Close a session for speech, after its running utterance; its video stays. Raises SessionNotFound."""
        await self.ready()
        async with self._session_lock.hold(check_id(session_id, "session id")):
            self._live.close(session_id, "closed")
            return (await self.worker.run(self._sessions.finish, session_id)).value
