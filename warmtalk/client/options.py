"""Typed keyword options of the clients' methods.

None or a missing option means the server's default. The server refuses options that a call does not list here.
"""

from __future__ import annotations

from typing import Literal, TypedDict


class AudioOptions(TypedDict, total=False):
    """Options of a recording to speak."""

    avatar_id: str | None
    enhance: bool | None  # face restoration
    strength: float | None  # of the face restoration, 0 to 1


class ChatOptions(TypedDict, total=False):
    """Options of a chat message, and of a text that is spoken while it is written."""

    avatar_id: str | None
    enhance: bool | None  # face restoration
    voice: str | None  # one of `voices()`
    speed: float | None  # 0.5 to 2; 1 is the voice's normal speed


class SpeechOptions(ChatOptions, total=False):
    """Options of a text to speak."""

    strength: float | None  # of the face restoration, 0 to 1


class PrepareOptions(TypedDict, total=False):
    """Options of preparing an avatar, named like those of Avatars in the server's config."""

    force: bool  # replace an existing avatar of that id
    fps: Literal[24, 25, 30] | None
    bbox_shift: int | None
    extra_margin: int | None
    geometry: Literal["similarity", "box", "musetalk"] | None
    smoothing: Literal["zero_phase", "one_euro", "kalman", "none"] | None
    affine_tracking_enabled: bool | None
    scale_lock_enabled: bool | None
    subpixel_enabled: bool | None
