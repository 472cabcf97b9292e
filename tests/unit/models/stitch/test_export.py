"""A session as a progressive MP4: all its frames, or the state at an earlier size."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from models.errors import InputError, NotFoundError
from models.media.encode import UtteranceEncoder
from models.stitch.export import export_faststart
from models.stitch.session import SessionFile
from tests.support.live import SPEC, fragments, levels, shown


@pytest.fixture
def session(tmp_path: Path) -> SessionFile:
    return SessionFile(tmp_path / "s", SPEC)


def speak(session: SessionFile, frames: int) -> None:
    for fragment in fragments(levels(frames), encoder=UtteranceEncoder(SPEC, session.clock)):
        session.append(fragment)


def test_a_progressive_mp4_has_all_frames_and_its_moov_first(session: SessionFile, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with pytest.raises(NotFoundError, match="no video"):
        export_faststart(session, out)
    speak(session, 10)
    speak(session, 6)
    export_faststart(session, out)
    data = out.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat") and b"moof" not in data
    assert len(shown(data)[1]) == 16
    with av.open(str(out)) as file:
        assert file.streams.video[0].frames == 16
        assert float(file.streams.video[0].duration * file.streams.video[0].time_base) == pytest.approx(0.64, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.mp4"]


def test_an_earlier_state_gives_the_same_file_after_the_session_has_grown(session: SessionFile, tmp_path: Path) -> None:
    speak(session, 10)
    export_faststart(session, tmp_path / "then.mp4")
    size = session.size
    speak(session, 6)
    export_faststart(session, tmp_path / "later.mp4", size)
    assert (tmp_path / "later.mp4").read_bytes() == (tmp_path / "then.mp4").read_bytes()
    for wrong in (size - 1, size + 1, 10, 10 * size):
        with pytest.raises(InputError, match=f"ends at byte {wrong}"):
            export_faststart(session, tmp_path / "wrong.mp4", wrong)
    assert not (tmp_path / "wrong.mp4").exists()
