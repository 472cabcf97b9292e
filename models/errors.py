"""The error tree. Each error has a stable code, an HTTP status, a message and a remedy, and can be pickled.

WarmTalkError                    500  internal
├── InputError                   422  bad_input             what the caller sent cannot be used
│   ├── TextError                422  bad_text              empty, nothing to speak, or too long
│   ├── AudioError               422  bad_audio             unreadable, empty or too long
│   ├── VideoError               422  bad_video             unreadable, empty, without a picture, or wrong size
│   ├── NoFaceError              422  no_face               no usable face in the source
│   ├── IdError                  422  bad_id                an id with characters that are not allowed
│   └── MediaTypeError           415  bad_media_type        the route does not accept this Content-Type
├── NotFoundError                404  not_found
│   ├── AvatarNotFound           404  avatar_not_found
│   └── SessionNotFound          404  session_not_found
├── ExistsError                  409  exists                an avatar with this id exists already
├── FencedError                  409  fenced                another replica owns the session now
├── MovedError                   503  moved                 the session moves to another replica; send the request again
├── InterruptedSpeech            409  interrupted           the utterance was interrupted before its first frame
├── ClosedError                  409  session_closed        the session is closed, or has reached its maximum length
├── ResetNeededError             409  reset_needed          the session's video has another format than new video
├── QuotaError                   507  quota                 the limit for sessions, avatars or bytes on disk is reached
├── DiskFullError                507  disk_full             the disk, or the quota of its file system, is full
├── LockedError                  503  locked                another process holds the lock of a file for too long
├── WeightsError                 503  weights_missing       a checkpoint is missing, incomplete or has the wrong shapes
├── CorruptError                 500  corrupt               a stored file does not match its checksum
├── ConfigError                  400  bad_config            a wrong option, environment variable or config file
├── IdleError                    408  idle                  no data and no request for too long
├── BusyError                    429  busy                  queues are full; try again later
├── NotConfiguredError           501  not_configured        the server lacks configuration or a package for this
└── StageError                   502  stage_failed          a stage failed, also after its retries
"""

from __future__ import annotations

import errno


class WarmTalkError(Exception):
    """Base of all errors that WarmTalk raises deliberately.

    message: one sentence that says what happened. remedy: one sentence that says what to do.
    """

    code = "internal"
    status = 500

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)  # pickle calls the class with exactly these arguments
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


class InputError(WarmTalkError):
    code, status = "bad_input", 422


class TextError(InputError):
    code = "bad_text"


class AudioError(InputError):
    code = "bad_audio"


class VideoError(InputError):
    code = "bad_video"


class NoFaceError(InputError):
    code = "no_face"


class IdError(InputError):
    code = "bad_id"


class MediaTypeError(InputError):
    code, status = "bad_media_type", 415


class NotFoundError(WarmTalkError):
    code, status = "not_found", 404


class AvatarNotFound(NotFoundError):
    code = "avatar_not_found"


class SessionNotFound(NotFoundError):
    code = "session_not_found"


class ExistsError(WarmTalkError):
    code, status = "exists", 409


class FencedError(WarmTalkError):
    code, status = "fenced", 409


class MovedError(WarmTalkError):
    code, status = "moved", 503


class InterruptedSpeech(WarmTalkError):
    code, status = "interrupted", 409


class ClosedError(WarmTalkError):
    code, status = "session_closed", 409


class QuotaError(WarmTalkError):
    code, status = "quota", 507


class ResetNeededError(WarmTalkError):
    code, status = "reset_needed", 409


class DiskFullError(WarmTalkError, OSError):
    """An OSError as well, so that code that goes on without the file needs no second `except`."""

    code, status = "disk_full", 507

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.errno = errno.ENOSPC


class LockedError(WarmTalkError):
    code, status = "locked", 503


class WeightsError(WarmTalkError):
    code, status = "weights_missing", 503


class CorruptError(WarmTalkError):
    code, status = "corrupt", 500


class ConfigError(WarmTalkError):
    code, status = "bad_config", 400


class IdleError(WarmTalkError):
    code, status = "idle", 408


class BusyError(WarmTalkError):
    """retry_after_s: when another try may succeed; it is sent as Retry-After."""

    code, status = "busy", 429
    retry_after_s = 2.0


class NotConfiguredError(WarmTalkError):
    code, status = "not_configured", 501


class StageError(WarmTalkError):
    code, status = "stage_failed", 502
