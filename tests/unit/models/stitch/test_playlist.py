"""The HLS playlist follows RFC 8216 at each length of a session."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from models.media import mp4 as boxes
from models.media.encode import MediaSpec, UtteranceEncoder
from models.stitch.playlist import Playlist
from models.stitch.session import SessionFile
from tests.support.live import SPEC, fragments, levels

URL = "video.mp4?tag=1-2"


@pytest.fixture
def session(tmp_path: Path) -> SessionFile:
    return SessionFile(tmp_path / "s", SPEC)


def speak(session: SessionFile, frames: int, end: bool = True) -> None:
    session.start_utterance("Words.")
    for fragment in fragments(levels(frames), encoder=UtteranceEncoder(SPEC, session.clock)):
        session.append(fragment)
    if end:
        session.end_utterance()


def playlist(session: SessionFile) -> str:
    return str(Playlist(session.spec, len(session.init_segment), URL).extend(session.records()))


def tags(text: str, name: str) -> list[str]:
    return [line.partition(":")[2] for line in text.splitlines() if re.match(rf"#{name}(:|$)", line)]


def check(text: str, data: bytes) -> list[tuple[Fraction, bytes]]:
    """Check a playlist over the bytes of a video; return its segments: (seconds, bytes)."""
    lines = text.splitlines()
    assert text.endswith("\n") and lines[0] == "#EXTM3U"  # 4.3.1.1
    assert "" not in lines and all(line.startswith("#EXT") or line == URL for line in lines)
    once = ("EXT-X-VERSION", "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-PLAYLIST-TYPE", "EXT-X-MAP")
    assert all(len(tags(text, name)) == 1 for name in once)
    assert int(tags(text, "EXT-X-VERSION")[0]) >= 6  # 7: EXT-X-MAP outside I-frame playlists; 4: EXT-X-BYTERANGE
    assert tags(text, "EXT-X-PLAYLIST-TYPE") == ["EVENT"] and tags(text, "EXT-X-MEDIA-SEQUENCE") == ["0"]
    first = next((k for k, line in enumerate(lines) if line.startswith("#EXTINF")), len(lines))
    assert all(any(line.startswith(f"#{name}:") for line in lines[:first]) for name in once)  # 4.3.3: before segments
    uri, length, at = re.fullmatch(r'URI="([^"]+)",BYTERANGE="(\d+)@(\d+)"', tags(text, "EXT-X-MAP")[0]).groups()
    assert (uri, int(at)) == (URL, 0) and kinds(data[: int(length)]) == [b"ftyp", b"moov"]  # 3.3
    target = int(tags(text, "EXT-X-TARGETDURATION")[0])
    segments, end = [], int(length)
    for k, line in enumerate(lines):
        if line != URL:
            continue
        seconds = re.fullmatch(r"#EXTINF:(\d+\.\d+),", lines[k - 2]).group(1)
        size, at = map(int, re.fullmatch(r"#EXT-X-BYTERANGE:(\d+)@(\d+)", lines[k - 1]).groups())
        assert round(float(seconds)) <= target  # 4.3.3.1
        assert at == end and at + size <= len(data)
        end = at + size
        segments.append((Fraction(seconds), data[at:end]))
    assert "#EXT-X-ENDLIST" not in lines[:-1] and "EXT-X-DISCONTINUITY" not in text  # one init segment
    return segments


def kinds(data: bytes) -> list[bytes]:
    return [kind for kind, _, _ in boxes.children(data, 0, len(data))]


def moofs(segment: bytes) -> list[bytes]:
    starts = [start - 8 for kind, start, _ in boxes.children(segment, 0, len(segment)) if kind == b"moof"]
    return [segment[a:b] for a, b in zip(starts, [*starts[1:], len(segment)], strict=True)]


def test_a_playlist_is_valid_at_every_length_and_only_grows(session):
    texts = [playlist(session)]
    for frames, end in ((30, True), (8, False), (130, True), (1, True), (55, False)):
        speak(session, frames, end)
        texts.append(playlist(session))
    session.end_utterance()
    session.finish()
    texts.append(playlist(session))
    data = session.path.read_bytes()
    counts = [len(check(text, data)) for text in texts]
    assert counts[0] == 0 and counts == sorted(counts)
    assert all(later.startswith(text) for text, later in zip(texts, texts[1:], strict=False))  # noqa: RUF007
    assert texts[-1].endswith("#EXT-X-ENDLIST\n") and "ENDLIST" not in texts[-2]
    segments = check(texts[-1], data)
    assert sum(seconds for seconds, _ in segments) == Fraction(224, 25)
    assert data == session.init_segment + b"".join(segment for _, segment in segments)


def test_each_segment_decodes_alone_and_has_the_stated_duration(session):
    for frames in (30, 130, 8):
        speak(session, frames)
    segments = check(playlist(session), session.path.read_bytes())
    at = 0
    for seconds, segment in segments:
        runs = [boxes.read_fragment(moof) for moof in moofs(segment)]
        assert all(key for _, key in runs)  # EXT-X-INDEPENDENT-SEGMENTS
        videos = [run[boxes.VIDEO_TRACK] for run, _ in runs]
        assert videos[0].start == at and sum(video.ticks for video in videos) == seconds * 90_000
        at += sum(video.ticks for video in videos)
    assert len(segments) == 1 + 3 + 1


@pytest.mark.parametrize(("first", "others", "fps"), [(6, 12, 25), (50, 12, 25), (1, 90, 30), (24, 24, 24)])
def test_the_target_duration_holds_for_all_segments(tmp_path, first, others, fps):
    spec = MediaSpec(64, 64, fps, first_fragment_frames=first, fragment_frames=others)
    session = SessionFile(tmp_path / "s", spec)
    before = tags(playlist(session), "EXT-X-TARGETDURATION")
    session.start_utterance("")
    for fragment in fragments(levels(200), spec=spec):
        session.append(fragment)
    session.end_utterance()
    text = playlist(session)
    check(text, session.path.read_bytes())
    assert tags(text, "EXT-X-TARGETDURATION") == before


def test_an_incremental_playlist_equals_one_built_at_once(session):
    grown, read = Playlist(SPEC, len(session.init_segment), URL), None
    for frames, end in ((30, True), (130, False), (9, True)):
        speak(session, frames, end)
        records = session.read_since(read)
        read = records[-1][1]
        assert str(grown.extend(record for record, _ in records[1:])) == playlist(session)
