"""Views of a session's file: a playlist that a real player plays and that only grows, a download that seeks."""

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from deployments.views import captions, faststart, playlist
from models.errors import NotFoundError
from models.stitch.encode import UtteranceEncoder
from models.stitch.session import SessionFile
from tests.unit.live_material import RATE, SPEC, levels


@pytest.fixture
def session(tmp_path) -> SessionFile:
    return SessionFile(tmp_path / "alice", SPEC)


def facts(session: SessionFile) -> dict:
    return {"video_path": str(session.path)}


def say(session: SessionFile, frames: int, end: bool = True) -> None:
    session.start_utterance("Words.")
    session.say("Words.", session.clock.video_ticks)
    samples = np.sin(np.arange(frames * RATE // 25) / 10).astype(np.float32) * 0.3
    for fragment in UtteranceEncoder(SPEC, session.clock).push(levels(frames), samples, last=True):
        session.append(fragment)
    if end:
        session.end_utterance()


def durations(text: str) -> list[float]:
    return [float(line[8:-1]) for line in text.splitlines() if line.startswith("#EXTINF")]


def test_a_playlist_joins_fragments_to_segments_of_two_seconds(session):
    say(session, 130)
    found = durations(playlist(facts(session)))
    assert sum(found) == pytest.approx(130 / 25) and len(found) == 3
    assert max(found) <= 2.0 + SPEC.fragment_frames / 25


def test_a_playlist_only_grows_and_ends_when_the_session_is_closed(session):
    texts = [playlist(facts(session))]
    for frames in (30, 8, 130):
        say(session, frames, end=False)
        texts.append(playlist(facts(session)))
        session.end_utterance()
        texts.append(playlist(facts(session)))
    session.finish()
    texts.append(playlist(facts(session)))
    for before, after in zip(texts, texts[1:], strict=False):  # noqa: RUF007
        assert after.startswith(before)
    assert sum(durations(texts[-1])) == pytest.approx(168 / 25)
    assert texts[-1].endswith("#EXT-X-ENDLIST\n") and "ENDLIST" not in texts[-2]


def test_a_targetduration_holds_for_every_segment(session):
    say(session, 130)
    text = playlist(facts(session))
    (target,) = (int(line.split(":")[1]) for line in text.splitlines() if "TARGETDURATION" in line)
    assert all(round(found) <= target for found in durations(text))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_ffmpeg_plays_the_playlist(session):
    for frames in (30, 60):
        say(session, frames)
    session.finish()
    shutil.copy(session.path, session.folder / "video.mp4")
    (session.folder / "index.m3u8").write_text(playlist(facts(session)))
    command = ["ffmpeg", "-v", "warning", "-i", str(session.folder / "index.m3u8"), "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert sum(line.startswith("0,") for line in done.stdout.splitlines()) == 90


def test_a_download_plays_and_seeks(session, tmp_path):
    for frames in (30, 60):
        say(session, frames)
    with session.path.open("ab") as file:
        file.write(b"half a fragment")  # that is being written
    path = faststart(facts(session), tmp_path / "downloads")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 90
        file.seek(2_000_000)
        assert next(file.decode(video=0)).time == pytest.approx(2.0, abs=0.4)


def test_an_empty_session_has_no_download_and_leaves_no_file(session, tmp_path):
    with pytest.raises(NotFoundError, match="no video yet"):
        faststart(facts(session), tmp_path / "downloads")
    assert list(Path(tmp_path / "downloads").iterdir()) == []


def test_captions_follow_the_file(session):
    say(session, 30)
    assert captions(facts(session)) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nWords.\n"
