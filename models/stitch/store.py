"""The sessions under one folder, by id. Knows no picture, no sound and no writer but a session's own."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from pathlib import Path

from models.errors import ExistsError, SessionNotFound
from models.media.encode import MediaSpec
from models.runtime.ids import path_under
from models.stitch.disk import META, VIDEO
from models.stitch.session import SessionFile, Sync

DEFAULT_SESSION = "default"
GONE = ".gone-"  # what a removed session's folder is called until it is empty
SWEEP_S = 600.0  # one that is still there so long after has lost whoever emptied it


class SessionStore:
    """The sessions under one folder, by id."""

    def __init__(self, root: Path, sync: Sync = "utterance") -> None:
        self.root = Path(root)
        self._sync: Sync = sync
        self.root.mkdir(parents=True, exist_ok=True)

    def open(self, session_id: str = DEFAULT_SESSION) -> SessionFile:
        """Raises SessionNotFound, IdError."""
        return SessionFile(path_under(self.root, session_id, "session id"), sync=self._sync)

    def create(self, session_id: str, spec: MediaSpec, avatar_id: str = "", avatar_version: str = "") -> SessionFile:
        """A new session, whole or not at all. Raises ExistsError, IdError."""
        self.refuse_existing(session_id)
        return self.open_or_create(session_id, spec, avatar_id, avatar_version)

    def refuse_existing(self, session_id: str) -> None:
        """Raises ExistsError where there is a session of that id, IdError."""
        if self.exists(session_id):
            raise ExistsError(f"There is a session {session_id!r} already.", "Open or reset it.")

    def open_or_create(
        self, session_id: str, spec: MediaSpec, avatar_id: str = "", avatar_version: str = ""
    ) -> SessionFile:
        """The session of that id; made, if there is none. Raises ConfigError where it has another format, IdError."""
        folder = path_under(self.root, session_id, "session id")
        return SessionFile(folder, spec, avatar_id=avatar_id, avatar_version=avatar_version, sync=self._sync)

    def exists(self, session_id: str) -> bool:
        return (path_under(self.root, session_id, "session id") / META).is_file()

    def path(self, session_id: str = DEFAULT_SESSION) -> Path:
        """The video file of a session. Raises SessionNotFound, IdError."""
        if not self.exists(session_id):
            raise SessionNotFound(f"There is no session {session_id!r}.", "Speak in it first, or check its id.")
        return self.root / session_id / VIDEO

    def list(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob(f"[!.]*/{META}"))

    def remove(self, session_id: str) -> None:
        """Delete a session; whoever writes it is fenced off first. Raises SessionNotFound, IdError."""
        session = self.open(session_id)
        gone = self.root / f"{GONE}{secrets.token_hex(8)}"
        with session.fenced_off():
            session.folder.rename(gone)  # at once: it is never half there
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what was left of sessions whose remover died over it."""
        for gone in self.root.glob(f"{GONE}*"):
            with contextlib.suppress(FileNotFoundError):  # another replica was faster
                if time.time() - gone.stat().st_ctime > SWEEP_S:  # of its renaming, or of the last file that went
                    shutil.rmtree(gone, ignore_errors=True)
