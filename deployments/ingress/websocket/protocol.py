"""The messages of a session's WebSocket, and their JSON schemas.

The client sends JSON objects. `type` selects the command; all take `id`, which comes back in its events. `options` are
those of POST /speak: avatar_id, enhance, strength, voice, speed.

    {"type": "speak", "text": "Hello.", …options}     speak a text
    {"type": "text", "text": "Hel", "last"?: false, …options}
                                                      speak a text that is still being written, part by part. Another
                                                      `id` starts another text. A text that was interrupted, or failed,
                                                      ignores its remaining parts, up to its `last` or another `id`. One
                                                      that failed with `idle` has ended: further parts are another text
    {"type": "audio", "last"?: true, "mode"?, "pcm_hz"?, "language"?, …options}
                                                      announces a binary message: a recording or a part of one, as WAV,
                                                      FLAC, MP3 or OGG (Opus), or with `pcm_hz` as raw 16-bit PCM. After
                                                      its last part it is spoken as it is (mode "repeat"), or recognized
                                                      and answered (mode "chat"): the event `heard` has its text, which
                                                      is empty, and gets no answer, if nothing was recognized
    {"type": "chat", "message": "Who are you?", …options}
                                                      answer a message in speech. The answer ends with the connection,
                                                      unlike that of POST /chat
    {"type": "interrupt"}                             stop what is spoken, and what is queued
    {"type": "watch", "on": true}                     start or stop sending the live stream
    {"type": "played", "pieces": 12}                  flow control: how many live fragments the client has played, see
                                                      MAX_UNPLAYED in connection.py

The server sends the live stream in binary messages: an init segment (ftyp + moov), then live fragments (moof + mdat).
Joined, they are the stream of live.mp4. It sends an `Event` as JSON for each step of a command (`ready`, `started`,
`status`, `heard`, `done`, `failed`, `interrupted`), and beside the live stream `caption`, `making` and `ended`. After
`ended`, it closes the connection with a code of CLOSE_CODES.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deployments.common.messages import Ending
from deployments.ingress.schemas import SpeechOptions

# --- commands


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str | None = Field(None, max_length=64, description="Is returned in every event of this command.")


class Speak(_Command, SpeechOptions):
    """Speak a text."""

    type: Literal["speak"]
    text: str = Field(description="The text to speak.")


class Text(_Command, SpeechOptions):
    """Speak a text that is still being written. The options of its first part count."""

    type: Literal["text"]
    text: str = Field("", description="The next part of the text.")
    last: bool = Field(False, description="The text ends with this part.")


class Audio(_Command, SpeechOptions):
    """Announce a binary message with a recording, or a part of one. voice and speed apply to the answer (mode chat)."""

    type: Literal["audio"]
    last: bool = Field(True, description="The recording ends with the announced message.")
    mode: Literal["repeat", "chat"] = Field(
        "repeat", description="Speak the recording, or answer it. The mode of the last part counts."
    )
    pcm_hz: int | None = Field(
        None, ge=8000, le=96_000, description="Sample rate of raw PCM: 16 bits, little-endian, mono."
    )
    language: str | None = Field(
        None, pattern="^[a-z]{2,3}$", description="Language of the recording (mode chat), ISO 639-1, if known."
    )


class Chat(_Command, SpeechOptions):
    """Answer a message in speech."""

    type: Literal["chat"]
    message: str = Field(description="The user's message.")


class Interrupt(_Command):
    """Stop what is spoken, and what is queued."""

    type: Literal["interrupt"]


class Watch(_Command):
    """Start or stop sending the live stream."""

    type: Literal["watch"]
    on: bool = Field(True, description="Send the live stream.")


class Played(_Command):
    """Report how much of the live stream was played; the server then never sends more than a few seconds ahead."""

    type: Literal["played"]
    pieces: int = Field(ge=0, description="Live fragments played since `watch`.")


Command = Speak | Text | Audio | Chat | Interrupt | Watch | Played
COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="type")])

# --- events

# How the connection is closed after the live stream ended: a code of RFC 6455 where one fits, otherwise 4000 + HTTP's.
CLOSE_CODES: dict[Ending, tuple[int, str]] = {
    "closed": (1000, "The session was closed. Its video is still available."),
    "removed": (4404, "The session was deleted."),
    "expired": (4410, "The session was deleted because it was not used for a long time."),
    "reset": (4205, "The session was reset. Connect again."),
    "replaced": (4409, "The session shows another avatar now. Connect again."),
    "stopped": (1001, "The server is stopping. Connect again in a moment."),
    "slow": (1013, "The client did not read the stream fast enough. Connect again."),
}


class WordTimes(BaseModel):
    """A word, in seconds of this live stream."""

    text: str
    start_s: float
    end_s: float


class Caption(BaseModel):
    """A sentence with the times of its sound, in seconds of this live stream, whose first fragment starts at 0."""

    id: int = Field(description="A later caption with the same id replaces this one.")
    text: str
    start_s: float
    end_s: float
    words: list[WordTimes] = Field(description="Words with their times; empty if the voice does not give them.")
    cut: bool = Field(description="The sentence was interrupted at end_s; text and words are what was heard.")


class Making(BaseModel):
    """Progress of the utterance that is being made, sent several times a second."""

    frames: int = Field(description="Frames made.")
    shown_frames: int = Field(description="Frames shown to viewers.")
    duration_s: float = Field(description="Duration of the frames made.")
    ttff_ms: float | None = Field(description="Time from the request to the first fragment; null before it.")
    spoken_chars: int = Field(description="Characters of the text whose sound was heard.")
    stages: dict[str, dict[str, float]] = Field(description="Times per stage so far, as in the summary of POST /speak.")


class Event(BaseModel):
    """A message from the server. It has only the fields of its type."""

    type: Literal["ready", "started", "done", "failed", "interrupted", "status", "heard", "caption", "making", "ended"]
    id: str | None = Field(None, description="The id of the command.")
    session_id: str | None = Field(None, description="ready, ended: the session.")
    summary: dict[str, Any] | None = Field(None, description="done: as in the response of POST /speak.")
    text: str | None = Field(None, description="heard: the recognized text; empty if nothing was recognized.")
    language: str | None = Field(None, description="heard: the language of the recording.")
    job: dict[str, Any] | None = Field(None, description="status, done: as in the response of GET /status/{job_id}.")
    error: dict[str, str] | None = Field(
        None,
        description="failed: code, message, remedy and request id. With the code `idle`, what was sent is spoken.",
    )
    caption: Caption | None = None
    making: Making | None = None
    reason: Ending | None = Field(None, description="ended: the reason. The connection is closed after this event.")


def schema() -> dict[str, Any]:
    """JSON schemas of the messages in both directions."""
    return {"send": COMMANDS.json_schema(), "receive": Event.model_json_schema()}
