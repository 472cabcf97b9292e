"""The source of a video is encoded like the video, in idle motion as well."""

import itertools

import numpy as np
import pytest

from models.avatar.playback import ping_pong
from models.live.pauses import Pause
from models.live.timeline import encode_idle
from models.media.encode import MediaSpec, UtteranceEncoder
from models.quality.frozen import SAME_LEVELS, find_freezes
from models.stitch.session import SessionFile
from models.stitch.sidecar import frames_record, read_sidecar, sidecar_path
from tests.unit.warmtalk.cli.test_quality import FPS, RATE, avatar
from warmtalk.cli.quality.media import frames_of, open_media
from warmtalk.cli.quality.source import coded_source, shown_by
from warmtalk.cli.quality.time_gates import REPEATED_SHARE

SPOKEN, PAUSE = 21, 40


def frames_at(position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    indices = ping_pong(position, count, len(avatar()))
    return indices, np.stack([avatar().frames[int(k)] for k in indices])


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> SessionFile:
    """Two utterances of the presenter's own frames, and between them idle motion as shown live."""
    folder, spec = tmp_path_factory.mktemp("judged"), MediaSpec(512, 512, FPS)
    idle = folder / "idle.mp4"
    idle.write_bytes(encode_idle(avatar().frames, spec))
    made = SessionFile(folder / "s", spec, avatar_id="presenter", avatar_version=avatar().version, sync="never")
    for position in (1, 1 + SPOKEN + PAUSE):
        parts = Pause(idle, 40).parts(spec, made.clock, made.position, position, lambda at: np.zeros(1, np.float32))
        for part in parts if made.frames else ():
            indices, _ = frames_at(part.position, part.fragment.frames)
            made.add_to_sidecar(frames_record(made.frames, indices, avatar(), part.weights))
            made.append(part.fragment, part.position, pause=True)
        indices, frames = frames_at(position, SPOKEN)
        made.start_utterance("Well.")
        made.add_to_sidecar(frames_record(made.frames, indices, avatar(), np.ones(SPOKEN, np.float32)))
        silence = np.zeros(SPOKEN * RATE // FPS, np.float32)
        for number, fragment in enumerate(UtteranceEncoder(made.spec, made.clock).push(frames, silence, last=True)):
            made.append(fragment, position if number == 0 else None)
        made.end_utterance()
    return made


def test_keyframes_show_where_an_encoder_started(session):
    media = open_media(session.path, 60.0)
    shown = shown_by(read_sidecar(sidecar_path(session.path), media.frames), avatar(), media.keys)
    spoken = {0, session.frames - SPOKEN}
    assert spoken < set(shown.edges) and shown.edges[-1] == session.frames == media.frames
    assert not {4, 6, 12, 18} & set(shown.edges)  # keyframes within one encoder's output
    pieces = np.diff([edge for edge in shown.edges if SPOKEN <= edge <= session.frames - SPOKEN])
    assert len(pieces) >= 8 and pieces.max() <= 4  # every piece of idle motion is encoded separately


def changes(frames) -> np.ndarray:
    """Mean grey levels from each frame to the next."""
    return np.array([np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)])


def test_idle_motion_in_a_file_does_not_count_as_repeated(session):
    """It is encoded in pieces of four frames, the second of which hardly differs from the first."""
    media = open_media(session.path, 60.0)
    sidecar, made = read_sidecar(sidecar_path(session.path), media.frames), changes(frames_of(media))
    shares = []
    for keys in (media.keys, (0,)):
        shown = shown_by(sidecar, avatar(), keys)
        own = changes(coded_source(avatar(), shown))
        planned = np.concatenate([[False], (own < SAME_LEVELS) | (np.diff(shown.indices) == 0)])
        shares.append(find_freezes(made, planned, FPS, own=own).repeats.mean())
    assert shares[0] < REPEATED_SHARE < 0.05 < shares[1]  # with a source that is encoded differently it would count
