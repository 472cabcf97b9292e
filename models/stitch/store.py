"""The sessions below one folder, by id."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path

from models.errors import DiskFullError, ExistsError, SessionNotFound
from models.media.encode import MediaSpec
from models.runtime.file_lock import hold_lock
from models.runtime.ids import path_under
from models.stitch.disk import LOCK, META, VIDEO, raise_epoch
from models.stitch.session import SessionFile, Sync

DEFAULT_SESSION = "default"
REMOVED_PREFIX = ".gone-"  # prefix of the folders of removed sessions while their files are deleted


class SessionStore:
    """Opens, creates, lists and removes the sessions below one folder."""

    def __init__(self, root: Path, sync: Sync = "utterance") -> None:
        self.root = Path(root)
        self._sync: Sync = sync
        self.root.mkdir(parents=True, exist_ok=True)

    def open(self, session_id: str = DEFAULT_SESSION) -> SessionFile:
        """Raises SessionNotFound, IdError."""
        return SessionFile(path_under(self.root, session_id, "session id"), sync=self._sync)

    def create(self, session_id: str, spec: MediaSpec, avatar_id: str = "", avatar_version: str = "") -> SessionFile:
        """Create a session. Raises ExistsError, IdError."""
        self.refuse_existing(session_id)
        return self.open_or_create(session_id, spec, avatar_id, avatar_version)

    def refuse_existing(self, session_id: str) -> None:
        """Raises ExistsError if the session exists, IdError for an invalid id."""
        if self.exists(session_id):
            raise ExistsError(f"The session {session_id!r} already exists.", "Open it, reset it, or use another id.")

    def open_or_create(
        self, session_id: str, spec: MediaSpec, avatar_id: str = "", avatar_version: str = ""
    ) -> SessionFile:
        """The session with this id, created if missing. Raises IdError, and ConfigError if its format differs."""
        folder = path_under(self.root, session_id, "session id")
        return SessionFile(folder, spec, avatar_id=avatar_id, avatar_version=avatar_version, sync=self._sync)

    def exists(self, session_id: str) -> bool:
        return (path_under(self.root, session_id, "session id") / META).is_file()

    def path(self, session_id: str = DEFAULT_SESSION) -> Path:
        """The video file of a session. Raises SessionNotFound, IdError."""
        if not self.exists(session_id):
            raise SessionNotFound(f"There is no session {session_id!r}.", "Check the id, or speak in it to create it.")
        return self.root / session_id / VIDEO

    def list(self) -> list[str]:
        """The ids of all sessions, sorted."""
        return sorted(path.parent.name for path in self.root.glob(f"[!.]*/{META}"))

    def remove(self, session_id: str) -> None:
        """Delete a session after fencing off its writer; it may be damaged. Raises SessionNotFound, IdError."""
        folder = self.path(session_id).parent
        removed = self.root / f"{REMOVED_PREFIX}{secrets.token_hex(8)}"
        with hold_lock(folder / LOCK):
            with contextlib.suppress(DiskFullError):  # removing sessions is how a full disk gets room
                raise_epoch(folder, sync=False)
            folder.rename(removed)  # atomic: no reader sees a partly deleted session
        shutil.rmtree(removed, ignore_errors=True)

    def sweep(self) -> None:
        """Delete the remains of sessions whose removal was interrupted."""
        for removed in self.root.glob(f"{REMOVED_PREFIX}*"):
            shutil.rmtree(removed, ignore_errors=True)  # another replica may delete it at the same time
