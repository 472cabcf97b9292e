"""What the JSON of the ingress's routes may hold. Knows no route and no stage."""

# no `from __future__ import annotations`: FastAPI must see the real types

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.common.messages import DEFAULT_SESSION


class SpeakBody(BaseModel):
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
    text: str = Field(description="What is to be said.")
    session_id: str = Field(DEFAULT_SESSION, description="One viewer's growing conversation.")
    avatar_id: str | None = Field(None, description="A prepared avatar; the configured one by default.")
    enhance: bool | None = Field(None, description="Face restoration; the configured choice by default.")
    strength: float | None = Field(None, ge=0, le=1, description="Of the restoration.")
    voice: str | None = Field(None, description="A voice of the TTS engine.")
    speed: float | None = Field(None, ge=0.5, le=2.0, description="1 is the voice's own pace.")
    stream: bool = Field(False, description="Answer with fragmented MP4 as it is made.")


SOUND_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class SpeechBody(BaseModel):
    """The JSON of POST /v1/audio/speech, as OpenAI's clients send it; what is not named here is passed over."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "Hello.", "response_format": "wav"}]})
    input: str = Field(description="What is to be said.")
    model: str = Field("", description="Any: the engine is the one in the config.")
    voice: str = Field("default", description="A voice of the TTS engine, or `default`; OpenAI's mean that, too.")
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float | None = Field(None, ge=0.5, le=2.0, description="1 is the voice's own pace.")
    stream_format: Literal["audio"] = "audio"


class ChatBody(BaseModel):
    """The JSON of POST /chat."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"message": "Hello, who are you?"}]})
    message: str = Field(description="What the viewer says.")
    session_id: str = Field(DEFAULT_SESSION, description="One viewer's growing conversation.")
    avatar_id: str | None = Field(None, description="A prepared avatar; the configured one by default.")
    enhance: bool | None = Field(None, description="Face restoration; the configured choice by default.")
    voice: str | None = Field(None, description="A voice of the TTS engine.")
    speed: float | None = Field(None, ge=0.5, le=2.0, description="1 is the voice's own pace.")


class SessionBody(BaseModel):
    """The JSON of POST /sessions."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}, {"session_id": "alice"}]})
    session_id: str | None = Field(None, description="One is made up where none is given.")
    avatar_id: str | None = Field(None, description="A prepared avatar; the configured one by default.")


class LoginBody(BaseModel):
    """The JSON of POST /login."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(max_length=1024, description="One of the server's keys.")
