"""`warmtalk enhance`: frames, times and sound stay; a crash loses one piece; a cluster is used fully and in order."""

import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from models.avatar.detect import BlazeMesh
from models.errors import BusyError, ConfigError, InputError, StageError, VideoError
from models.media.encode import MediaSpec
from models.restore.video import EnhanceOptions
from models.stitch.disk import SessionMeta
from models.stitch.index import encode_record
from models.stitch.sidecar import header, read_sidecar, sidecar_path, utterance_record
from models.types import FaceCrops
from tests.support.avatar import astronaut, moved, similarity
from tests.support.paths import ROOT
from tests.support.video import picture_of, sound_of, uneven, write_video
from warmtalk.cli import app as cli
from warmtalk.cli import enhance as enhancing
from warmtalk.cli.enhance import ClusterBackend, LocalBackend, Parts, enhance_video

FRAMES = 20
EMPTY = 9  # the frame without a face
FINE = {"piece_s": 0.16, "crf": 3.0}  # four frames per piece; quality so high that only enhancement differs


class Brighter:
    """A restorer with a visible effect: 40 levels brighter. Raises an error at call `dies_at`."""

    def __init__(self, dies_at: int = 0) -> None:
        self.calls, self.faces, self.dies_at = 0, 0, dies_at

    def restore(self, faces, strength=1.0):
        self.calls += 1
        self.faces += len(faces)
        if self.calls == self.dies_at:
            raise RuntimeError("killed")
        large = np.stack([cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC) for face in faces])
        return np.clip(large.astype(int) + 40, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector() -> BlazeMesh:
    return BlazeMesh()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moving face, one dark frame, uneven frame times, a late start and sound."""
    picture = cv2.convertScaleAbs(astronaut(), alpha=0.7)
    frames = [moved(picture, similarity(picture.shape, dx=4 * np.sin(k / 3))) for k in range(FRAMES)]
    frames[EMPTY] = np.full_like(picture, 30)
    return write_video(tmp_path_factory.mktemp("video") / "in.mp4", frames, uneven(FRAMES))


@pytest.fixture(scope="module")
def whole(video: Path, detector: BlazeMesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The video enhanced without interruption."""
    output = tmp_path_factory.mktemp("whole") / "out.mp4"
    report = enhance_video(video, output, LocalBackend("test", Brighter()), detector=detector, **FINE)
    assert (report.frames, report.faces, report.resumed) == (FRAMES, FRAMES - 1, 0)
    return output


def cheek(frames: list[np.ndarray]) -> np.ndarray:
    """Mean level of the middle of the face, per frame."""
    return np.array([frame[90:120, 130:160].mean() for frame in frames])


def test_the_sidecar_is_copied_with_the_name_of_the_engine(detector: BlazeMesh, tmp_path: Path) -> None:
    video, output = write_video(tmp_path / "in.mp4", [astronaut()] * 4, uneven(4)), tmp_path / "out.mp4"
    meta = SessionMeta.new("alice", "ann", "1", MediaSpec(256, 256, 25))
    shown = {"avatar_frames": [3, 4, 5, 6], "transforms": [[1, 0, 2, 0, 1, 3]] * 4, "mouth": [1, 1, 0.5, 0]}
    said = utterance_record(0, "Hello.", {"TTS": "hibari"})
    lines = header(meta) + encode_record(said) + encode_record({"type": "frames", "first": 0, **shown})
    sidecar_path(video).write_bytes(lines + b'{"type":"fra')
    enhance_video(video, output, LocalBackend("small:/weights/of/mine", Brighter()), detector=detector, **FINE)
    before, after = (read_sidecar(sidecar_path(path), 4) for path in (video, output))
    assert before.utterances[0].engines == {"TTS": "hibari"}
    assert after.utterances[0].engines == {"TTS": "hibari", "Enhance": "small"}
    assert after.avatar_frames.tolist() == [3, 4, 5, 6] and np.array_equal(after.transforms, before.transforms)
    assert (after.avatar_id, after.session_id, after.mouth.tolist()) == ("ann", "alice", [1, 1, 0.5, 0])
    sidecar_path(video).unlink()
    enhance_video(video, output, LocalBackend("test", Brighter()), detector=detector, **FINE)
    assert not sidecar_path(output).exists()  # it belonged to the video that was replaced


def test_every_face_is_restored_and_everything_else_stays(video: Path, whole: Path) -> None:
    (times, before), (out_times, after) = picture_of(video), picture_of(whole)
    assert out_times == times
    assert sound_of(whole) == sound_of(video)
    rise = cheek(after) - cheek(before)
    assert np.abs(np.delete(rise, EMPTY) - 40).max() < 3
    assert abs(rise[EMPTY]) < 1
    corner = [np.abs(a[-60:, :60].astype(int) - b[-60:, :60]).mean() for a, b in zip(after, before, strict=True)]
    assert max(corner) < 2.5
    assert not whole.with_name("out.mp4.part").exists()


def test_half_the_strength_gives_half_the_change(video: Path, detector: BlazeMesh, tmp_path: Path) -> None:
    options = EnhanceOptions(strength=0.5, every=4)
    engine = Brighter()
    enhance_video(video, tmp_path / "out.mp4", LocalBackend("test", engine), options, detector=detector)
    rise = cheek(picture_of(tmp_path / "out.mp4")[1]) - cheek(picture_of(video)[1])
    assert np.abs(np.delete(rise, EMPTY) - 20).max() < 3
    assert engine.faces == 6  # frames 0, 4, 8, the first after the dark one (10), 12, 16


def test_a_crash_loses_one_piece_and_a_rerun_resumes(
    video: Path, whole: Path, detector: BlazeMesh, tmp_path: Path
) -> None:
    output, options = tmp_path / "out.mp4", EnhanceOptions(batch=2)
    with pytest.raises(RuntimeError, match="killed"):
        enhance_video(video, output, LocalBackend("test", Brighter(dies_at=8)), options, detector=detector, **FINE)
    assert not output.exists()
    done = sorted(path.name for path in (tmp_path / "out.mp4.part").glob("*.mp4"))
    assert 1 <= len(done) <= 4 and done == [f"{k:06d}.mp4" for k in range(len(done))]
    engine, seen = Brighter(), []
    report = enhance_video(
        video,
        output,
        LocalBackend("test", engine),
        options,
        detector=detector,
        **FINE,
        progress=lambda n, of: seen.append((n, of)),
    )
    assert report.resumed == 4 * len(done)
    assert (report.frames, report.faces) == (FRAMES, FRAMES - report.resumed - (report.resumed <= EMPTY))
    assert seen == [(k, FRAMES) for k in range(report.resumed + 1, FRAMES + 1)]
    (times, frames), (whole_times, wanted) = picture_of(output), picture_of(whole)
    assert times == whole_times
    assert sound_of(output) == sound_of(video)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(frames, wanted, strict=True)) < 0.5
    assert list(tmp_path.iterdir()) == [output]


def test_a_rerun_resumes_after_sigkill(video: Path, whole: Path, tmp_path: Path) -> None:
    """The process kills itself in the middle of the third piece of four frames."""
    output = tmp_path / "out.mp4"
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.unit.warmtalk.cli.test_enhance import *
kill = lambda done, of: os.kill(os.getpid(), signal.SIGKILL) if done == 10 else None
enhance_video(Path({str(video)!r}), Path({str(output)!r}), LocalBackend("test", Brighter()), **FINE, progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == -signal.SIGKILL and not output.exists()
    report = enhance_video(video, output, LocalBackend("test", Brighter()), **FINE)
    assert report.resumed == 8 and report.frames == FRAMES
    for a, b in zip(picture_of(output)[1], picture_of(whole)[1], strict=True):
        assert np.abs(a.astype(int) - b).mean() < 0.5


def test_a_rerun_with_other_settings_or_truncated_state_starts_again(
    video: Path, detector: BlazeMesh, tmp_path: Path
) -> None:
    output, folder = tmp_path / "out.mp4", tmp_path / "out.mp4.part"

    def crash(options: EnhanceOptions) -> None:
        backend = LocalBackend("test", Brighter(dies_at=7))
        with pytest.raises(RuntimeError):
            enhance_video(video, output, backend, options, detector=detector, **{**FINE, "piece_s": 0.08})

    crash(EnhanceOptions(batch=1))
    lines = (folder / "state.jsonl").read_text().splitlines()
    assert len(lines) >= 3
    job = enhancing.json.loads(lines[0])
    assert len(Parts.open(folder, job).pieces) == len(lines) - 1
    (folder / "state.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    assert len(Parts.open(folder, job).pieces) == len(lines) - 2
    (folder / "000000.mp4").write_bytes(b"truncated")
    assert Parts.open(folder, job).pieces == []
    assert list(folder.glob("*.mp4")) == []
    crash(EnhanceOptions(batch=1))
    assert Parts.open(folder, {**job, "strength": 0.3}).frames == 0


def test_two_runs_cannot_write_the_same_output(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.mp4.part"
    folder.mkdir()
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="Another run"):
            enhance_video(video, tmp_path / "out.mp4", LocalBackend("test", Brighter()))


def test_the_embedded_restorer_works_and_spandrel_needs_weights(video: Path, tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", picture_of(video)[1][:3], uneven(3))
    report = enhance_video(short, tmp_path / "out.mkv", LocalBackend.load("small"))
    assert (report.frames, report.faces) == (3, 3)
    assert len(picture_of(tmp_path / "out.mkv")[1]) == 3
    with pytest.raises(ConfigError, match="needs the file of a model"):
        LocalBackend.load("spandrel")


# --- the cluster


class Response:
    def __init__(self, result) -> None:
        self._result = result

    def result(self, timeout_s=None):
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class Method:
    def __init__(self, function) -> None:
        self._function = function

    def remote(self, *args):
        return Response(self._function(*args))


class Handle:
    """A Serve handle of an Enhance stage. The calls numbered in `lost` fail."""

    def __init__(self, lost=(), error=None) -> None:
        self.calls, self.lost, self.error, self.lock = [], set(lost), error, threading.Lock()
        self.needs_landmarks = Method(lambda: False)
        self.restore = Method(self._restore)

    def _restore(self, crops, strength):
        self.calls.append((len(crops.value), crops.value.avatar_id, crops.value.avatar_frames, strength))
        if self.error is not None:
            return self.error
        if len(self.calls) in self.lost:
            return RuntimeError("the replica died")
        images = Brighter().restore(crops.value.images)
        return stamped(FaceCrops(images, 0, ""))


def stamped(crops):
    from deployments.common.stage import Stamped

    return Stamped(crops, ())


def test_a_cluster_gives_the_same_frames_in_order_and_retries_lost_calls(
    video: Path, whole: Path, detector: BlazeMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enhancing, "RETRY_PAUSE_S", 0.0)
    handle = Handle(lost={2})
    backend = ClusterBackend(handle, replicas=5)
    assert backend.in_flight == 15  # three per replica
    enhance_video(video, tmp_path / "out.mp4", backend, EnhanceOptions(batch=4), detector=detector, **FINE)
    assert sum(call[0] for call in handle.calls) == FRAMES - 1 + 4  # the faces of the lost call twice
    assert {call[1:] for call in handle.calls} == {("", None, 1.0)}
    for a, b in zip(picture_of(tmp_path / "out.mp4")[1], picture_of(whole)[1], strict=True):
        assert np.abs(a.astype(int) - b).mean() < 0.5


def test_an_error_of_the_stage_or_a_dead_cluster_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enhancing, "RETRY_PAUSE_S", 0.0)
    refused = RuntimeError("task failed")
    refused.cause = InputError("Faces of shape (1, 2, 3) cannot be restored.")
    with pytest.raises(InputError, match="cannot be restored"):
        ClusterBackend(Handle(error=refused)).submit(np.zeros((1, 256, 256, 3), np.uint8))()
    dead = Handle(error=RuntimeError("gone"))
    with pytest.raises(StageError, match="Enhance failed"):
        ClusterBackend(dead).submit(np.zeros((1, 256, 256, 3), np.uint8))()
    assert len(dead.calls) == enhancing.MAX_ATTEMPTS


# --- the command


def test_the_command_explains_invalid_arguments(video: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    same = run(cli.app, ["enhance", str(video), "-o", str(video)])
    assert same.exit_code == 1 and "same file" in " ".join(same.output.split())
    none = run(cli.app, ["enhance", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "out.mp4")])
    assert none.exit_code == 1 and "not found" in " ".join(none.output.split())
    much = run(cli.app, ["enhance", str(video), "-o", str(tmp_path / "out.mp4"), "--strength", "3"])
    assert much.exit_code == 1 and "not between 0 and 1" in " ".join(much.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_changes_its_size_is_refused(video: Path) -> None:
    source = enhancing.SourceVideo(video)
    source.height -= 2
    with pytest.raises(VideoError, match="changes at frame 0"):
        next(source.frames())
