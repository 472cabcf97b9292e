"""The writer of an utterance: its frames, sound and records in the session file."""

import dataclasses
import io
import tracemalloc
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.chunks import Chunk, SpeechSegment
from deployments.stitch.metrics import summary_of
from deployments.stitch.open_sessions import OpenSessions
from deployments.stitch.utterance import MAX_KEPT_CROPS, UtteranceWriter, _from_jpeg, _to_jpeg
from models.avatar.playback import ping_pong, sway
from models.errors import FencedError
from models.live.pauses import Pause
from models.live.timeline import IdleGrid, encode_idle
from models.media.encode import MediaSpec, UtteranceEncoder, _AudioTrack
from models.media.frames import VideoFrames, write_frames
from models.speech.activity import ActivityDetector
from models.stitch.mouth import Mouth
from models.stitch.paste import Paster
from models.stitch.sidecar import read_sidecar, sidecar_path
from models.types import FaceCrops, Fragment, PreparedAvatar, Speech
from tests.support.avatar import astronaut

SIDE, COUNT, RATE = 64, 5, 24_000
SPEC = MediaSpec(SIDE, SIDE, 25, fragment_frames=4, first_fragment_frames=4, crf=5)


NO_PAUSE = Pause(Path("/nowhere"), keep=0)  # a live session whose file keeps no pauses


def loaded() -> LoadedAvatar:
    """Five frames, each of one grey: 20, 60, 100, 140, 180. The crop covers the frame's middle; frame 3 has no face."""
    frames = np.stack([np.full((SIDE, SIDE, 3), 20 + 40 * k, np.uint8) for k in range(COUNT)])
    masks = np.zeros((COUNT, 256, 256), np.uint8)
    masks[:, 64:192, 64:192] = 255
    transforms = np.tile(np.float32([[4, 0, 1.5], [0, 4, 1.5]]), (COUNT, 1, 1))  # 64 px to 256 px
    has_face = np.arange(COUNT) != 3
    prepared = PreparedAvatar(
        "ann", "1", 25, SIDE, SIDE, transforms, np.zeros((COUNT, 68, 2), np.float32), masks, has_face, frames=frames
    )
    return LoadedAvatar(prepared, Paster(prepared))


def chunk(first: int, count: int, last: bool = False, speech_s: float = 0.0, position: int | None = None) -> Chunk:
    """White crops. The speech comes with the first chunk, at another rate than the session's."""
    crops = FaceCrops(np.full((count, 256, 256, 3), 250, np.uint8), first, "ann")
    samples = np.sin(np.arange(round(speech_s * 16_000)) / 10).astype(np.float32) * 0.3
    speech = Speech(samples, 16_000, last=last) if speech_s else None
    return Chunk(crops, speech, last, first if position is None else position)


def segment_of(chunk: Chunk) -> SpeechSegment:
    """The segment that begins with the chunk."""
    frames = round(chunk.speech.duration_s * SPEC.fps)
    return SpeechSegment(chunk.speech, chunk.crops.first_frame, frames, chunk.speech, ActivityDetector()(chunk.speech))


def add(writer: UtteranceWriter, first: int, count: int, last: bool = False, speech_s: float = 0.0) -> list[Fragment]:
    """Add a chunk where the file output places it: directly behind the one before."""
    return writer.add(chunk(first, count, last, speech_s, writer.position + first))


@pytest.fixture
def sessions(tmp_path) -> OpenSessions:
    return OpenSessions(tmp_path, 8)


def utterance(sessions: OpenSessions, position: int = 0, text: str = "Hello.") -> UtteranceWriter:
    return UtteranceWriter(SpeakRequest("alice", text), sessions, loaded(), SPEC, position, Mouth(SPEC.fps))


def decode(data: bytes) -> tuple[np.ndarray, float]:
    """Frames `(n, h, w, 3)` and seconds of sound."""
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(io.BytesIO(data)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
    return np.stack(frames), samples / RATE


def test_nothing_is_written_before_the_first_frame(sessions, tmp_path):
    utterance(sessions)
    assert list(tmp_path.iterdir()) == [] and sessions.find("alice") is None


def test_ending_an_utterance_without_a_frame_writes_nothing(sessions, tmp_path):
    utterance(sessions).end()
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_frames_and_the_sound_of_all_chunks(sessions):
    said = utterance(sessions)
    fragments = [*add(said, 0, 4, speech_s=0.48), *add(said, 4, 8, last=True)]
    said.end()
    assert (said.frames, sum(fragment.frames for fragment in fragments)) == (12, 12)
    frames, sound_s = decode(said.session.path.read_bytes())
    assert len(frames) == 12
    assert sound_s == pytest.approx(0.48, abs=1024 / RATE)
    (line,) = sessions.describe("alice")["utterances"]
    assert (line["text"], line["start_s"], line["end_s"]) == ("Hello.", 0.0, 0.48)


def test_an_utterance_that_stops_early_leaves_complete_fragments_and_no_end(sessions):
    said = utterance(sessions)
    add(said, 0, 4, speech_s=0.48)
    add(said, 4, 6)
    facts = sessions.describe("alice")
    assert 0 < facts["frames"] <= 10 and facts["frames"] % 4 == 0
    assert facts["utterances"][-1]["end_s"] is None
    assert len(decode(said.session.path.read_bytes())[0]) == facts["frames"]
    again = utterance(sessions, facts["frames"], "Again.")
    add(again, 0, 4, last=True, speech_s=0.16)
    again.end()
    assert len(decode(again.session.path.read_bytes())[0]) == facts["frames"] + 4


def test_the_avatar_plays_forward_and_backward_from_the_sessions_position(sessions):
    said = utterance(sessions, position=3)
    add(said, 0, 8, last=True, speech_s=0.32)
    frames, _ = decode(said.session.path.read_bytes())
    corner = [round((int(frame[2, 2, 0]) - 20) / 40) for frame in frames]
    assert corner == [1, 2, 3, 3, 4, 4, 4, 3]  # from position 3: 0 0 1 | 1 2 3 …, with slow turns


def test_crops_are_pasted_only_into_frames_with_a_face(sessions):
    said = utterance(sessions, position=4)
    add(said, 0, 4, last=True, speech_s=0.16)
    frames, _ = decode(said.session.path.read_bytes())  # avatar frames 2 3 3 4
    assert [int(frame[32, 32, 0]) > 220 for frame in frames] == [True, False, False, True]
    assert frames[2, 32, 32, 0] == pytest.approx(140, abs=6)


def test_in_silence_the_avatars_own_mouth_is_shown(sessions):
    said, heard = utterance(sessions), chunk(0, 16, last=True, speech_s=0.64)
    heard.speech.samples[: round(0.28 * 16_000)] = 0.0
    heard.speech.samples[round(0.4 * 16_000) :] = 0.0
    said.add(heard)
    frames, _ = decode(said.session.path.read_bytes())
    (weights,) = said.weights
    assert weights[[0, 7, 8, 9, 15]].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0] and 0 < weights[2] < weights[3] < 1
    index = ping_pong(0, 16, COUNT)
    own = 20 + 40 * index
    shown = np.where(index == 3, own, own + weights * (250 - own))  # frame 3 has no face
    assert frames[:, 32, 32, 0] == pytest.approx(shown, abs=6)


def test_silence_across_two_segments_counts_as_one_pause(sessions):
    said, heard, after = utterance(sessions), chunk(0, 16, speech_s=0.64), chunk(16, 16, last=True, speech_s=0.64)
    heard.speech.samples[round(0.44 * 16_000) :] = 0.0  # 0.2 s of silence …
    after.speech.samples[: round(0.2 * 16_000)] = 0.0  # … and 0.2 s again
    said.add(dataclasses.replace(heard, following=segment_of(after)))
    said.add(after)
    before, later = said.weights
    assert before.min() == 0.0 and later[0] < 1.0 and later[5:].min() == 1.0


def test_what_needs_no_face_is_made_before_the_first_faces_arrive(sessions, tmp_path, monkeypatch):
    chunks = chunk(0, 4, speech_s=0.48), chunk(4, 8, last=True)
    plain = utterance(OpenSessions(tmp_path / "plain", 8))
    for each in chunks:
        plain.add(each)
    made = []
    encode, opened = _AudioTrack._encode, UtteranceEncoder.__init__
    monkeypatch.setattr(_AudioTrack, "_encode", lambda *given: (made.append("sound"), encode(*given)))
    monkeypatch.setattr(UtteranceEncoder, "__init__", lambda *given: (made.append("encoder"), opened(*given))[1])
    said = utterance(sessions)
    said.prepare(segment_of(chunks[0]))
    assert made == ["encoder"] + 6 * ["sound"] and sessions.find("alice").frames == 0  # 4 frames need 6 AAC frames
    made.clear()
    said.add(chunks[0])
    assert made == []
    said.add(chunks[1])
    assert said.session.path.read_bytes() == plain.session.path.read_bytes()


def test_the_stream_of_a_request_starts_at_zero_in_the_middle_of_a_session(sessions):
    first = utterance(sessions)
    add(first, 0, 8, last=True, speech_s=0.32)
    first.end()
    second = utterance(sessions, 8, "Again.")
    fragments = [*add(second, 0, 4, speech_s=0.32), *add(second, 4, 4, last=True)]
    assert fragments[0].start_s == pytest.approx(0.32)
    live = fragments[0].init + b"".join(second.live(fragment) for fragment in fragments)
    with av.open(io.BytesIO(live)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert times == pytest.approx([k / 25 for k in range(8)], abs=0.045) and times[0] < 0.045


def test_a_writer_that_lost_the_session_to_another_writes_nothing_more(sessions, tmp_path):
    said = utterance(sessions)
    add(said, 0, 4, speech_s=0.48)
    before = sessions.describe("alice")["frames"]
    rival = utterance(OpenSessions(tmp_path, 8), before, "Rival.")
    add(rival, 0, 4, last=True, speech_s=0.16)
    rival.end()
    with pytest.raises(FencedError):
        add(said, 4, 8, last=True)
    facts = sessions.describe("alice")
    assert facts["frames"] == before + 4
    assert [line["text"] for line in facts["utterances"]] == ["Hello.", "Rival."]
    assert len(decode(said.session.path.read_bytes())[0]) == facts["frames"]


def test_a_claim_that_writes_nothing_does_not_stop_an_utterance(sessions, tmp_path):
    said = utterance(sessions)
    fragments = said.encode(chunk(0, 4, speech_s=0.48), True)
    OpenSessions(tmp_path, 8).claim("alice", SPEC, loaded().prepared)
    for fragment in fragments:
        said.write(fragment)
    assert [line["text"] for line in sessions.describe("alice")["utterances"]] == ["Hello."]


def test_an_utterance_made_for_a_position_that_is_taken_writes_no_record(sessions, tmp_path):
    said = utterance(sessions)
    fragments = said.encode(chunk(0, 4, speech_s=0.48), True)
    rival = utterance(OpenSessions(tmp_path, 8), 0, "Rival.")
    add(rival, 0, 4, last=True, speech_s=0.16)
    rival.end()
    with pytest.raises(FencedError):
        said.write(fragments[0])
    assert [line["text"] for line in sessions.describe("alice")["utterances"]] == ["Rival."]


def test_an_interrupted_utterance_without_a_written_frame_leaves_nothing_in_the_file(sessions):
    said = utterance(sessions)
    said.encode(chunk(0, 8, speech_s=0.48), True)
    said.end(interrupted=True)
    summary = summary_of(said, [], 0, 0.0, 0.16)
    assert (summary["frames"], summary["duration_s"], summary["start_s"]) == (0, 0.0, 0.0)
    assert (summary["made_s"], summary["rtf"]) == (0.32, 0.5)
    assert sessions.describe("alice")["utterances"] == [] and sessions.describe("alice")["frames"] == 0
    again = utterance(sessions, 0, "Again.")
    add(again, 0, 4, last=True, speech_s=0.16)
    known = read_sidecar(sidecar_path(again.session.path), 4)
    assert [one.text for one in known.utterances] == ["Again."]


def test_the_sidecar_describes_each_frame(sessions):
    said = utterance(sessions)
    said.engines = {"TTS": "hibari"}
    add(said, 0, 8, last=True, speech_s=0.32)
    said.end()
    again = utterance(sessions, 8, "Again.")
    add(again, 0, 4, last=True, speech_s=0.16)
    known = read_sidecar(sidecar_path(again.session.path), 12)
    shown = [*ping_pong(0, 8, COUNT), *ping_pong(8, 4, COUNT)]
    assert known.avatar_frames.tolist() == [int(k) for k in shown] and (known.avatar_id, known.avatar_version) == (
        "ann",
        "1",
    )
    assert known.transforms[:, 0].tolist() == [[4, 0, 1.5]] * 12
    faceless = known.avatar_frames == 3
    weights = np.concatenate([*said.weights, *again.weights])
    assert known.mouth == pytest.approx(np.where(faceless, 0, weights), abs=1e-3) and faceless.any()
    assert [(one.text, one.first_frame, one.engines) for one in known.utterances] == [
        ("Hello.", 0, {"TTS": "hibari"}),
        ("Again.", 8, {}),
    ]


# --- live sessions: the mouth may have to return to rest at any frame


def test_a_segment_made_before_the_rest_was_shown_still_follows_a_pause_in_the_file(sessions, tmp_path):
    """The segment before it is still being played, so its return to rest is encoded for the file alone."""
    (tmp_path / "idle.mp4").write_bytes(encode_idle(loaded().prepared.frames, SPEC))
    said = utterance(sessions)
    said.pause = Pause(tmp_path / "idle.mp4", 50)
    grid = IdleGrid.of(COUNT, SPEC.fps)
    until = grid.ceil(7 + 12)
    one = dataclasses.replace(chunk(0, 7, speech_s=0.28), position=0, ends_segment=True)
    two = dataclasses.replace(chunk(7, 6, speech_s=0.24, last=True), position=until, ends_segment=True)
    first, second = said.encode(one, True), said.encode(two, True)
    assert [fragment.frames for fragment in said.pause_inside(second[0])] and said.pause_inside(first[0]) == []
    for fragment, position in ((first[0], 0), (first[1], 4), (second[0], until), (second[1], until + 4)):
        said.write(fragment, position)
    said.end()
    assert said.kept_frames == sessions.describe("alice")["frames"] == until + 6
    frames, _ = decode(said.session.path.read_bytes())
    known = read_sidecar(sidecar_path(said.session.path), len(frames))
    assert known.avatar_frames.tolist() == ping_pong(0, len(frames), COUNT).tolist()
    own, mouth = 20 + 40 * known.avatar_frames, known.mouth
    assert mouth[6] == 1 or known.avatar_frames[6] == 3
    assert 1 > mouth[7] > mouth[8] > 0 and (mouth[9:until] == 0).all()
    assert frames[:, 32, 32, 0] == pytest.approx(own + mouth * (250 - own), abs=8)
    (line,) = sessions.describe("alice")["utterances"]
    assert line["end_s"] == pytest.approx((until + 6) / 25, abs=1e-3)


def face_512() -> np.ndarray:
    return cv2.resize(astronaut(), (512, 512))


def test_crops_kept_for_a_rest_are_small_and_dropped_when_they_have_been_shown(sessions):
    """32 crops of 512 px take 25 MB as RGB, and a server keeps them per live utterance."""
    said = utterance(sessions)
    said.pause = NO_PAUSE
    crops = np.repeat(face_512()[None], 8, 0)
    fragments = []
    for first in range(0, 160, 8):
        speech = Speech(np.full(102_400, 0.3, np.float32), 16_000) if not first else None
        fragments += said.encode(Chunk(FaceCrops(crops, first, "ann"), speech, first == 152, first), first == 152)
    assert len(said._kept_crops) == MAX_KEPT_CROPS and sum(map(len, said._kept_crops.values())) < 5e6
    for fragment in fragments[: len(fragments) // 2]:
        said.write(fragment)
    shown = sum(fragment.frames for fragment in fragments[: len(fragments) // 2])
    assert sorted(said._kept_crops) == list(range(shown - 1, 160, 4))
    for fragment in fragments[len(fragments) // 2 :]:
        said.write(fragment)
    assert sorted(said._kept_crops) == [159]


def test_a_kept_crop_looks_like_the_original():
    face = face_512()
    error = _from_jpeg(_to_jpeg(face)).astype(int) - face
    assert np.abs(error).mean() < 1.2 and np.abs(error).max() < 24


def test_rests_reuse_one_paster_beside_the_utterance(sessions, monkeypatch):
    clones, clone = [], Paster.clone
    monkeypatch.setattr(Paster, "clone", lambda self: clones.append(clone(self)) or clones[-1])
    said = utterance(sessions)
    said.pause = NO_PAUSE
    said.encode(chunk(0, 8, speech_s=0.32), False)
    assert len(said.rest_fragment(2, range(2, 5)).video) == 3 and clones == []  # the avatar's own paster was free
    with said.avatar.borrow_paster() as own:
        for shown in (4, 8):
            assert len(said.rest_fragment(shown, range(shown, shown + 3)).video) == 3
    assert len(clones) == 1 and own is said.avatar.paster
    with said.avatar.borrow_paster() as one, said.avatar.borrow_paster() as other:
        assert one is not other and clones[0] in (one, other)
    assert len(clones) == 1


def test_the_audio_delay_of_utterances_without_silence_between_them_is_less_than_a_frame(sessions):
    late_ms, reported = [], []
    for _ in range(12):
        said = utterance(sessions)
        add(said, 0, 11, last=True, speech_s=0.44)
        said.end()
        late_ms.append(said.audio_delay_s * 1e3)
        reported.append(summary_of(said, [], 0, 0.0, 0.1)["audio_delay_ms"])
    assert late_ms[0] == 0 and 0 < max(late_ms) < 40  # a frame
    assert reported == pytest.approx(late_ms, abs=0.05)


def large(width: int, height: int, path: Path) -> LoadedAvatar:
    """One frame with a face 400 px wide in its middle, whatever the frame's size."""
    write_frames(path, [cv2.resize(astronaut(), (width, height))], 25)
    frames = VideoFrames(path.open("rb"))
    transforms = np.float32([[[0.5, 0, 128 - width / 4], [0, 0.5, 128 - height / 4]]])
    masks = np.zeros((1, 256, 256), np.uint8)
    masks[:, 28:228, 28:228] = 255
    landmarks = np.zeros((1, 68, 2), np.float32)
    prepared = PreparedAvatar(
        "ann", "1", 25, width, height, transforms, landmarks, masks, np.ones(1, bool), frames=frames
    )
    return LoadedAvatar(prepared, Paster(prepared))


def test_a_chunk_of_large_frames_needs_memory_for_two_frames(sessions, tmp_path):
    """All 16 frames of 1080p would take 100 MB, of 4K 400 MB."""
    spec = MediaSpec(1920, 1080, 25, preset="ultrafast", crf=40)
    avatar = large(1920, 1080, tmp_path / "frames.mp4")
    spoken = UtteranceWriter(SpeakRequest("alice", "Hi."), sessions, avatar, spec, 0, Mouth(25))
    part = chunk(0, 16, last=True, speech_s=0.64)
    tracemalloc.start()
    spoken.encode(part, True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spoken.frames == 16
    assert peak < 2 * 1920 * 1080 * 3 + 4e6
    spoken.release()
    assert spoken._canvas is None


def test_a_paste_needs_memory_for_its_region_only_however_large_the_frame(tmp_path):
    face, peaks = np.full((256, 256, 3), 90, np.uint8), []
    for size in ((960, 540), (3840, 2160)):
        avatar = large(*size, tmp_path / "frames.mp4")
        frame = avatar.prepared.frames[0].copy()
        avatar.paster.paste_into(frame, face, 0)  # fills its caches
        tracemalloc.start()
        avatar.paster.paste_into(frame, face, 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05) and peaks[1] > 0  # of 16 times the pixels


def test_a_long_hold_encodes_each_step_of_the_swaying_head_once(sessions, monkeypatch):
    said, encoded = utterance(sessions), []
    monkeypatch.setattr(
        "deployments.stitch.utterance.encode_closed_gop",
        lambda frames, spec: encoded.append(len(list(frames))) or (b"frame",) * encoded[-1],
    )
    said.encode(chunk(0, 8, speech_s=0.32), False)
    for _ in range(3):
        path = sway(8, 16)
        steps = [said.rest_fragment(8, path[start : start + 4]) for start in range(0, 16, 4)]
        assert [len(step.video) for step in steps] == [4] * 4
    assert encoded == [4] * 5  # the mouth moves to rest in the first of all
    said.rest_fragment(4, sway(8, 16)[:4])  # more speech was shown in between: the mouth moves again
    assert len(encoded) == 6
