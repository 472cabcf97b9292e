"""Client of a WarmTalk server: `Client` and `AsyncClient`. Needs httpx only.

from warmtalk import Client

with Client("http://127.0.0.1:8000") as client:
    speech = client.speak("Hello there.", session_id="alice")
    client.download("alice", "alice.mp4")
"""

from warmtalk.client.async_client import AsyncClient
from warmtalk.client.errors import Busy, ChatFailed, NotFound, Refused, ServerError, Unauthorized, Unreachable
from warmtalk.client.events import Caption, Ended, LiveEvent, Making, Word
from warmtalk.client.options import AudioOptions, ChatOptions, PrepareOptions, SpeechOptions
from warmtalk.client.results import (
    Avatar,
    ChatJob,
    Heard,
    Interruption,
    Message,
    Prepared,
    Progress,
    Session,
    Speech,
    Transcript,
    Voice,
)
from warmtalk.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "AudioOptions",
    "Avatar",
    "Busy",
    "Caption",
    "ChatFailed",
    "ChatJob",
    "ChatOptions",
    "Client",
    "Ended",
    "Heard",
    "Interruption",
    "LiveEvent",
    "Making",
    "Message",
    "NotFound",
    "PrepareOptions",
    "Prepared",
    "Progress",
    "Refused",
    "ServerError",
    "Session",
    "Speech",
    "SpeechOptions",
    "Transcript",
    "Unauthorized",
    "Unreachable",
    "Voice",
    "Word",
]
