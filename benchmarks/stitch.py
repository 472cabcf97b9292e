"""Measures the milliseconds per frame of filtering, pasting, encoding and appending, on one core.

    python -m benchmarks.stitch
    python -m benchmarks.stitch --parts      # microseconds per frame of each part
    python -m benchmarks.stitch --presets    # x264's settings on frames of an utterance: time, size, quality

The presenter speaks: her own crops with a jaw that opens and closes, pasted as the pipeline does. All but appending is
CPU time, so that other load matters less; appending is wall time. `whole_ms` pastes into the whole frame as RGB and
converts it back. `frames_per_s` is what one core makes in all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import numpy as np
from skimage.metrics import structural_similarity

from benchmarks.common import argument_parser, rms
from models.avatar.detect import BlazeMesh
from models.avatar.store import AvatarStore
from models.geometry import warp
from models.media import encode, h264, mp4
from models.media.encode import MediaSpec, UtteranceEncoder
from models.media.frames import planes
from models.media.yuv import AnyFrame, Picture, picture_of, rgb_part
from models.stitch import paste, planar
from models.stitch.blends import BLENDS
from models.stitch.canvas import Canvas
from models.stitch.crop_filter import CropFilter, pasted_box
from models.stitch.jaw import JawLine, Motion
from models.stitch.paste import PasteMemory, Paster
from models.stitch.session import SessionFile
from models.stitch.tone import Tone
from models.tts.hibari import SAMPLE_RATE_HZ, HibariTTS
from models.types import Float32, PreparedAvatar, UInt8

AVATARS = Path(__file__).resolve().parents[1] / "models/embedded/avatars"
FRAMES = 48
TEXT = "Six sheep sit on seven ships, and the wind is fresh today."  # more than FRAMES of speech
JAW_PX, SYLLABLE_FRAMES = 10.0, 7.0  # how far the jaw opens, crop px, and how often
CHUNK = 8  # frames per push
SIZES = ((512, 512, 256), (512, 512, 512), (1280, 720, 256), (1280, 720, 512), (1920, 1080, 512))
TARGETS = {(512, 512, 256): 300, (1280, 720, 256): 120}  # frames per second and core
FACE = (slice(160, 400), slice(140, 372))  # of the presenter's frame
WITH_AQ = h264.X264_PARAMS.replace(":aq-mode=0", "")
SETTINGS = (  # preset, x264's parameters, crf
    ("veryfast", WITH_AQ, 20),
    ("veryfast", h264.X264_PARAMS, 20),
    ("superfast", WITH_AQ, 20),
    ("superfast", h264.X264_PARAMS, 20),
    ("superfast", h264.X264_PARAMS, 21),
    ("ultrafast", h264.X264_PARAMS, 20),
)


Part = tuple[str, Any, str]  # name in the table, module or class, function
PARTS: tuple[Part, ...] = (
    ("temporal filter of the crop", CropFilter, "__call__"),
    ("mask and jaw: measure the drop", JawLine, "drop"),
    ("mask and jaw: lower the mask", JawLine, "lower_mask"),
    ("mask and jaw: mask in the frame", paste, "warp_alpha"),
    ("chin and neck: motion", JawLine, "motion"),
    ("chin and neck: move the samples", Motion, "move"),
    ("colour: measure (each 4th frame)", Tone, "measure_color"),
    ("colour: match", Tone, "match_color"),
    ("sharpness: measure (each 4th frame)", Tone, "measure_detail"),
    ("sharpness: match", Tone, "match_sharpness"),
    ("face: luma on the frame's samples", planar, "warp_plane"),
    ("face: chroma on the frame's samples", planar, "_chroma_on"),
    ("face: to YUV, blend, rest of the paste", Canvas, "frame"),
    ("copy into the encoder's frame", Picture, "copy_from"),
    ("x264", h264.H264Encoder, "encode"),
    ("AAC", encode._AudioTrack, "_encode"),
    ("MP4 fragment", mp4, "fragment"),
    ("rest of the encoder", UtteranceEncoder, "push"),
    ("append to the session's file", SessionFile, "append"),
)


class Pictures:
    """Frames of an avatar in memory, as a video file provides them."""

    def __init__(self, pictures: list[Picture]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> UInt8:
        height, width = self._pictures[index].shape
        return rgb_part(self._pictures[index], (0, 0, width, height))

    def picture(self, index: int) -> Picture:
        return self._pictures[index]


def presenter(width: int, height: int) -> PreparedAvatar:
    """The presenter's first frames, enlarged to `height` and centred in `width`, whose sides repeat the border."""
    own = AvatarStore(AVATARS).load("presenter", latents=False)
    assert own.frames is not None
    factor, side = height / own.height, (width - height) // 2
    pictures = []
    for k in range(FRAMES):
        large = cv2.resize(own.frames[k], (height, height), interpolation=cv2.INTER_CUBIC)
        pictures.append(picture_of(cv2.copyMakeBorder(large, 0, 0, side, side, cv2.BORDER_REPLICATE)))
    back = np.array([[1 / factor, 0, (0.5 - side) / factor - 0.5], [0, 1 / factor, 0.5 / factor - 0.5], [0, 0, 1]])
    whole = np.concatenate([own.transforms, np.tile(np.array([[[0, 0, 1]]], np.float32), (len(own), 1, 1))], 1)
    landmarks = (own.landmarks + 0.5) * factor - 0.5 + np.array([side, 0], np.float32)
    parts = {"masks": own.masks, "has_face": own.has_face, "landmarks": landmarks.astype(np.float32)}
    parts["transforms"] = (whole @ back)[:, :2].astype(np.float32)
    cut: dict[str, Any] = {name: part[:FRAMES] for name, part in parts.items()}
    return dataclasses.replace(own, width=width, height=height, frames=Pictures(pictures), **cut)


def speaking(avatar: PreparedAvatar, side: int) -> list[UInt8]:
    """The avatar's own crops, `side` px, with a jaw that opens and closes."""
    line, faces = JawLine(avatar), []
    assert avatar.frames is not None
    for k in range(FRAMES):
        frame = np.array(avatar.frames[k])
        line.stretch_chin(frame, avatar.transforms[k], JAW_PX * abs(np.sin(k * np.pi / SYLLABLE_FRAMES)))
        crop = warp(frame, avatar.transforms[k])
        faces.append(crop if side == len(crop) else cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC))
    return faces


def paste_ms(
    avatar: PreparedAvatar, faces: Sequence[UInt8], mode: str = "feather", whole: bool = False
) -> tuple[float, float, list[Picture]]:
    """Median ms per frame of the filter and of the paste, up to the encoder's input, with warm caches; the frames."""
    assert avatar.frames is not None
    paster, canvas, times, pasted = Paster(avatar, mode), Canvas(avatar), [], []
    for lap in range(3):  # the first lap fills the caches
        memory, steady = PasteMemory(), CropFilter(pasted_box(avatar))
        for k, face in enumerate(faces):
            drawn, begun = Picture.empty(avatar.height, avatar.width), time.thread_time()
            crop = steady(face)
            filtered = time.thread_time()
            if whole:
                made: AnyFrame = np.array(avatar.frames[k])
                paster.paste_into(made, crop, k, memory=memory)  # type: ignore[arg-type]
            else:
                made = canvas.frame(paster, crop, k, memory=memory)
            drawn.copy_from(made)
            times += [(filtered - begun, time.thread_time() - filtered)] if lap else []
            pasted += [drawn] if lap == 1 else []
    filter_ms, ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return filter_ms, ms, pasted


def sound(frames: int, spec: MediaSpec) -> Float32:
    """Speech of the default voice for `frames` frames."""
    count = frames * spec.samples_at(spec.frame_ticks)
    samples = np.concatenate([speech.samples for speech in HibariTTS.load().speak(TEXT)])
    assert spec.sample_rate_hz == SAMPLE_RATE_HZ and len(samples) >= count, (spec.sample_rate_hz, len(samples))
    return samples[:count]


def encode_ms(frames: Sequence[Picture], spec: MediaSpec, folder: Path) -> tuple[float, float, float]:
    """Encode an utterance and append it: ms per frame of each, and the bit rate in kbit/s."""
    speech, encoding, appending = sound(len(frames), spec), [], []
    for lap in range(3):
        session, encoder = SessionFile(folder / str(lap), spec), UtteranceEncoder(spec)
        spent = [0.0, 0.0]
        for k in range(0, len(frames), CHUNK):
            part, last = frames[k : k + CHUNK], k + CHUNK >= len(frames)
            begun = time.thread_time()
            fragments = encoder.push(part, speech if k == 0 else speech[:0], last)
            spent[0] += time.thread_time() - begun
            begun = time.perf_counter()
            for fragment in fragments:
                session.append(fragment)
            spent[1] += time.perf_counter() - begun
        encoding.append(1e3 * spent[0] / len(frames))
        appending.append(1e3 * spent[1] / len(frames))
    return min(encoding), min(appending), session.size * 8 / session.duration_s / 1e3


class Timer:
    """Adds up the CPU time of functions, without that of timed functions which they call."""

    def __init__(self) -> None:
        self.spent_s: dict[str, float] = dict.fromkeys((name for name, _, _ in PARTS), 0.0)
        self._inner: list[float] = [0.0]

    def wrap(self, name: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begun = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - begun
                self.spent_s[name] += spent - self._inner.pop()
                self._inner[-1] += spent

        return timed


def parts_us(avatar: PreparedAvatar, faces: Sequence[UInt8], folder: Path) -> dict[str, float]:
    """Microseconds per frame of each of PARTS, the least of a few utterances."""
    spec, paster, canvas, laps = MediaSpec(avatar.width, avatar.height, 25), Paster(avatar), Canvas(avatar), []
    speech = sound(len(faces), spec)
    for lap in range(6):  # the first lap fills the caches
        memory, steady, timer = PasteMemory(), CropFilter(pasted_box(avatar)), Timer()
        session, encoder = SessionFile(folder / str(lap), spec), UtteranceEncoder(spec)
        with contextlib.ExitStack() as patches:
            for name, owner, function in PARTS:
                patches.enter_context(mock.patch.object(owner, function, timer.wrap(name, getattr(owner, function))))
            for first in range(0, len(faces), CHUNK):
                chunk = range(first, min(first + CHUNK, len(faces)))
                frames = (canvas.frame(paster, steady(faces[k]), k, memory=memory) for k in chunk)
                for fragment in encoder.push(frames, speech if not first else speech[:0], chunk.stop == len(faces)):
                    session.append(fragment)
        laps += [timer.spent_s] if lap else []
    return {name: 1e6 * min(lap[name] for lap in laps) / len(faces) for name in laps[0]}


def compare_parts() -> None:
    """Print microseconds per frame of each part, per size of the frame."""
    columns = []
    for width, height, side in TARGETS:
        avatar = presenter(width, height)
        with tempfile.TemporaryDirectory() as folder:
            columns.append(parts_us(avatar, speaking(avatar, side), Path(folder)))
    heads = [f"{width}×{height}" for width, height, _ in TARGETS]
    print(f"| CPU time per frame, µs | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.0f}' for column in columns)} |")
    totals = [sum(column.values()) for column in columns]
    print(f"| all | {' | '.join(f'{total:.0f} ({1e6 / total:.0f} frames/s)' for total in totals)} |")


def landmarks(frames: Sequence[Picture]) -> Float32:
    """FaceMesh's landmarks of frames, `(n, 68, 2)` px."""
    mesh, found = BlazeMesh(), []
    face = None
    for frame in frames:
        height, width = frame.shape
        face = mesh.detect(rgb_part(frame, (0, 0, width, height)), face)[0]
        found.append(face.landmarks)
    return np.stack(found)


def compare_settings() -> None:
    """Print a row per setting of x264. `flicker` and `jitter`: what coding adds to the change between two frames, of
    the face in grey levels rms, and of the landmarks in px rms."""
    avatar = presenter(512, 512)
    _, _, frames = paste_ms(avatar, speaking(avatar, 256))
    lumas, places = np.stack([frame.luma for frame in frames]).astype(np.float32), landmarks(frames)
    for preset, params, crf in SETTINGS:
        h264.X264_PARAMS = params
        spec = MediaSpec(512, 512, 25, preset=preset, crf=crf, first_fragment_frames=4, fragment_frames=8)
        times = []
        for _ in range(3):
            encoder, begun = h264.H264Encoder(spec), time.thread_time()
            samples = [
                sample for k, frame in enumerate(frames) for sample in encoder.encode(frame, k % 8 == 4 or not k)
            ]
            times.append(time.thread_time() - begun)
        fragments = UtteranceEncoder(spec).push(frames, np.zeros(0, np.float32), True)
        data = fragments[0].init + b"".join(fragment.data for fragment in fragments)
        with av.open(io.BytesIO(data)) as coded:
            shown = [copied(planes(frame)) for frame in coded.decode(video=0)]
        error = np.stack([picture.luma for picture in shown]).astype(np.float32) - lumas
        face = error[:, FACE[0], FACE[1]]
        pairs = list(zip(lumas.astype(np.uint8), shown, strict=True))[::6]
        ssim = statistics.mean(structural_similarity(one, other.luma) for one, other in pairs)
        print(
            f"{preset:9} {'no AQ' if 'aq-mode=0' in params else '   AQ'} crf {crf}  "
            f"{1e3 * min(times) / len(frames):5.2f} ms  {8 * sum(map(len, samples)) / len(frames) / 40:5.0f} kbit/s  "
            f"SSIM {ssim:.4f}  face {20 * np.log10(255 / rms(face)):.2f} dB  flicker {rms(np.diff(face, axis=0)):.3f}  "
            f"jitter {rms(np.diff(landmarks(shown) - places, axis=0)):.3f} px",
            flush=True,
        )


def copied(picture: Picture) -> Picture:
    out = Picture.empty(*picture.shape)
    out.copy_from(picture)
    return out


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--presets", action="store_true", help="compare x264's settings instead")
    parser.add_argument("--parts", action="store_true", help="measure the parts instead")
    cv2.setNumThreads(1)
    if parser.parse_args().parts:
        compare_parts()
        return
    if parser.parse_args().presets:
        compare_settings()
        return
    rows: list[dict[str, float | str]] = []
    for width, height, side in SIZES:
        avatar = presenter(width, height)
        faces = speaking(avatar, side)
        filtered, pasting, frames = paste_ms(avatar, faces)
        with tempfile.TemporaryDirectory() as folder:
            coding, append, rate = encode_ms(frames, MediaSpec(width, height, 25), Path(folder))
        rows.append({"frame": f"{width}×{height}", "crop_px": str(side), "filter_ms": filtered, "paste_ms": pasting})
        rows[-1] |= {"encode_ms": coding, "append_ms": append, "kbit_s": rate}
        rows[-1] |= {"frames_per_s": 1e3 / (filtered + pasting + coding + append)}
        if target := TARGETS.get((width, height, side)):
            rows[-1]["target"] = float(target)
        rows[-1]["whole_ms"] = paste_ms(avatar, faces, whole=True)[1]
        for mode in sorted(BLENDS.keys() - {"feather"}):
            rows[-1][f"{mode}_ms"] = paste_ms(avatar, faces, mode)[1]
        print(
            "  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()), flush=True
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
