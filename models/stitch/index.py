"""The index of a session file: one JSON line a fragment or utterance event. Knows its records, not who writes them.

A line counts only if it is whole (ends in a newline), follows on the line before, and its fragment is whole in the
video file. The first line that does not count ends the index; whatever stands behind it is the debris of a crash.
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

    words: where the voice knows them. In an index that is older than they are, it lasts up to the next one.
    """

    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class UtteranceRecord:
    """A line of the transcript. end_s is None for one that a crash or a new writer cut short.

    interrupted: it was cut on purpose, where it ends. sentences: those that were begun; none in an index that is older
    than they are, or where a recording was played.
    """

    number: int
    text: str
    start_s: float
    end_s: float | None
    interrupted: bool = False
    sentences: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """What a session amounts to at the end of an index line. Sizes in bytes; `video_bytes` counts the init segment.

    position: where the avatar's head is, a count of frames that were shown. Beyond `frames` where idle motion, which is
    not in the file, was shown between utterances.
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
        """The totals behind `record`, or None where it does not follow on these."""
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
            if (record["at"], video_start, audio_start) != (self.video_bytes, *_pair(self.clock)):
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
    """The first line: names the session.json that the index belongs to."""
    return encode_record({"type": "session", "generation": generation})


def has_header(path: Path) -> bool:
    """Whether the file begins with the header of any session."""
    try:
        with path.open("rb") as file:
            return (decode_record(file.readline()) or {}).get("type") == "session"
    except FileNotFoundError:
        return False


def fragment_record(
    fragment: Fragment, totals: Totals, epoch: int, position: int | None = None, pause: bool = False
) -> Record:
    """The line of a fragment; `position` of its first frame is written where it does not follow on the one before.

    pause: nothing is said in it; it belongs to no utterance.
    """
    moved: Record = {"pause": True} if pause else {}
    moved |= {} if position in (None, totals.position) else {"position": position}
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
        **moved,
    }


def sentence_record(cue: Cue, utterance: int) -> Record:
    """The line of a sentence, in ticks of the video."""
    words = [[word.text, _ticks(word.start_s), _ticks(word.end_s)] for word in cue.words]
    known: Record = {"words": words} if words else {}
    times = {"tick": _ticks(cue.start_s), "until": _ticks(cue.end_s)}
    return {"type": "say", "utterance": utterance, "number": cue.number, **times, "text": cue.text, **known}


def encode_record(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


def decode_record(line: bytes) -> Record | None:
    """The record of a line, None for debris."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read(path: Path, totals: Totals, video_size: int) -> list[tuple[Record, Totals]]:
    """The records that count behind `totals`, each with the totals after it. `video_size`: bytes of the video file."""
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
    """How many of `records` are sound: those since the last synced utterance are compared with their checksums.

    The video file is synced before an utterance's `end` is written, so what stands before an `end` needs no look.
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
    """What was said, when, as far as the index of a generation has been `read`."""

    def __init__(self, generation: str, read: Totals) -> None:
        self.generation, self.read = generation, read
        self._lines: dict[int, UtteranceRecord] = {}
        self._said: dict[int, dict[int, Cue]] = {}  # utterance → number → sentence, as it was going to be
        self._shown_s: dict[int, float] = {}  # utterance → where its video ends so far

    def extend(self, records: list[tuple[Record, Totals]]) -> list[UtteranceRecord]:
        """Add the records behind the first, which stands for where they begin; return all that was said."""
        touched = {number for record, _ in records[1:] if (number := self._add(record)) in self._lines}
        self.read = records[-1][1]
        for number in touched:
            line = self._lines[number]
            end_s = self._shown_s[number]
            said = [_sentence(cue, end_s, line.interrupted) for cue in self._said[number].values()]
            self._lines[number] = replace(line, sentences=tuple(sentence for sentence in said if sentence.text))
        return list(self._lines.values())

    def _add(self, record: Record) -> int:
        """The utterance that the record belongs to; 0: none."""
        if record["type"] == "close":
            return 0
        number: int = record["utterance"]
        if record["type"] == "start":
            start_s = record["tick"] / VIDEO_TIMESCALE
            self._lines[number] = UtteranceRecord(number, record["text"], start_s, None)
            self._said[number], self._shown_s[number] = {}, start_s
        elif record["type"] == "say":
            self._say(record, self._said[number])
        elif record["type"] == "end":
            self._lines[number] = replace(
                self._lines[number],
                text=record.get("text", self._lines[number].text),
                end_s=record["tick"] / VIDEO_TIMESCALE,
                interrupted=bool(record.get("interrupted", False)),
            )
        elif not record.get("pause"):
            self._shown_s[number] = sum(record["video"]) / VIDEO_TIMESCALE
        return number

    def _say(self, record: Record, said: dict[int, Cue]) -> None:
        start_s = record["tick"] / VIDEO_TIMESCALE
        if "until" in record:
            words = tuple(Word(t, a / VIDEO_TIMESCALE, b / VIDEO_TIMESCALE) for t, a, b in record.get("words", ()))
            end_s = record["until"] / VIDEO_TIMESCALE
            said[record["number"]] = Cue(record["number"], record["text"], start_s, end_s, words)
            return
        if said:
            said[len(said)] = replace(said[len(said)], end_s=start_s)
        said[len(said) + 1] = Cue(len(said) + 1, record["text"], start_s, math.inf)


def _sentence(cue: Cue, shown_s: float, interrupted: bool) -> Sentence:
    """A sentence as far as it was shown; where it was cut, what was heard of it."""
    heard = cue.truncated(shown_s) if interrupted else replace(cue, end_s=max(cue.start_s, min(cue.end_s, shown_s)))
    return Sentence(heard.text, heard.start_s, heard.end_s, heard.words)


def _ticks(seconds: float) -> int:
    return round(seconds * VIDEO_TIMESCALE)


def _pair(clock: Clock) -> tuple[int, int]:
    return clock.video_ticks, clock.audio_samples
