"""What calls may be asked for beside their text or recording, typed: keyword arguments of the clients' methods.

None, or left out, is the server's own choice. What stands here for one call is refused by the server for another.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class AudioOptions(TypedDict, total=False):
    """Of a recording that is said."""

    avatar_id: str | None
    enhance: bool | None  # face restoration
    strength: float | None  # of it, 0 to 1


class ChatOptions(TypedDict, total=False):
    """Of a chat message, and of a text that is still being written."""

    avatar_id: str | None
    enhance: bool | None  # face restoration
    voice: str | None  # one of `voices()`
    speed: float | None  # 0.5 to 2; 1 is the voice's own pace


class SpeechOptions(ChatOptions, total=False):
    """Of a text that is said."""

    strength: float | None  # of the restoration, 0 to 1


class PrepareOptions(TypedDict, total=False):
    """Of an avatar's preparation; the names are those of Avatars in the server's config."""

    force: bool  # replace an avatar of that id
    fps: Literal[24, 25, 30] | None
    bbox_shift: int | None
    extra_margin: int | None
    geometry: Literal["similarity", "box", "musetalk"] | None
    smoothing: Literal["zero_phase", "one_euro", "kalman", "none"] | None
    affine_tracking_enabled: bool | None
    scale_lock_enabled: bool | None
    subpixel_enabled: bool | None
