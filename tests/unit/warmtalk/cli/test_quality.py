"""`warmtalk quality` on videos that are made so that the answer is known: a good one, and one fault at a time.

The videos are the embedded presenter's own frames, with a mouth that opens and shuts as its phonemes ask: the source
itself is the best that a video can be.
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
from models.quality.lips import Mouth
from models.quality.syncnet import SyncNet
from models.quality.syncnet_net import StableSyncNet
from models.speech.visemes import opening_of, shaped, track_of
from models.stitch.session import SessionFile
from models.stitch.sidecar import frames_record, sidecar_path, speech_record, utterance_record
from models.types import Phoneme, PreparedAvatar, Speech, UInt8
from tests.support.paths import ROOT
from tests.unit.models.quality.test_syncnet import NARROW_AUDIO, NARROW_VISUAL
from warmtalk.cli import app as cli
from warmtalk.cli.quality.command import to_json
from warmtalk.cli.quality.gates import Gate
from warmtalk.cli.quality.judge import judge
from warmtalk.cli.quality.page import Judged, page
from warmtalk.cli.quality.reading import Reading, read_video
from warmtalk.cli.quality.source import recognised

EMBEDDED = ROOT / "models" / "embedded" / "avatars"
RATE, FPS, FRAMES, FIRST = 24_000, 25, 75, 20
SYLLABLES = (("m", 0.08), ("ɑ", 0.16), ("p", 0.08), ("ɑ", 0.14), ("b", 0.08), ("i", 0.1), ("t", 0.06), ("ɑ", 0.16))


@cache
def avatar() -> PreparedAvatar:
    return AvatarStore(EMBEDDED).load("presenter", latents=False)


def phonemes() -> list[Phoneme]:
    """Half a second of silence, 1.6 s of syllables, silence to the end at 3 s."""
    made, at = [Phoneme("_", 0, 0.4)], 0.4
    for symbol, lasts in SYLLABLES * 2:
        made.append(Phoneme(symbol, at, at + lasts))
        at += lasts
    return [*made, Phoneme("_", at, FRAMES / FPS)]


def sound(delay_s: float = 0.0) -> np.ndarray:
    """Noise while a phoneme sounds: vowels loud, stops nearly silent."""
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
    """The presenter's frames, the lower lip pulled down in the mouth's middle as far as the phonemes ask."""
    opening = opening_of(track_of(shaped(phonemes()), FRAMES, FPS).mouth)
    return np.stack(
        [_opened(avatar().frames[int(k)], int(k), 110 * gap) for k, gap in zip(shown(), opening, strict=True)]
    )


def _opened(frame: UInt8, index: int, gap_px: float) -> UInt8:
    """The lower lip and all below it moved down by `gap_px`, darkness between the lips."""
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
    """A session of those frames, with its sidecar or without."""
    spec = MediaSpec(512, 512, FPS)
    session = SessionFile(folder / "s", spec, avatar_id="presenter", avatar_version=avatar().version, sync="never")
    session.start_utterance("Mapa beta.")
    speech = Speech(sound() if samples is None else samples, RATE, "Mapa beta.", True, tuple(phonemes()))
    weights = np.ones(len(frames), np.float32)
    session.note(
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


def judged(reading: Reading) -> dict[str, Gate]:
    return {gate.name: gate for gate in judge(reading)}


@pytest.fixture(scope="module")
def good_video(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("good"), talking())


@pytest.fixture(scope="module")
def reading(good_video) -> Reading:
    return read_video(good_video, STORE)


@pytest.fixture(scope="module")
def good(reading) -> dict[str, Gate]:
    return judged(reading)


@pytest.fixture(scope="module")
def faulty_video(tmp_path_factory) -> Path:
    """It stands still for ten frames in the middle, and its sound is 80 ms late."""
    frames = talking().copy()
    frames[20:30] = frames[20]
    return write(tmp_path_factory.mktemp("faulty"), frames, sound(0.08))


def with_crops(reading: Reading, crops: UInt8) -> Reading:
    return replace(reading, made=replace(reading.made, crops=crops))


def repasted(reading: Reading, change: Callable[[int, UInt8], npt.NDArray], frames: range = range(FRAMES)) -> Reading:
    """The video with its pasted part changed: `change(k, crop)` where the mask lies."""
    crops, share = reading.made.crops.copy(), reading.mask[..., None] / 255
    for k in frames:
        other = np.clip(change(k, crops[k]), 0, 255)
        crops[k] = np.rint(share * other + (1 - share) * crops[k]).astype(np.uint8)
    return with_crops(reading, crops)


def test_a_good_video_breaks_no_gate_and_leaves_none_unmeasured_but_syncnet(good):
    assert [gate.name for gate in good.values() if gate.broken] == []
    assert [gate.name for gate in good.values() if gate.value is None] == ["syncnet"]
    assert good["jitter"].value == pytest.approx(1, abs=0.25)  # the paste is the source itself
    assert good["silence"].value == pytest.approx(1, abs=0.05)
    assert abs(good["seam"].value) < 0.2 and good["lips"].value > 0.8 and good["closures"].value == 1


def test_a_paste_that_trembles_by_half_a_pixel_reads_half_a_pixel(reading, good):
    noise = np.random.default_rng(0).normal(size=(FRAMES, 2)) * 0.5 / np.sqrt(2) / reading.px
    added = np.sqrt((noise**2).sum(1).mean()) * reading.px

    def moved(k: int, crop: UInt8) -> npt.NDArray:
        shift = np.array([[1, 0, noise[k, 0]], [0, 1, noise[k, 1]]])
        return cv2.warpAffine(crop, shift, (256, 256), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    jitter = judged(repasted(reading, moved))["jitter"]
    assert jitter.broken and jitter.numbers["rms_px"] == pytest.approx(added, rel=0.2)
    assert jitter.numbers["source_rms_px"] == good["jitter"].numbers["source_rms_px"]


def test_a_cut_in_the_source_is_no_jitter(reading, good):
    """Both jump to another picture at frame 40, all of it."""
    made, source = (np.concatenate([part[:40], 255 - part[40:]]) for part in (reading.made.crops, reading.source.crops))
    change = reading.change.copy()
    change[39] = 60.0
    other = replace(with_crops(reading, made), source=replace(reading.source, crops=source), change=change)
    jitter = judged(other)["jitter"]
    assert not jitter.broken
    assert jitter.numbers["rms_px"] == pytest.approx(good["jitter"].numbers["rms_px"], rel=0.1)
    assert len(jitter.curve.at) == len(good["jitter"].curve.at) - 2


def test_a_paste_of_another_brightness_shows_its_seam_and_where(reading):
    seam = judged(repasted(reading, lambda k, crop: crop.astype(int) + 90, range(20, 70)))["seam"]
    assert seam.broken and 20 <= seam.worst < 70


def test_a_blurred_paste_in_a_sharp_face_is_told(reading):
    assert judged(repasted(reading, lambda k, crop: cv2.GaussianBlur(crop, (0, 0), 3)))["sharpness"].broken


def test_a_seam_that_flickers_is_told(reading):
    flicker = judged(repasted(reading, lambda k, crop: crop.astype(int) + 6 * (k % 2)))["seam_flicker"]
    assert flicker.broken and flicker.value > 1.5


def test_a_mouth_that_flaps_in_silence_is_told_and_where(reading):
    flapping = repasted(reading, lambda k, crop: np.roll(crop, 6 * (k % 2), axis=0), range(64, 74))
    silence = judged(flapping)["silence"]
    assert silence.broken and 63 <= silence.worst <= 74


def test_lips_that_say_something_else_are_told(reading):
    made = replace(reading.made, mouth=Mouth(np.roll(reading.made.mouth.gap, 21), reading.made.mouth.width))
    assert judged(replace(reading, made=made))["lips"].broken


def test_lips_that_never_close_are_told_and_where(reading):
    gap = reading.made.mouth.gap.copy()
    gap[9:55] = np.maximum(gap[9:55], 0.3 * gap.max())
    found = judged(replace(reading, made=replace(reading.made, mouth=Mouth(gap, gap))))["closures"]
    assert found.value == 0 and found.broken and found.worst in found.marks


def test_lips_that_are_three_frames_late_make_the_sound_early(reading, good):
    made = replace(reading.made, mouth=Mouth(np.roll(reading.made.mouth.gap, 3), reading.made.mouth.width))
    offset = judged(replace(reading, made=made))["av_offset"]
    assert offset.broken
    assert offset.numbers["frames"] - good["av_offset"].numbers["frames"] == pytest.approx(-3, abs=0.3)


def test_sound_that_is_80_ms_late_and_a_picture_that_freezes_are_told(faulty_video, good):
    found = judged(read_video(faulty_video, STORE))
    assert found["av_offset"].broken
    late = found["av_offset"].numbers["frames"] - good["av_offset"].numbers["frames"]
    assert late == pytest.approx(2, abs=0.6)  # the freeze costs a little
    assert found["frozen"].broken and found["frozen"].worst == pytest.approx(21, abs=2)  # x264 refines the first ones
    assert found["frozen"].numbers["frames"] == pytest.approx(8, abs=2)
    assert found["repeated"].broken and found["repeated"].numbers["frames"] == pytest.approx(8, abs=2)


def test_the_longest_way_between_key_frames_is_told_without_a_bar(reading, good):
    assert (
        0 < good["seeking"].value <= 0.48 and good["seeking"].verdict == "told"
    )  # a session's fragments are 12 frames
    sparse = replace(reading, media=replace(reading.media, keys=(0, 4, 30)))
    found = judged(sparse)["seeking"]
    behind = reading.frames - 30
    assert found.numbers == {"key_frames": 3.0, "frames": float(max(26, behind))}
    assert found.value == pytest.approx(max(26, behind) / 25) and found.worst == (4 if behind < 26 else 30)


def test_syncnet_is_asked_where_its_weights_are_there(reading, tmp_path):
    """Random weights under LatentSync's names, of narrow layers, saved as its training saves them."""
    torch.manual_seed(0)
    state = StableSyncNet(NARROW_VISUAL, NARROW_AUDIO).state_dict()
    torch.save({"state_dict": state, "global_step": 2}, tmp_path / "syncnet.pt")
    gate = {gate.name: gate for gate in judge(reading, tmp_path / "syncnet.pt")}["syncnet"]
    score = SyncNet.load(tmp_path / "syncnet.pt").offset_and_confidence(reading.made.crops, reading.samples, FPS)
    assert gate.verdict == "told" and gate.value == pytest.approx(score.confidence) and gate.numbers["windows"] > 5
    (tmp_path / "broken.pt").write_bytes(b"half a download")
    gate = {gate.name: gate for gate in judge(reading, tmp_path / "broken.pt")}["syncnet"]
    assert gate.value is None and "broken.pt" in gate.why


def test_a_video_without_sound_is_judged_by_its_picture(reading):
    found = judged(replace(reading, media=replace(reading.media, samples=np.zeros(0, np.float32))))
    assert [name for name in ("lips", "av_offset", "syncnet") if found[name].value is None] == [
        "lips", "av_offset", "syncnet",
    ]  # fmt: skip
    assert found["jitter"].value is not None and found["silence"].value is not None


def test_without_a_sidecar_it_is_judged_by_itself_or_against_a_named_avatar(tmp_path, good):
    path = write(tmp_path, talking(), sidecar=False)
    alone = judged(read_video(path, STORE))
    assert alone["seam"].value is None and "--avatar-id" in alone["seam"].why
    assert alone["closures"].value is None and alone["jitter"].unit == "px" and not alone["jitter"].broken
    assert alone["lips"].value > 0.2 and "loudness" in alone["lips"].about
    named = judged(read_video(path, STORE, "presenter"))
    assert named["jitter"].numbers["source_rms_px"] == pytest.approx(good["jitter"].numbers["source_rms_px"], rel=0.15)
    assert named["seam"].value == pytest.approx(good["seam"].value, abs=0.1)


def test_frames_are_recognised_without_a_sidecar():
    indices = [10, 11, 12, 13, 13, 12, 90, 91, 92]
    found = recognised((avatar().frames[k] for k in indices), avatar(), FPS)
    assert found.indices.tolist() == pytest.approx(indices, abs=1)


def test_the_sidecar_of_another_video_is_left_out(tmp_path):
    path = write(tmp_path, talking()[:30])
    beside = sidecar_path(path)
    beside.write_text(beside.read_text().replace('"width":512', '"width":256'))
    reading = read_video(path, STORE)
    assert reading.sidecar is None and "belongs to another video" in reading.warnings[0]


def test_a_sidecar_that_names_frames_which_the_avatar_does_not_have_is_refused_in_words(tmp_path):
    path = write(tmp_path, talking()[:30])
    beside = sidecar_path(path)
    beside.write_text(re.sub(r'"avatar_frames":\[\d+', '"avatar_frames":[900', beside.read_text(), count=1))
    with pytest.raises(CorruptError, match="names frame 900 of 'presenter', which has 150"):
        read_video(path, STORE)


def test_a_long_video_is_judged_as_far_as_asked_and_says_so(good_video):
    reading = read_video(good_video, STORE, seconds=1.0)
    assert reading.frames == 25 and "first 1 of 3 s" in reading.warnings[0]


def test_the_page_stands_alone_and_shows_the_verdict_and_every_gate(reading, good):
    html = page(Judged(reading, list(good.values())))
    assert "All 10 gates hold" in html and html.count("<section") == len(good) + 1
    assert html.count("<svg") >= 8 and html.count("data:image/jpeg;base64,") >= 8
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org/", "")
    assert "<script" not in html and "<link" not in html


def test_json_is_one_line_with_every_gate_and_the_reference_beside(reading, good):
    whole = Judged(reading, list(good.values()))
    line = to_json(whole, whole)
    told = json.loads(line)
    assert "\n" not in line and told["passed"] is True and told["avatar_id"] == "presenter"
    assert told["gates"]["jitter"]["high"] >= 1.05 and told["gates"]["jitter"]["verdict"] == "pass"
    assert told["reference"]["gates"] == told["gates"]


def test_the_page_shows_a_references_numbers_beside(reading, good):
    html = page(
        Judged(reading, list(good.values())), Judged(reading, list(judged(repasted(reading, brighter)).values()))
    )
    assert "<th>full_session.mp4</th>" in html


def brighter(k: int, crop: UInt8) -> npt.NDArray:
    return crop.astype(int) + 30


# --- the command


def run(*arguments: str):
    return CliRunner().invoke(cli.app, ["quality", *arguments])


def test_the_command_writes_a_page_prints_json_last_and_exits_1_when_a_gate_breaks(
    tmp_path, monkeypatch, good_video, faulty_video
):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    done = run(str(good_video), "-o", str(tmp_path / "deep" / "r.html"), "--json", "--seconds", "2")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["passed"] is True
    assert (tmp_path / "deep" / "r.html").read_text().startswith("<!doctype html>")
    done = run(str(faulty_video), "--reference", str(good_video), "--json", "--seconds", "2")
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 1 and told["gates"]["frozen"]["verdict"] == "broken"
    assert told["reference"]["gates"]["frozen"]["verdict"] == "pass"


def test_bad_input_is_refused_in_words_with_exit_2(tmp_path, monkeypatch, good_video):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(b"no video" * 100)
    for arguments, word in (
        (["none.mp4"], "not found"),
        ([str(tmp_path / "empty.mp4")], "empty"),
        ([str(tmp_path / "noise.mp4")], "cannot be read"),
        ([str(good_video), "--avatar-id", "nobody"], "nobody"),
        ([str(good_video), "-o", str(tmp_path)], "folder"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and word in done.output, done.output
        assert "Traceback" not in done.output


def test_a_video_without_a_face_is_refused(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (20, 512, 512, 3), dtype=np.uint8)
    with pytest.raises(NoFaceError):
        read_video(write(tmp_path, frames, sidecar=False), STORE)
