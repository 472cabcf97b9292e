"""Request models of the HTTP routes, and the types of ids in paths and queries."""

# no `from __future__ import annotations`: FastAPI must see the real types

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from configs.schema import AvatarsConfig
from deployments.common.messages import DEFAULT_SESSION
from models.runtime.ids import check_id

# --- ids. check_id raises IdError, which the app answers with its own code, `bad_id`

ID_FORM = "1 to 64 characters of a-z, 0-9, `_` and `-`"
SessionId = Annotated[
    str,
    AfterValidator(partial(check_id, what="session id")),
    Field(description=f"The session: {ID_FORM}.", examples=["alice"]),
]
AvatarId = Annotated[
    str,
    AfterValidator(partial(check_id, what="avatar id")),
    Field(description=f"A prepared avatar: {ID_FORM}.", examples=["presenter"]),
]
JobId = Annotated[
    str,
    AfterValidator(partial(check_id, what="job id")),
    Field(description="The `job_id` that POST /chat returned."),
]
PeerId = Annotated[
    str,
    AfterValidator(partial(check_id, what="connection id")),
    Field(description="The last part of the `Location` that POST …/whep returned."),
]

# --- how an utterance looks and sounds

SESSION_FIELD: Any = Field(DEFAULT_SESSION, description="The session, which is one growing video.")
STREAM_FIELD: Any = Field(
    False, description="Respond with fragmented MP4 while it is made, instead of a summary as JSON."
)
SPEED_FIELD: Any = Field(None, ge=0.5, le=2.0, description="Speed of speech; 1 is the normal speed of the voice.")


class VideoOptions(BaseModel):
    """What every utterance can choose."""

    avatar_id: AvatarId | None = Field(None, description="A prepared avatar. Default: the session's, or the config's.")
    enhance: bool | None = Field(None, description="Face restoration on or off. Default: as configured.")
    strength: float | None = Field(None, ge=0, le=1, description="Strength of the face restoration.")


class SpeechOptions(VideoOptions):
    """What an utterance made from text can choose in addition. Extended by every request that has text spoken."""

    voice: str | None = Field(None, description="A voice of the TTS engine, see GET /voices.")
    speed: float | None = SPEED_FIELD

    def speech_options(self) -> dict[str, Any]:
        """The options as keyword arguments of messages.SpeechOptions."""
        return self.model_dump(include=set(SpeechOptions.model_fields))


class SpeakBody(SpeechOptions):
    """The JSON of POST /speak."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "Hello, nice to meet you."},
                {"text": "And again.", "session_id": "alice", "stream": True},
            ]
        },
    )
    text: str = Field(description="The text to speak.")
    session_id: SessionId = SESSION_FIELD
    stream: bool = STREAM_FIELD


class SpeakAudioQuery(VideoOptions):
    """The query of POST /speak/audio. The route refuses unknown options."""

    session_id: SessionId = SESSION_FIELD
    stream: bool = STREAM_FIELD


class ChatBody(SpeechOptions):
    """The JSON of POST /chat."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"message": "Hello, who are you?"}]})
    message: str = Field(description="The user's message.")
    session_id: SessionId = SESSION_FIELD


# --- OpenAI's speech route

SOUND_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class SpeechBody(BaseModel):
    """The JSON of POST /v1/audio/speech, as OpenAI's clients send it. Other fields are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "Hello.", "response_format": "wav"}]})
    input: str = Field(description="The text to speak.")
    model: str = Field("", description="Ignored: the config chooses the engine.")
    voice: str = Field("default", description="A voice of the TTS engine. OpenAI's voice names mean the default voice.")
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = Field("mp3", description="Audio format.")
    speed: float | None = SPEED_FIELD
    stream_format: Literal["audio"] = Field("audio", description="Only raw audio, no server-sent events.")


# --- sessions, avatars, login


class SessionBody(BaseModel):
    """The JSON of POST /sessions."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}, {"session_id": "alice"}]})
    session_id: SessionId | None = Field(None, description="Id of the new session. Default: a random one.")
    avatar_id: AvatarId | None = Field(None, description="A prepared avatar. Default: as configured.")


class LoginBody(BaseModel):
    """The JSON of POST /login."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(max_length=1024, description="One of the server's API keys.")


class _PrepareQuery(BaseModel):
    """The query of POST /avatars, without the settings of AvatarsConfig that it can override."""

    avatar_id: AvatarId = Field(description=f"Id of the new avatar: {ID_FORM}.")
    force: bool = Field(False, description="Replace an avatar that already has this id.")

    def preparation_options(self) -> dict[str, Any]:
        """The given options, for Avatars.prepare. None: the value in the config of Avatars."""
        return self.model_dump(exclude={"avatar_id", "force"})


def _optional_setting(name: str) -> Any:
    """A setting of AvatarsConfig as an optional query field, with the same limits. A query holds only text."""
    setting = AvatarsConfig.model_fields[name]
    metadata = list(setting.metadata)
    if name == "fps":
        metadata.append(BeforeValidator(int))  # pydantic does not parse text for a Literal of ints
    kind: Any = setting.annotation
    if metadata:
        kind = Annotated[kind, *metadata]  # type: ignore[valid-type]
    return kind | None, Field(None, description=setting.description)


UPLOAD_SETTINGS = (
    *("fps", "bbox_shift", "extra_margin", "geometry", "smoothing"),
    *("affine_tracking_enabled", "scale_lock_enabled", "subpixel_enabled"),
)
if TYPE_CHECKING:
    PrepareQuery = _PrepareQuery
else:
    PrepareQuery = create_model(
        "PrepareQuery", __base__=_PrepareQuery, **{name: _optional_setting(name) for name in UPLOAD_SETTINGS}
    )
