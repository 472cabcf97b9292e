"""What the ingress does with recordings that are to be understood: forms in, transcripts out. Knows Recognize's handle.

The form and the answers are those of OpenAI's `POST /v1/audio/transcriptions`.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.formparsers import MultiPartException, MultiPartParser

from deployments.ingress.uploads import Uploads
from models.errors import InputError, NotConfiguredError
from models.recognition.base import Segment, Transcript
from models.stitch.captions import webvtt
from models.stitch.index import Sentence, Utterance

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
MAX_FIELDS = 20
FORM_REMEDY = "Send a form (multipart/form-data) whose `file` is a WAV, FLAC, MP3, OGG or WebM file."
FIELDS = {
    "file": {"type": "string", "format": "binary", "description": "WAV, FLAC, MP3, OGG, M4A or WebM."},
    "model": {"type": "string", "description": "Any: the engine is the one in the config."},
    "language": {"type": "string", "description": "ISO 639-1; found out, or the config's, where none is given."},
    "response_format": {"type": "string", "enum": list(FORMATS), "default": "json"},
    "stream": {"type": "boolean", "default": False, "description": "Answer with events, as they come from OpenAI."},
}
FORM: dict[str, Any] = {  # for /docs: the body is read as it comes, and not by FastAPI
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"type": "object", "properties": FIELDS, "required": ["file"]}}},
    }
}


class Listening:
    """Recordings of this ingress replica. recognize: the stage's handle; None where the graph has none."""

    def __init__(self, recognize: Any, uploads: Uploads) -> None:
        self.recognize, self._uploads = recognize, uploads

    @property
    def there(self) -> bool:
        return self.recognize is not None

    def require(self) -> None:
        """Raises NotConfiguredError."""
        if not self.there:
            raise NotConfiguredError(
                "This server has no speech recognition.",
                "Set recognize: true in the application's args, and put a Recognize section in the config file.",
            )

    async def heard(self, audio: bytes, language: str | None = None) -> Transcript:
        """What a sound file says. Raises NotConfiguredError, and what the stage raises."""
        self.require()
        stamped = await self.recognize.transcribe.remote(audio, language, "transcribe")
        transcript: Transcript = stamped.value
        return transcript

    async def answer(self, http: Request) -> Response:
        """A form's recording as the text of the format that it asks for. Raises InputError, HTTPException 413."""
        self.require()
        audio, fields = await self._form(http)
        wanted = fields.get("response_format", "json")
        if wanted not in FORMATS:
            raise InputError(f"There is no response_format {wanted[:40]!r}.", f"Use one of {', '.join(FORMATS)}.")
        transcript = await self.heard(audio, fields.get("language") or None)
        return streamed(transcript) if fields.get("stream", "").lower() == "true" else written(transcript, wanted)

    async def _form(self, http: Request) -> tuple[bytes, dict[str, str]]:
        """The file and the fields of a form. The body is bounded while it comes, before any of it is looked at."""
        if not http.headers.get("content-type", "").startswith("multipart/form-data"):
            raise InputError("The request is no form.", FORM_REMEDY)
        body = await self._uploads.received(http)

        async def whole() -> AsyncGenerator[bytes, None]:
            yield body

        try:
            form = await MultiPartParser(http.headers, whole(), max_files=1, max_fields=MAX_FIELDS).parse()
        except (MultiPartException, KeyError) as error:
            raise InputError(f"The form cannot be read: {error}.", FORM_REMEDY) from error
        try:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise InputError("The form has no file named `file`.", FORM_REMEDY)
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return await file.read(), fields
        finally:
            await form.close()  # a large file lies on disk


def written(transcript: Transcript, response_format: str) -> Response:
    """A transcript in one of FORMATS."""
    if response_format == "text":
        return PlainTextResponse(transcript.text + "\n")
    if response_format == "vtt":
        sentences = tuple(Sentence(part.text, part.start_s, part.end_s) for part in _timed(transcript))
        spoken = Utterance(0, transcript.text, 0.0, transcript.duration_s, sentences=sentences)
        return PlainTextResponse(webvtt([spoken]), media_type="text/vtt")
    if response_format == "srt":
        return PlainTextResponse("".join(_cue(number, part) for number, part in enumerate(_timed(transcript), 1)))
    if response_format == "json":
        return JSONResponse({"text": transcript.text})
    return JSONResponse(
        {
            "task": "transcribe",
            "language": transcript.language,
            "duration": round(transcript.duration_s, 3),
            "text": transcript.text,
            "segments": [_row(number, segment) for number, segment in enumerate(transcript.segments)],
        }
    )


def streamed(transcript: Transcript) -> Response:
    """A transcript as server-sent events, for clients that ask for a stream: a segment each, then the whole."""
    texts = [part.text for part in _timed(transcript)]
    parts = [text if number == 0 else f" {text}" for number, text in enumerate(texts)]
    events: list[dict[str, Any]] = [{"type": "transcript.text.delta", "delta": part} for part in parts]
    events.append({"type": "transcript.text.done", "text": transcript.text})
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Response(f"{lines}data: [DONE]\n\n", media_type="text/event-stream")


def _timed(transcript: Transcript) -> tuple[Segment, ...]:
    """Its segments; the whole as one where an engine gives no times."""
    if transcript.segments or not transcript.text:
        return transcript.segments
    return (Segment(transcript.text, 0.0, transcript.duration_s),)


def _row(number: int, segment: Segment) -> dict[str, Any]:
    row = {"id": number, "start": segment.start_s, "end": segment.end_s, "text": segment.text}
    return {**row, "avg_logprob": segment.logprob, "no_speech_prob": segment.no_speech}


def _cue(number: int, part: Segment) -> str:
    """A SubRip cue: its number, its times with a comma, its text, and an empty line."""
    return f"{number}\n{_clock(part.start_s)} --> {_clock(part.end_s)}\n{part.text}\n\n"


def _clock(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"
