"""OpenAI's `POST /v1/audio/transcriptions`: recordings in, transcripts out."""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import json
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from ray.serve.handle import DeploymentHandle
from starlette.formparsers import MultiPartException, MultiPartParser

from deployments.common.errors import with_retry
from deployments.ingress.uploads import Uploads, discard
from models.errors import InputError, NotConfiguredError
from models.recognition.base import RecognizedSegment, Transcript
from models.stitch.captions import webvtt
from models.stitch.index import Sentence, UtteranceRecord

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
MAX_FIELDS = 20
FORM_REMEDY = "Send a form (multipart/form-data) whose `file` is a WAV, FLAC, MP3, OGG or WebM file."
FIELDS = {
    "file": {"type": "string", "format": "binary", "description": "WAV, FLAC, MP3, OGG, M4A or WebM."},
    "model": {"type": "string", "description": "Ignored: the config chooses the engine."},
    "language": {"type": "string", "description": "ISO 639-1. Default: as configured, or detected."},
    "response_format": {
        "type": "string",
        "enum": list(FORMATS),
        "default": "json",
        "description": "Form of the response.",
    },
    "stream": {"type": "boolean", "default": False, "description": "Respond with server-sent events, as OpenAI does."},
}
FORM: dict[str, Any] = {  # for OpenAPI only: the body is not read by FastAPI, because its size is limited on arrival
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"type": "object", "properties": FIELDS, "required": ["file"]}}},
    }
}


class Transcriptions:
    """Speech recognition for one ingress replica. recognize: None if the graph has no Recognize stage."""

    def __init__(self, recognize: DeploymentHandle | None, uploads: Uploads) -> None:
        self.recognize, self._uploads = recognize, uploads

    @property
    def available(self) -> bool:
        return self.recognize is not None

    def require(self) -> None:
        """Raises NotConfiguredError."""
        if not self.available:
            raise NotConfiguredError(
                "This server has no speech recognition.",
                "Set recognize: true in the application's args, and add a Recognize section to the config file.",
            )

    async def transcribe(self, upload: Path, language: str | None = None) -> Transcript:
        """The transcript of a sound file among the uploads. Raises NotConfiguredError, and what the stage raises."""
        self.require()
        recognize = self.recognize
        assert recognize is not None
        stamped = await with_retry(lambda: recognize.transcribe.remote(str(upload), language, "transcribe"))
        transcript: Transcript = stamped.value
        return transcript

    async def respond(self, http: Request) -> Response:
        """The transcript of a form's file, in the requested format. Raises InputError, HTTPException 413."""
        self.require()
        upload, fields = await self._read_form(http)
        try:
            wanted = fields.get("response_format", "json")
            if wanted not in FORMATS:
                raise InputError(f"There is no response_format {wanted[:40]!r}.", f"Use one of {', '.join(FORMATS)}.")
            transcript = await self.transcribe(upload, fields.get("language") or None)
        finally:
            discard(upload)
        if fields.get("stream", "").lower() == "true":
            return event_stream(transcript)
        return formatted(transcript, wanted)

    async def _read_form(self, http: Request) -> tuple[Path, dict[str, str]]:
        """The stored file and the fields of a form. The size of the body is limited while it is parsed."""
        if not http.headers.get("content-type", "").startswith("multipart/form-data"):
            raise InputError("The request is not a form.", FORM_REMEDY)
        async with self._uploads.receiving(http) as parts:
            try:
                form = await MultiPartParser(http.headers, parts, max_files=1, max_fields=MAX_FIELDS).parse()
            except (MultiPartException, KeyError) as error:
                raise InputError(f"The form cannot be read: {error}.", FORM_REMEDY) from error
        try:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise InputError("The form has no file named `file`.", FORM_REMEDY)
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return await self._uploads.copy(file.file), fields
        finally:
            await form.close()  # Starlette spools a large file to disk


def formatted(transcript: Transcript, response_format: str) -> Response:
    """A transcript in one of FORMATS."""
    if response_format == "text":
        return PlainTextResponse(transcript.text + "\n")
    if response_format == "vtt":
        sentences = tuple(Sentence(part.text, part.start_s, part.end_s) for part in _segments(transcript))
        spoken = UtteranceRecord(0, transcript.text, 0.0, transcript.duration_s, sentences=sentences)
        return PlainTextResponse(webvtt([spoken]), media_type="text/vtt")
    if response_format == "srt":
        cues = [_srt_cue(number, part) for number, part in enumerate(_segments(transcript), 1)]
        return PlainTextResponse("".join(cues))
    if response_format == "json":
        return JSONResponse({"text": transcript.text})
    return JSONResponse(
        {
            "task": "transcribe",
            "language": transcript.language,
            "duration": round(transcript.duration_s, 3),
            "text": transcript.text,
            "segments": [_segment_json(number, segment) for number, segment in enumerate(transcript.segments)],
        }
    )


def event_stream(transcript: Transcript) -> Response:
    """A transcript as server-sent events: one per segment, then one with the whole text."""
    texts = [part.text for part in _segments(transcript)]
    parts = [text if number == 0 else f" {text}" for number, text in enumerate(texts)]
    events: list[dict[str, Any]] = [{"type": "transcript.text.delta", "delta": part} for part in parts]
    events.append({"type": "transcript.text.done", "text": transcript.text})
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Response(f"{lines}data: [DONE]\n\n", media_type="text/event-stream")


def _segments(transcript: Transcript) -> tuple[RecognizedSegment, ...]:
    """The segments; one for the whole text if the engine gives no times."""
    if transcript.segments or not transcript.text:
        return transcript.segments
    return (RecognizedSegment(transcript.text, 0.0, transcript.duration_s),)


def _segment_json(number: int, segment: RecognizedSegment) -> dict[str, Any]:
    times = {"id": number, "start": segment.start_s, "end": segment.end_s, "text": segment.text}
    return {**times, "avg_logprob": segment.logprob, "no_speech_prob": segment.no_speech}


def _srt_cue(number: int, part: RecognizedSegment) -> str:
    return f"{number}\n{_srt_time(part.start_s)} --> {_srt_time(part.end_s)}\n{part.text}\n\n"


def _srt_time(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"
