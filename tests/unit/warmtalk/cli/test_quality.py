"""`warmtalk quality` on videos with a known result: a good one, and one fault at a time.

The videos are the embedded presenter's own frames, with a mouth that opens and closes as its phonemes ask: a video
cannot be better than its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.errors import CorruptError, NoFaceError
from models.geometry import apply, invert
from models.media.encode import MediaSpec, UtteranceEncoder
from models.quality.lips import LipMeasures
from models.quality.syncnet import SyncNet
from models.quality.syncnet_net import StableSyncNet
from models.speech.visemes import lip_opening, mouth_track, to_visemes
from models.stitch.session import SessionFile
from models.stitch.sidecar import frames_record, sidecar_path, speech_record, utterance_record
from models.types import Phoneme, PreparedAvatar, Speech, UInt8
from tests.support.paths import ROOT
from tests.unit.models.quality.test_syncnet import NARROW_AUDIO, NARROW_VISUAL
from warmtalk.cli import app as cli
from warmtalk.cli.quality import command
from warmtalk.cli.quality.analysis import FaceSequence, VideoAnalysis, analyse_video
from warmtalk.cli.quality.command import to_json
from warmtalk.cli.quality.evaluate import evaluate
from warmtalk.cli.quality.gates import Gate
from warmtalk.cli.quality.lip_gates import closures, lips, offset, syncnet
from warmtalk.cli.quality.media import SOUND_HZ
from warmtalk.cli.quality.page import Report, render_page
from warmtalk.cli.quality.paste_gates import paste_jitter, seam, seam_flicker, sharpness
from warmtalk.cli.quality.signals import Signals
from warmtalk.cli.quality.source import recognised
from warmtalk.cli.quality.time_gates import seeking, silence

EMBEDDED = ROOT / "models" / "embedded" / "avatars"
RATE, FPS, FRAMES, FIRST = 24_000, 25, 75, 20
SYLLABLES = (("m", 0.08), ("ɑ", 0.16), ("p", 0.08), ("ɑ", 0.14), ("b", 0.08), ("i", 0.1), ("t", 0.06), ("ɑ", 0.16))


@cache
def avatar() -> PreparedAvatar:
    return AvatarStore(EMBEDDED).load("presenter", latents=False)


def phonemes() -> list[Phoneme]:
    """0.4 s of silence, two rounds of syllables, silence to the end at 3 s."""
    made, at = [Phoneme("_", 0, 0.4)], 0.4
    for symbol, lasts in SYLLABLES * 2:
        made.append(Phoneme(symbol, at, at + lasts))
        at += lasts
    return [*made, Phoneme("_", at, FRAMES / FPS)]


def sound(delay_s: float = 0.0) -> np.ndarray:
    """Noise during phonemes: loud vowels, nearly silent stops."""
    samples = np.random.default_rng(1).normal(size=FRAMES * RATE // FPS).astype(np.float32)
    level = np.zeros_like(samples)
    for phoneme in phonemes():
        loud = {"_": 0.0, "ɑ": 0.12, "i": 0.1, "m": 0.05}.get(phoneme.symbol, 0.006)
        level[int(phoneme.start_s * RATE) : int(phoneme.end_s * RATE)] = loud
    return np.roll(samples * level, round(delay_s * RATE))


def shown() -> np.ndarray:
    return ping_pong(FIRST, FRAMES, len(avatar()))


@cache
def talking() -> UInt8:
    """The presenter's frames, with the lower lip pulled down as far as the phonemes ask."""
    opening = lip_opening(mouth_track(to_visemes(phonemes()), FRAMES, FPS).mouth)
    return np.stack(
        [_opened(avatar().frames[int(k)], int(k), 110 * gap) for k, gap in zip(shown(), opening, strict=True)]
    )


def _opened(frame: UInt8, index: int, gap_px: float) -> UInt8:
    """The lower lip and everything below it moved down by `gap_px`, dark between the lips."""
    lips = apply(invert(avatar().transforms[index]), apply(avatar().transforms[index], avatar().landmarks[index]))[48:]
    middle, half = lips[[0, 6]].mean(0), np.ptp(lips[:, 0]) / 2
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    across = np.clip(1 - ((columns - middle[0]) / half) ** 2, 0, 1)
    line = lips[[13, 14, 15, 17, 18, 19], 1].mean()
    fade = np.clip(1 - (rows - line) / (0.9 * half), 0, 1)
    drop = gap_px * across * fade * (rows > line)
    moved = cv2.remap(frame, columns, (rows - drop).astype(np.float32), cv2.INTER_LINEAR)
    inside = (rows > line) & (rows < line + gap_px * across)
    moved[inside] = (50, 20, 20)
    return moved


def write(folder: Path, frames: UInt8, samples: np.ndarray | None = None, sidecar: bool = True) -> Path:
    """A session of those frames, with or without its sidecar."""
    spec = MediaSpec(512, 512, FPS)
    session = SessionFile(folder / "s", spec, avatar_id="presenter", avatar_version=avatar().version, sync="never")
    session.start_utterance("Mapa beta.")
    speech = Speech(sound() if samples is None else samples, RATE, "Mapa beta.", True, tuple(phonemes()))
    weights = np.ones(len(frames), np.float32)
    session.add_to_sidecar(
        utterance_record(0, "Mapa beta.", {"TTS": "test"}),
        speech_record(0, speech),
        frames_record(0, shown()[: len(frames)], avatar(), weights),
    )
    for fragment in UtteranceEncoder(spec).push(frames, speech.samples, last=True):
        session.append(fragment)
    session.close()
    if not sidecar:
        sidecar_path(session.path).unlink()
    return session.path


STORE = AvatarStore(Path("/nowhere"), EMBEDDED)


@pytest.fixture(scope="module")
def good_video(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("good"), talking())


@pytest.fixture(scope="module")
def analysis(good_video) -> VideoAnalysis:
    return analyse_video(good_video, STORE)


@pytest.fixture(scope="module")
def good(analysis) -> dict[str, Gate]:
    return {gate.name: gate for gate in evaluate(analysis)}


@pytest.fixture(scope="module")
def faulty_video(tmp_path_factory) -> Path:
    """Frozen for ten frames, with sound 80 ms late."""
    frames = talking().copy()
    frames[20:30] = frames[20]
    return write(tmp_path_factory.mktemp("faulty"), frames, sound(0.08))


def with_crops(analysis: VideoAnalysis, crops: UInt8) -> VideoAnalysis:
    return replace(analysis, made=replace(analysis.made, crops=crops))


def first_frames(analysis: VideoAnalysis, n: int) -> VideoAnalysis:
    """The analysis of the first n frames."""

    def cut(faces: FaceSequence) -> FaceSequence:
        return FaceSequence(faces.crops[:n], LipMeasures(faces.mouth.gap[:n], faces.mouth.width[:n]))

    media = analysis.media
    samples = media.samples[: n * SOUND_HZ // FPS]
    return replace(
        analysis,
        media=replace(media, times=media.times[:n], lasting=media.lasting[:n], samples=samples),
        made=cut(analysis.made),
        source=cut(analysis.source),
        face=analysis.face[:n],
        change=analysis.change[: n - 1],
        own_change=analysis.own_change[: n - 1],
        planned=analysis.planned[:n],
    )


def repasted(
    analysis: VideoAnalysis, change: Callable[[int, UInt8], npt.NDArray], frames: range = range(FRAMES)
) -> VideoAnalysis:
    """The video with its pasted region replaced by `change(k, crop)`, weighted by the mask."""
    crops, share = analysis.made.crops.copy(), analysis.mask[..., None] / 255
    for k in frames:
        other = np.clip(change(k, crops[k]), 0, 255)
        crops[k] = np.rint(share * other + (1 - share) * crops[k]).astype(np.uint8)
    return with_crops(analysis, crops)


def test_a_good_video_passes_every_gate(good):
    assert [gate.name for gate in good.values() if gate.broken] == []
    assert [gate.name for gate in good.values() if gate.value is None] == ["syncnet"]
    assert good["jitter"].value == pytest.approx(1, abs=0.25)  # the video is its source
    assert good["silence"].value == pytest.approx(1, abs=0.05)
    assert abs(good["seam"].value) < 0.2 and good["lips"].value > 0.8 and good["closures"].value == 1


def test_a_jitter_of_half_a_pixel_is_measured_as_half_a_pixel(analysis, good):
    noise = np.random.default_rng(0).normal(size=(FRAMES, 2)) * 0.5 / np.sqrt(2) / analysis.px
    added = np.sqrt((noise**2).sum(1).mean()) * analysis.px

    def moved(k: int, crop: UInt8) -> npt.NDArray:
        shift = np.array([[1, 0, noise[k, 0]], [0, 1, noise[k, 1]]])
        return cv2.warpAffine(crop, shift, (256, 256), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    jitter = paste_jitter(Signals(repasted(analysis, moved)))
    assert jitter.broken and jitter.numbers["rms_px"] == pytest.approx(added, rel=0.2)
    assert jitter.numbers["source_rms_px"] == good["jitter"].numbers["source_rms_px"]


def test_a_cut_in_the_source_is_not_jitter(analysis, good):
    """Both change to another picture at frame 40."""
    crops = analysis.made.crops, analysis.source.crops
    made, source = (np.concatenate([part[:40], 255 - part[40:]]) for part in crops)
    change = analysis.change.copy()
    change[39] = 60.0
    other = replace(with_crops(analysis, made), source=replace(analysis.source, crops=source), change=change)
    jitter = paste_jitter(Signals(other))
    assert not jitter.broken
    assert jitter.numbers["rms_px"] == pytest.approx(good["jitter"].numbers["rms_px"], rel=0.1)
    assert len(jitter.curve.at) == len(good["jitter"].curve.at) - 2


def test_a_brighter_paste_breaks_the_seam_gate_at_the_right_frames(analysis):
    found = seam(Signals(repasted(analysis, lambda k, crop: crop.astype(int) + 90, range(20, 70))))
    assert found.broken and 20 <= found.worst < 70


def test_a_blurred_paste_breaks_the_sharpness_gate(analysis):
    assert sharpness(Signals(repasted(analysis, lambda k, crop: cv2.GaussianBlur(crop, (0, 0), 3)))).broken


def test_a_flickering_seam_breaks_its_gate(analysis):
    flicker = seam_flicker(Signals(repasted(analysis, lambda k, crop: crop.astype(int) + 6 * (k % 2))))
    assert flicker.broken and flicker.value > 1.5


def test_a_mouth_that_moves_in_silence_breaks_the_silence_gate_there(analysis):
    flapping = repasted(analysis, lambda k, crop: np.roll(crop, 6 * (k % 2), axis=0), range(64, 74))
    found = silence(Signals(flapping))
    assert found.broken and 63 <= found.worst <= 74


def test_lips_that_do_not_follow_the_speech_break_the_lips_gate(analysis):
    made = replace(analysis.made, mouth=LipMeasures(np.roll(analysis.made.mouth.gap, 21), analysis.made.mouth.width))
    assert lips(Signals(replace(analysis, made=made))).broken


def test_lips_that_never_close_break_the_closures_gate(analysis):
    gap = analysis.made.mouth.gap.copy()
    gap[9:55] = np.maximum(gap[9:55], 0.3 * gap.max())
    found = closures(Signals(replace(analysis, made=replace(analysis.made, mouth=LipMeasures(gap, gap)))))
    assert found.value == 0 and found.broken and found.worst in found.marks


def test_lips_three_frames_late_give_an_offset_of_minus_three_frames(analysis, good):
    made = replace(analysis.made, mouth=LipMeasures(np.roll(analysis.made.mouth.gap, 3), analysis.made.mouth.width))
    found = offset(Signals(replace(analysis, made=made)))
    assert found.broken
    assert found.numbers["frames"] - good["av_offset"].numbers["frames"] == pytest.approx(-3, abs=0.3)


def test_late_sound_and_a_frozen_picture_are_measured(faulty_run, good):
    found = json.loads(faulty_run[0].stdout.splitlines()[-1])["gates"]
    assert found["av_offset"]["verdict"] == "broken"
    late = found["av_offset"]["numbers"]["frames"] - good["av_offset"].numbers["frames"]
    assert late == pytest.approx(2, abs=0.6)  # the freeze adds a little
    frozen, repeated = found["frozen"], found["repeated"]
    # Frames 21 to 29 repeat frame 20. Frame 24 is a key frame, which x264 encodes again, so it can differ from 23.
    assert frozen["verdict"] == "broken" and frozen["worst_frame"] in range(20, 25)
    assert 5 <= frozen["numbers"]["frames"] <= 9
    assert repeated["verdict"] == "broken" and repeated["numbers"]["frames"] == pytest.approx(8, abs=2)


def test_the_keyframe_distance_is_for_information(analysis, good):
    assert 0 < good["seeking"].value <= 0.48  # a session's fragments have 12 frames
    assert good["seeking"].verdict == "info"
    sparse = replace(analysis, media=replace(analysis.media, keys=(0, 4, 30)))
    found = seeking(Signals(sparse))
    behind = analysis.frames - 30
    assert found.numbers == {"key_frames": 3.0, "frames": float(max(26, behind))}
    assert found.value == pytest.approx(max(26, behind) / 25) and found.worst == (4 if behind < 26 else 30)


def test_syncnet_runs_if_its_weights_exist(analysis, tmp_path):
    """Random weights with LatentSync's names and narrow layers, saved as its training saves them."""
    torch.manual_seed(0)
    state = StableSyncNet(NARROW_VISUAL, NARROW_AUDIO).state_dict()
    torch.save({"state_dict": state, "global_step": 2}, tmp_path / "syncnet.pt")
    short = first_frames(analysis, 40)
    gate = syncnet(Signals(short), tmp_path / "syncnet.pt")
    score = SyncNet.load(tmp_path / "syncnet.pt").offset_and_confidence(short.made.crops, short.samples, FPS)
    assert (
        gate.verdict == "info"
        and gate.value == pytest.approx(score.confidence)
        and gate.numbers["windows"] == score.windows
    )
    (tmp_path / "broken.pt").write_bytes(b"half a download")
    gate = syncnet(Signals(short), tmp_path / "broken.pt")
    assert gate.value is None and "broken.pt" in gate.why


def test_without_sound_only_the_gates_on_speech_are_skipped(analysis):
    mute = Signals(replace(analysis, media=replace(analysis.media, samples=np.zeros(0, np.float32))))
    assert lips(mute).value is None and offset(mute).value is None and syncnet(mute, Path(__file__)).value is None
    assert paste_jitter(mute).value is not None and silence(mute).value is not None


def test_without_a_sidecar_the_source_is_unknown_or_named(tmp_path):
    """A named avatar's frames are recognised, so that the result is that of the sidecar."""
    frames = 30
    path = write(tmp_path, talking()[:frames], sound()[: frames * RATE // FPS])
    known = Signals(analyse_video(path, STORE))
    sidecar_path(path).unlink()
    named = Signals(analyse_video(path, STORE, "presenter"))
    assert paste_jitter(named).numbers == pytest.approx(paste_jitter(known).numbers)
    assert seam(named).value == pytest.approx(seam(known).value)
    alone = Signals(analyse_video(path, STORE))
    jitter, follow = paste_jitter(alone), lips(alone)
    assert seam(alone).value is None and "--avatar-id" in seam(alone).why
    assert closures(alone).value is None and jitter.unit == "px" and not jitter.broken
    assert follow.value > 0.2 and "loudness" in follow.about


def test_avatar_frames_are_recognised_without_a_sidecar():
    indices = [10, 11, 12, 13, 13, 12, 90, 91, 92]
    found = recognised((avatar().frames[k] for k in indices), avatar(), FPS)
    assert found.indices.tolist() == pytest.approx(indices, abs=1)


def test_the_sidecar_of_another_video_is_ignored(tmp_path):
    path = write(tmp_path, talking()[:30])
    sidecar = sidecar_path(path)
    sidecar.write_text(sidecar.read_text().replace('"width":512', '"width":256'))
    analysis = analyse_video(path, STORE)
    assert analysis.sidecar is None and "belongs to another video" in analysis.warnings[0]


def test_a_sidecar_with_frames_that_the_avatar_lacks_is_refused(tmp_path):
    path = write(tmp_path, talking()[:30])
    sidecar = sidecar_path(path)
    sidecar.write_text(re.sub(r'"avatar_frames":\[\d+', '"avatar_frames":[900', sidecar.read_text(), count=1))
    with pytest.raises(CorruptError, match="names frame 900 of 'presenter', which has 150"):
        analyse_video(path, STORE)


def test_only_the_first_seconds_are_analysed_with_a_warning(good_video):
    analysis = analyse_video(good_video, STORE, seconds=1.0)
    assert analysis.frames == 25 and "first 1 of 3 s" in analysis.warnings[0]


def test_the_page_is_self_contained_and_shows_every_gate_and_the_reference(analysis, good):
    report = Report(analysis, list(good.values()))
    html = render_page(report, report)
    assert "All 10 gates pass" in html and html.count("<section") == len(good) + 1
    assert "<th>full_session.mp4</th>" in html  # the column of the reference
    assert html.count("<svg") >= 8 and html.count("data:image/jpeg;base64,") >= 8
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org/", "")
    assert "<script" not in html and "<link" not in html


def test_json_is_one_line_with_every_gate_and_the_reference(analysis, good):
    whole = Report(analysis, list(good.values()))
    line = to_json(whole, whole)
    found = json.loads(line)
    assert "\n" not in line and found["passed"] is True and found["avatar_id"] == "presenter"
    assert found["gates"]["jitter"]["high"] >= 1.05 and found["gates"]["jitter"]["verdict"] == "pass"
    assert found["reference"]["gates"] == found["gates"]


# --- the command


def run(*arguments: str):
    return CliRunner().invoke(cli.app, ["quality", *arguments])


@pytest.fixture(scope="module")
def faulty_run(tmp_path_factory, faulty_video):
    """The command on the faulty video: (result, page)."""
    folder = tmp_path_factory.mktemp("command")
    page = folder / "deep" / "r.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARMTALK_HOME", str(folder))
        return run(str(faulty_video), "-o", str(page), "--json"), page


def test_the_command_writes_a_page_and_prints_json_last(faulty_run):
    result, page = faulty_run
    found = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == 1 and found["gates"]["frozen"]["verdict"] == "broken"
    assert page.read_text().startswith("<!doctype html>")
    assert [path.name for path in page.parent.iterdir()] == ["r.html"]


def test_the_reference_is_analysed_like_the_video(monkeypatch, analysis, good):
    seen = []
    monkeypatch.setattr(command, "analyse_video", lambda *arguments: seen.append(arguments) or analysis)
    monkeypatch.setattr(command, "evaluate", lambda *arguments: list(good.values()))
    request = command.QualityRequest(Path("a.mp4"), "presenter", Path("b.mp4"), 2.0)
    report, reference = command.reports(request, STORE)
    assert seen == [(Path(name), STORE, "presenter", 2.0, None) for name in ("a.mp4", "b.mp4")]
    assert report.gates == reference.gates == list(good.values())


def test_the_command_exits_with_0_if_every_gate_passes(tmp_path, monkeypatch, good_video, analysis, good):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(command, "reports", lambda *arguments: (Report(analysis, list(good.values())), None))
    result = run(str(good_video), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout.splitlines()[-1])["passed"] is True


def test_invalid_input_is_explained_with_exit_status_2(tmp_path, monkeypatch, good_video):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(b"no video" * 100)
    for arguments, word in (
        (["none.mp4"], "not found"),
        ([str(tmp_path / "empty.mp4")], "empty"),
        ([str(tmp_path / "noise.mp4")], "cannot be read"),
        ([str(good_video), "--avatar-id", "nobody"], "nobody"),
        ([str(good_video), "-o", str(tmp_path)], "folder"),
        ([str(good_video), "-o", str(tmp_path / "r.pdf")], ".html"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and word in done.output, done.output
        assert "Traceback" not in done.output


def test_a_video_without_a_face_is_refused(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (16, 512, 512, 3), dtype=np.uint8)
    with pytest.raises(NoFaceError):
        analyse_video(write(tmp_path, frames, sidecar=False), STORE)
