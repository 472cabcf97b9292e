"""Captions, playlist and download of a session's file; unchanged parts are not read again."""

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from deployments.ingress.session_views import SessionViews, export_download
from models.errors import BusyError, NotFoundError
from models.live.cues import Cue
from models.media.encode import UtteranceEncoder
from models.stitch import index
from models.stitch.session import SessionFile
from tests.support.live import RATE, SPEC, levels


@pytest.fixture
def session(tmp_path) -> SessionFile:
    return SessionFile(tmp_path / "alice", SPEC)


def facts(session: SessionFile) -> dict:
    return {"video_path": str(session.path), "video_tag": session.video_tag, "size": session.size}


@pytest.fixture
def views() -> SessionViews:
    return SessionViews()


def say(session: SessionFile, frames: int, end: bool = True) -> None:
    session.start_utterance("Words.")
    session.add_sentence(Cue(1, "Words.", session.duration_s, session.duration_s + frames / 25))
    samples = np.sin(np.arange(frames * RATE // 25) / 10).astype(np.float32) * 0.3
    for fragment in UtteranceEncoder(SPEC, session.clock).push(levels(frames), samples, last=True):
        session.append(fragment)
    if end:
        session.end_utterance()


def counted(monkeypatch) -> list[int]:
    """The numbers of index records that each read returned."""
    read, counts = index.read, []

    def reading(*arguments):
        found = read(*arguments)
        counts.append(len(found))
        return found

    monkeypatch.setattr(index, "read", reading)
    return counts


def test_an_unchanged_session_is_not_read_again(session, views, monkeypatch):
    say(session, 12)
    known, counts = facts(session), counted(monkeypatch)
    first = views.playlist(known), views.captions(known)
    assert counts and sum(counts) > 0
    counts.clear()
    for _ in range(20):
        assert (views.playlist(known), views.captions(known)) == first
    assert counts == []


def test_only_new_records_are_read(session, views, monkeypatch):
    for _ in range(8):
        say(session, 4)
    views.playlist(facts(session)), views.captions(facts(session))
    say(session, 8)
    counts = counted(monkeypatch)
    assert views.playlist(facts(session)) == SessionViews().playlist(facts(session))
    fresh = counts[1:]
    assert counts[0] == 5 and max(fresh) > 8 * 4  # start, say, two fragments, end; a new reader reads all
    counts.clear()
    assert views.captions(facts(session)).count("-->") == 9 and counts == [5]


def test_changes_without_new_frames_are_noticed(session, views):
    say(session, 8, end=False)
    assert "ENDLIST" not in views.playlist(facts(session))
    session.end_utterance(interrupted=True)
    assert "Words. —" in views.captions(facts(session))
    session.finish()
    assert views.playlist(facts(session)).endswith("#EXT-X-ENDLIST\n")


def test_after_a_reset_or_a_new_writer_everything_is_read_again(session, views):
    say(session, 30)
    assert "#EXTINF:1.20000," in views.playlist(facts(session))
    lines = (session.folder / "index.jsonl").read_bytes().splitlines(keepends=True)
    (session.folder / "index.jsonl").write_bytes(b"".join(lines[:4]))  # a power failure, then another writer
    other = SessionFile(session.folder)
    other.recover()
    say(other, 8)
    assert views.playlist(facts(other)) == SessionViews().playlist(facts(other))
    assert "#EXTINF:1.20000," not in views.playlist(facts(other))
    other.reset()
    assert "EXTINF" not in views.playlist(facts(other)) and views.captions(facts(other)) == "WEBVTT\n"
    assert f"video.mp4?tag={other.video_tag}" in views.playlist(facts(other))


def test_the_number_of_cached_sessions_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("deployments.ingress.session_views.MAX_VIEWS", 3)
    views = SessionViews()
    made = [SessionFile(tmp_path / f"s{k}", SPEC) for k in range(5)]
    for session in made:
        say(session, 4)
    counts = counted(monkeypatch)
    texts = [views.playlist(facts(session)) for session in made]
    for newest in made[2:]:
        views.playlist(facts(newest))
    kept = len(counts)
    assert views.playlist(facts(made[0])) == texts[0] and len(counts) > kept  # it was evicted, and is read again


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_ffmpeg_plays_the_playlist(session, views):
    for frames in (30, 60):
        say(session, frames)
    session.finish()
    shutil.copy(session.path, session.folder / "video.mp4")
    text = views.playlist(facts(session)).replace(f"?tag={session.video_tag}", "")
    (session.folder / "index.m3u8").write_text(text)
    command = ["ffmpeg", "-v", "warning", "-i", str(session.folder / "index.m3u8"), "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert sum(line.startswith("0,") for line in done.stdout.splitlines()) == 90


def test_a_download_plays_and_seeks(session, tmp_path):
    for frames in (30, 60):
        say(session, frames)
    with session.path.open("ab") as file:
        file.write(b"half a fragment")  # still being written
    path = export_download(facts(session), session.size, tmp_path / "downloads")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 90
        file.seek(2_000_000)
        assert next(file.decode(video=0)).time == pytest.approx(2.0, abs=0.4)


def test_an_empty_session_has_no_download(session, tmp_path):
    with pytest.raises(NotFoundError, match="no video yet"):
        export_download(facts(session), session.size, tmp_path / "downloads")
    assert list(Path(tmp_path / "downloads").iterdir()) == []


def test_a_download_of_a_session_that_is_reset_during_the_export_is_refused(session, tmp_path):
    say(session, 30)
    known = facts(session)
    session.reset()
    say(session, 30)
    with pytest.raises(BusyError, match="reset during the export"):
        export_download(known, session.size, tmp_path / "downloads")
    assert list(Path(tmp_path / "downloads").iterdir()) == []


def test_captions_follow_the_file(session, views):
    say(session, 30)
    assert views.captions(facts(session)) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nWords.\n"
