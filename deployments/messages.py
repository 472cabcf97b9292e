"""The messages of a session's WebSocket, and their JSON schemas. talk.py obeys them.

In, a JSON object a message; its `type` is one of `Command`:

    {"type": "speak", "text": "Hello.", "voice"?, "speed"?, "enhance"?, "id"?}     say a text
    {"type": "text", "text": "Hel", "last"?: false, "id"?}    say a text that is still being written, bit by bit; one
                                                   of another `id` is another text. What was cut, or failed, takes no
                                                   more: the rest is dropped, up to its `last` or another `id`
    {"type": "audio", "last"?: false, "mode"?, "pcm_hz"?, "language"?, "id"?}
                                                   the next binary message is a recording, or a part of one: WAV, FLAC,
                                                   MP3, OGG (Opus), or with `pcm_hz` raw 16-bit PCM. With `last` it is
                                                   said as it is (mode "repeat", the default), or understood and then
                                                   answered (mode "chat"): `heard` tells its text, which is empty, and
                                                   not answered, where nothing was said
    {"type": "chat", "message": "Who are you?", "id"?}        have a message answered, in speech
    {"type": "interrupt"}                          stop what is said, and what waits
    {"type": "watch", "on": true}                  send the live stream, or no longer
    {"type": "played", "pieces": 12}               how many pieces were taken: see UNPLAYED in talk.py

Out, binary: an init segment (ftyp + moov), then fragments (moof + mdat), behind each other a stream as live.mp4 is.
Out, JSON, `Event`: {"type": "ready" | "started" | "speaking" | "done" | "failed" | "interrupted" | "status" | "heard",
"id", …}.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str | None = Field(None, max_length=64, description="Comes back with every event of this command.")


class Speak(_Command):
    type: Literal["speak"]
    text: str
    voice: str | None = None
    speed: float | None = Field(None, ge=0.5, le=2.0)
    enhance: bool | None = None


class Text(_Command):
    type: Literal["text"]
    text: str = ""
    last: bool = False


class Audio(_Command):
    type: Literal["audio"]
    last: bool = True
    mode: Literal["repeat", "chat"] = Field("repeat", description="What becomes of it; the last part's counts.")
    pcm_hz: int | None = Field(None, ge=8000, le=96_000, description="Raw PCM: 16 bits, little-endian, one channel.")
    language: str | None = Field(
        None, pattern="^[a-z]{2,3}$", description="Of mode chat: ISO 639-1, where it is known."
    )


class Chat(_Command):
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


Command = Annotated[Speak | Text | Audio | Chat | Interrupt | Watch | Played, Field(discriminator="type")]


COMMANDS: TypeAdapter[Any] = TypeAdapter(Command)


class Event(BaseModel):
    """What the server says. Only what belongs to the type is there."""

    type: Literal["ready", "started", "speaking", "done", "failed", "interrupted", "status", "heard"]
    id: str | None = None
    session_id: str | None = None
    summary: dict[str, Any] | None = Field(None, description="done: as POST /speak answers.")
    text: str | None = Field(None, description="heard: what was said; empty where nothing was.")
    language: str | None = Field(None, description="heard: of what was said.")
    job: dict[str, Any] | None = Field(None, description="status, done: as GET /status answers.")
    error: dict[str, str] | None = Field(None, description="failed: code, message, remedy.")


def schema() -> dict[str, Any]:
    """JSON schemas of what may be sent, and of what comes back."""
    return {"send": COMMANDS.json_schema(), "receive": Event.model_json_schema()}
