"""The index of a session file: one JSON line per fragment and per utterance event.

A line is valid if it ends in a newline, continues the previous line, and its fragment is complete in the video file.
The first invalid line ends the index. Everything after it was left by a crash.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from models.live.cues import Cue
from models.media.encode import VIDEO_TIMESCALE, Clock
from models.types import Fragment, Word

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an utterance, from its first sound to its last, in seconds of the session's video.

    words: empty if the TTS engine gives no word times. In old indexes without end times it ends where the next starts.
    """

    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class UtteranceRecord:
    """One utterance of the transcript. end_s is None if a crash or a new writer ended it.

    interrupted: it was ended early on purpose. sentences: those that were started; empty in old indexes and for audio
    input.
    """

    number: int
    text: str
    start_s: float
    end_s: float | None
    interrupted: bool = False
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """The state of a session after an index record. Sizes in bytes; `video_bytes` includes the init segment.

    position: timeline position after the last frame shown. It exceeds `frames` if idle motion that is not in the file
    was shown between utterances.
    """

    video_bytes: int
    index_bytes: int
    clock: Clock = field(default_factory=Clock)
    frames: int = 0
    fragments: int = 0
    utterances: int = 0
    position: int = 0
    closed: bool = False

    def after(self, record: Record, line_bytes: int) -> Totals | None:
        """The totals after `record`, or None if the record does not continue them."""
        end = self.index_bytes + line_bytes
        try:
            if record["type"] == "close":
                return replace(self, index_bytes=end, closed=True)
            if record["type"] == "start":
                follows = record["utterance"] == self.utterances + 1 and not self.closed
                return replace(self, index_bytes=end, utterances=record["utterance"]) if follows else None
            if record["type"] in ("end", "say"):
                return replace(self, index_bytes=end) if record["utterance"] == self.utterances else None
            (video_start, video_ticks), (audio_start, audio_samples) = record["video"], record["audio"]
            place = (record["utterance"], record["at"], video_start, audio_start)
            if place != (self.utterances, self.video_bytes, *_pair(self.clock)):
                return None
            return replace(
                self,
                video_bytes=self.video_bytes + record["bytes"],
                index_bytes=end,
                clock=Clock(video_start + video_ticks, audio_start + audio_samples),
                frames=self.frames + record["frames"],
                fragments=self.fragments + 1,
                position=record.get("position", self.position) + record["frames"],
            )
        except (KeyError, TypeError, ValueError):
            return None


def header(generation: str) -> bytes:
    """The first line: the generation of the session.json that the index belongs to."""
    return encode_record({"type": "session", "generation": generation})


def has_header(path: Path) -> bool:
    """Whether the file starts with a header line of any generation."""
    try:
        with path.open("rb") as file:
            return (decode_record(file.readline()) or {}).get("type") == "session"
    except FileNotFoundError:
        return False


def fragment_record(
    fragment: Fragment, totals: Totals, epoch: int, position: int | None = None, pause: bool = False
) -> Record:
    """The record of a fragment. `position` is stored only if it does not continue the previous fragment.

    pause: nothing is said in it, and it belongs to no utterance.
    """
    extra: Record = {"pause": True} if pause else {}
    extra |= {} if position in (None, totals.position) else {"position": position}
    return {
        "type": "fragment",
        "at": totals.video_bytes,
        "bytes": len(fragment.data),
        "crc32": zlib.crc32(fragment.data),
        "frames": fragment.frames,
        "video": [fragment.video_start, fragment.video_duration],
        "audio": [fragment.audio_start, fragment.audio_duration],
        "key": fragment.key,
        "epoch": epoch,
        "utterance": totals.utterances,
        **extra,
    }


def sentence_record(cue: Cue, utterance: int) -> Record:
    """The record of a sentence, in ticks of the video."""
    words = [[word.text, _ticks(word.start_s), _ticks(word.end_s)] for word in cue.words]
    known: Record = {"words": words} if words else {}
    times = {"tick": _ticks(cue.start_s), "until": _ticks(cue.end_s)}
    return {"type": "say", "utterance": utterance, "number": cue.number, **times, "text": cue.text, **known}


def encode_record(record: Record) -> bytes:
    """A record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


def decode_record(line: bytes) -> Record | None:
    """The record of a line, or None if the line is incomplete or not JSON."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read(path: Path, totals: Totals, video_size: int) -> list[tuple[Record, Totals]]:
    """The valid records after `totals`, each with the totals after it. `video_size`: bytes of the video file."""
    out: list[tuple[Record, Totals]] = []
    with path.open("rb") as file:
        file.seek(totals.index_bytes)
        for line in file:
            record = decode_record(line)
            after = totals.after(record, len(line)) if record is not None else None
            if record is None or after is None or after.video_bytes > video_size:
                break
            totals = after
            out.append((record, totals))
    return out


def verified(records: list[tuple[Record, Totals]], video: BinaryIO) -> int:
    """The number of valid `records`. Those after the last synced utterance are compared with their checksums.

    The video file is synced before an utterance's `end` is written, so fragments before an `end` need no check.
    """
    ends = [k for k, (record, _) in enumerate(records) if record["type"] == "end"]
    for k in range(ends[-1] + 1 if ends else 0, len(records)):
        record = records[k][0]
        if record["type"] == "fragment":
            video.seek(record["at"])
            if zlib.crc32(video.read(record["bytes"])) != record["crc32"]:
                return k
    return len(records)


class TranscriptIndex:
    """What was said and when, updated incrementally from the index of one generation. `read`: the totals read up to."""

    def __init__(self, generation: str, read: Totals) -> None:
        self.generation, self.read = generation, read
        self._utterances: dict[int, UtteranceRecord] = {}
        self._cues: dict[int, dict[int, Cue]] = {}  # utterance → number → sentence as planned
        self._video_end_s: dict[int, float] = {}  # utterance → end of its video so far

    def extend(self, records: list[tuple[Record, Totals]]) -> list[UtteranceRecord]:
        """Add all records but the first, which stands for the starting point. Returns all utterances so far."""
        changed = {number for record, _ in records[1:] if (number := self._add(record)) in self._utterances}
        self.read = records[-1][1]
        for number in changed:
            utterance, end_s = self._utterances[number], self._video_end_s[number]
            spoken = [_sentence(cue, end_s, utterance.interrupted) for cue in self._cues[number].values()]
            self._utterances[number] = replace(utterance, sentences=tuple(one for one in spoken if one.text))
        return list(self._utterances.values())

    def _add(self, record: Record) -> int:
        """Add one record. Returns the number of its utterance, or 0 for none."""
        if record["type"] == "close":
            return 0
        number: int = record["utterance"]
        if record["type"] == "start":
            start_s = record["tick"] / VIDEO_TIMESCALE
            self._utterances[number] = UtteranceRecord(number, record["text"], start_s, None)
            self._cues[number], self._video_end_s[number] = {}, start_s
        elif record["type"] == "say":
            _add_sentence(record, self._cues[number])
        elif record["type"] == "end":
            self._utterances[number] = replace(
                self._utterances[number],
                text=record.get("text", self._utterances[number].text),
                end_s=record["tick"] / VIDEO_TIMESCALE,
                interrupted=bool(record.get("interrupted", False)),
            )
        elif not record.get("pause"):
            self._video_end_s[number] = sum(record["video"]) / VIDEO_TIMESCALE
        return number


def _add_sentence(record: Record, cues: dict[int, Cue]) -> None:
    start_s = record["tick"] / VIDEO_TIMESCALE
    if "until" in record:
        words = tuple(Word(t, a / VIDEO_TIMESCALE, b / VIDEO_TIMESCALE) for t, a, b in record.get("words", ()))
        end_s = record["until"] / VIDEO_TIMESCALE
        cues[record["number"]] = Cue(record["number"], record["text"], start_s, end_s, words)
        return
    # an old index: no end times, so each sentence ends where the next one starts
    if cues:
        cues[len(cues)] = replace(cues[len(cues)], end_s=start_s)
    cues[len(cues) + 1] = Cue(len(cues) + 1, record["text"], start_s, math.inf)


def _sentence(cue: Cue, end_s: float, interrupted: bool) -> Sentence:
    """A sentence up to `end_s`, the end of the video. For an interrupted utterance, only the words that were heard."""
    heard = cue.truncated(end_s) if interrupted else replace(cue, end_s=max(cue.start_s, min(cue.end_s, end_s)))
    return Sentence(heard.text, heard.start_s, heard.end_s, heard.words)


def _ticks(seconds: float) -> int:
    return round(seconds * VIDEO_TIMESCALE)


def _pair(clock: Clock) -> tuple[int, int]:
    return clock.video_ticks, clock.audio_samples
