"""The messages of a session's WebSocket, and their JSON schemas. talk.py obeys them.

In, a JSON object a message; its `type` is one of `Command`:

    {"type": "speak", "text": "Hello.", "voice"?, "speed"?, "enhance"?, "id"?}     say a text
    {"type": "text", "text": "Hel", "last"?: false, "voice"?, "speed"?, "enhance"?, "id"?}
                                                   say a text that is still being written, bit by bit; one
                                                   of another `id` is another text. What was cut, or failed, takes no
                                                   more: the rest is dropped, up to its `last` or another `id`
    {"type": "audio", "last"?: false, "mode"?, "pcm_hz"?, "language"?, "voice"?, "speed"?, "enhance"?, "id"?}
                                                   the next binary message is a recording, or a part of one: WAV, FLAC,
                                                   MP3, OGG (Opus), or with `pcm_hz` raw 16-bit PCM. With `last` it is
                                                   said as it is (mode "repeat", the default), or understood and then
                                                   answered (mode "chat"): `heard` tells its text, which is empty, and
                                                   not answered, where nothing was said
    {"type": "chat", "message": "Who are you?", "voice"?, "speed"?, "enhance"?, "id"?}    have a message answered, in
                                                   speech, for as long as the socket is open; what POST /chat asks
                                                   outlives its request
    {"type": "interrupt"}                          stop what is said, and what waits
    {"type": "watch", "on": true}                  send the live stream, or no longer
    {"type": "played", "pieces": 12}               how many pieces were taken: see UNPLAYED in talk.py

Out, binary: an init segment (ftyp + moov), then fragments (moof + mdat), behind each other a stream as live.mp4 is.
Out, JSON, `Event`: {"type": "ready" | "started" | "done" | "failed" | "interrupted" | "status" | "heard", "id", …}, and
beside the live stream "caption": what is heard when, "making": what its making costs, and "ended": the session is
closed, deleted, reset …; behind that the socket is closed, too, with the code of ENDINGS.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deployments.common.messages import Ending


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str | None = Field(None, max_length=64, description="Comes back with every event of this command.")


class _Voiced(_Command):
    voice: str | None = Field(None, description="A voice of the TTS engine.")
    speed: float | None = Field(None, ge=0.5, le=2.0, description="1 is the voice's own pace.")
    enhance: bool | None = Field(None, description="Face restoration; the configured choice by default.")


class Speak(_Voiced):
    type: Literal["speak"]
    text: str


class Text(_Voiced):
    """Voice, speed and enhance are those of its first part."""

    type: Literal["text"]
    text: str = ""
    last: bool = False


class Audio(_Voiced):
    """Voice and speed are those of the answer, in mode chat."""

    type: Literal["audio"]
    last: bool = True
    mode: Literal["repeat", "chat"] = Field("repeat", description="What becomes of it; the last part's counts.")
    pcm_hz: int | None = Field(None, ge=8000, le=96_000, description="Raw PCM: 16 bits, little-endian, one channel.")
    language: str | None = Field(
        None, pattern="^[a-z]{2,3}$", description="Of mode chat: ISO 639-1, where it is known."
    )


class Chat(_Voiced):
    type: Literal["chat"]
    message: str


class Interrupt(_Command):
    type: Literal["interrupt"]


class Watch(_Command):
    type: Literal["watch"]
    on: bool = True


class Played(_Command):
    type: Literal["played"]
    pieces: int = Field(ge=0)


def asked_of(command: "_Voiced") -> dict[str, Any]:
    """What a command asks of the voice and the picture, in the words of SpeakRequest and ChatRequest."""
    return {"voice": command.voice, "speed": command.speed, "enhance": command.enhance}


Command = Annotated[Speak | Text | Audio | Chat | Interrupt | Watch | Played, Field(discriminator="type")]


COMMANDS: TypeAdapter[Any] = TypeAdapter(Command)


# What a socket is closed with when its live stream has ended: RFC 6455's codes where one says it, else 4000 + HTTP's.
ENDINGS: dict[Ending, tuple[int, str]] = {
    "closed": (1000, "The session was closed: it can still be seen."),
    "removed": (4404, "The session was deleted."),
    "expired": (4410, "The session was removed: nothing was said in it for long."),
    "reset": (4205, "The session was started afresh: connect again."),
    "replaced": (4409, "The session shows something else now: connect again."),
    "stopped": (1001, "The server stops: connect again in a moment."),
    "slow": (1013, "The stream was not read: connect again."),
}


class WordTimes(BaseModel):
    """A word, in seconds of this live stream."""

    text: str
    start_s: float
    end_s: float


class Caption(BaseModel):
    """A sentence from its first sound to its last, in seconds of this live stream, whose first piece is at 0."""

    id: int = Field(description="A later caption of the same id replaces the earlier one.")
    text: str
    start_s: float
    end_s: float
    words: list[WordTimes] = Field(description="As the voice knows them; empty where it does not.")
    cut: bool = Field(description="It was interrupted at end_s; text and words are those that were heard.")


class Making(BaseModel):
    """How far the utterance that is being made has come, several times a second."""

    frames: int = Field(description="That are made.")
    shown_frames: int = Field(description="That viewers were given.")
    duration_s: float = Field(description="Of what is made.")
    ttff_ms: float | None = Field(description="From its request to its first piece; null before.")
    spoken_chars: int = Field(description="Of its text that were heard.")
    stages: dict[str, dict[str, float]] = Field(description="As POST /speak answers, so far.")


class Event(BaseModel):
    """What the server says. Only what belongs to the type is there."""

    type: Literal["ready", "started", "done", "failed", "interrupted", "status", "heard", "caption", "making", "ended"]
    id: str | None = None
    session_id: str | None = None
    summary: dict[str, Any] | None = Field(None, description="done: as POST /speak answers.")
    text: str | None = Field(None, description="heard: what was said; empty where nothing was.")
    language: str | None = Field(None, description="heard: of what was said.")
    job: dict[str, Any] | None = Field(None, description="status, done: as GET /status answers.")
    error: dict[str, str] | None = Field(None, description="failed: code, message, remedy.")
    caption: Caption | None = None
    making: Making | None = None
    reason: Ending | None = Field(None, description="ended: why; the socket is closed behind it.")


def schema() -> dict[str, Any]:
    """JSON schemas of what may be sent, and of what comes back."""
    return {"send": COMMANDS.json_schema(), "receive": Event.model_json_schema()}
