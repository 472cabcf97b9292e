"""Measures the milliseconds per frame of pasting, encoding and appending, on one core.

    python -m benchmarks.stitch
    python -m benchmarks.stitch --presets    # x264's presets on the presenter's idle clip: time, size, SSIM

Pasting and encoding are measured in CPU time, so that other load does not matter; appending in wall time. The frames
are a photograph with a moving face; the session is written to a temporary folder. Each frame is also rendered by
converting the whole picture to RGB and back (`whole_ms`): `saved_ms` is what the canvas saves.
"""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
from skimage import data
from skimage.metrics import structural_similarity

from benchmarks.common import argument_parser
from models.geometry import apply, invert
from models.media.encode import MediaSpec, UtteranceEncoder, init_segment
from models.media.frames import planes
from models.media.yuv import AnyFrame, Picture, picture_of
from models.stitch.blends import BLENDS
from models.stitch.canvas import Canvas
from models.stitch.paste import PasteMemory, Paster
from models.stitch.session import SessionFile
from models.types import CROP_PX, Float32, PreparedAvatar, UInt8

AVATAR_FRAMES, CLIP_FRAMES = 50, 75
PRESENTER = Path(__file__).resolve().parents[1] / "models/embedded/presenter/presenter.mp4"
CHUNK = 8  # frames per push


def avatar(width: int, height: int, face_px: int) -> PreparedAvatar:
    """A face of `face_px` that sways across the middle of the frame."""
    transforms = np.zeros((AVATAR_FRAMES, 2, 3), np.float32)
    scale = CROP_PX / face_px
    for k in range(AVATAR_FRAMES):
        turn = cv2.getRotationMatrix2D((width / 2 + 5 * np.sin(k / 8), height / 2), 3 * np.sin(k / 9), scale)
        turn[:, 2] += (CROP_PX - 1) / 2 - np.array([width / 2, height / 2])
        transforms[k] = turn
    mask = np.zeros((CROP_PX, CROP_PX), np.uint8)
    cv2.ellipse(mask, (128, 140), (88, 96), 0, 0, 360, 255, -1)
    masks = np.repeat(cv2.GaussianBlur(mask, (31, 31), 0)[None], AVATAR_FRAMES, 0)
    landmarks = np.zeros((AVATAR_FRAMES, 68, 2), np.float32)
    angles = np.linspace(np.pi, 0, 17)  # a jaw line in the crop, ear to ear
    jaw = np.stack([128 + 90 * np.cos(angles), 150 + 90 * np.sin(angles)], 1)
    landmarks[:, :17] = np.stack([apply(invert(transform), jaw) for transform in transforms])
    has_face = np.ones(AVATAR_FRAMES, bool)
    return PreparedAvatar("bench", "0", 25, width, height, transforms, landmarks, masks, has_face)


class Still:
    """One picture for all frames, provided as a video file provides them."""

    def __init__(self, frame: UInt8) -> None:
        self._rgb, self._picture = frame, picture_of(frame)

    def __len__(self) -> int:
        return AVATAR_FRAMES

    def __getitem__(self, index: int) -> UInt8:
        return self._rgb

    def picture(self, index: int) -> Picture:
        return self._picture


def paste_ms(
    given: PreparedAvatar, face: UInt8, memory: PasteMemory | None = None, mode: str = "feather", whole: bool = False
) -> tuple[float, list[AnyFrame]]:
    """Median ms per frame, with warm caches, from the avatar's frame to the encoder's input; and the frames.

    memory: paste as the pipeline does. whole: convert the whole of each frame to RGB.
    """
    assert given.frames is not None
    paster, canvas, times, pasted = Paster(given, mode), Canvas(given), [], []
    drawn = Picture.empty(given.height, given.width)
    for lap in range(2):  # the first lap warms the cache of masks
        for k in range(AVATAR_FRAMES):
            moved = np.roll(face, k, axis=1)
            begun = time.process_time()
            if whole:
                made: AnyFrame = given.frames[k].copy()
                paster.paste_into(made, moved, k, memory=memory)  # type: ignore[arg-type]
            else:
                made = canvas.frame(paster, moved, k, memory=memory)
            drawn.copy_from(made)
            times += [time.process_time() - begun] if lap else []
            pasted += [made] if lap else []
    return 1e3 * statistics.median(times), pasted


def encode_ms(frames: list[AnyFrame], spec: MediaSpec, speech: Float32, folder: Path) -> tuple[float, float, float]:
    """Encode an utterance and append it: ms per frame of each, and the bit rate in kbit/s."""
    session, encoder = SessionFile(folder, spec), UtteranceEncoder(spec)
    encoding = appending = 0.0
    for k in range(0, len(frames), CHUNK):
        part, last = frames[k : k + CHUNK], k + CHUNK >= len(frames)
        begun = time.process_time()
        fragments = encoder.push(part, speech if k == 0 else speech[:0], last)
        encoding += time.process_time() - begun
        begun = time.perf_counter()
        for fragment in fragments:
            session.append(fragment)
        appending += time.perf_counter() - begun
    return 1e3 * encoding / len(frames), 1e3 * appending / len(frames), session.size * 8 / session.duration_s / 1e3


def compare_presets(names: tuple[str, ...] = ("medium", "faster", "veryfast", "superfast", "ultrafast")) -> None:
    """Print a row per preset, as fragments of a session are encoded: CPU time (best of three), bit rate, mean SSIM."""
    with av.open(str(PRESENTER)) as container:
        frames = [picture_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)][:CLIP_FRAMES]
    height, width = frames[0].shape
    for name in names:
        spec = MediaSpec(width, height, 25, preset=name)
        silence = np.zeros(len(frames) * spec.samples_at(spec.frame_ticks), np.float32)
        times = []
        for _ in range(3):
            encoder, begun = UtteranceEncoder(spec), time.process_time()
            fragments = encoder.push(frames, silence, True)
            times.append(time.process_time() - begun)
        data = b"".join([init_segment(spec), *(fragment.data for fragment in fragments)])
        with av.open(io.BytesIO(data)) as coded:
            shown = [planes(frame).luma for frame in coded.decode(video=0)]
        pairs = list(zip(frames, shown, strict=True))[::6]
        ssim = statistics.mean(structural_similarity(one.luma, other[:height, :width]) for one, other in pairs)
        rate = 8e-3 * len(data) / (len(frames) / 25)
        print(f"{name:10} {1e3 * min(times) / len(frames):5.2f} ms  {rate:5.0f} kbit/s  SSIM {ssim:.4f}")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--presets", action="store_true", help="compare x264's presets instead")
    cv2.setNumThreads(1)
    if parser.parse_args().presets:
        compare_presets()
        return
    rows: list[dict[str, float | str]] = []
    for width, height, face_px, side in (
        (512, 512, 256, 256),
        (512, 512, 256, 512),
        (1920, 1080, 400, 512),
        (3840, 2160, 800, 512),
    ):
        frame = cv2.resize(data.astronaut(), (width, height))
        face = cv2.resize(data.astronaut()[:256, 96:352], (side, side))
        given = dataclasses.replace(avatar(width, height, face_px), frames=Still(frame))
        paste, frames = paste_ms(given, face)
        plain, _ = paste_ms(given, face, whole=True)
        speech = 0.2 * np.random.default_rng(0).standard_normal(len(frames) * 960).clip(-4, 4).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            encode, append, rate = encode_ms(frames, MediaSpec(width, height, 25), speech, Path(folder) / "bench")
        rows.append({"frame": f"{width}×{height}", "crop_px": side, "paste_ms": paste, "whole_ms": plain})
        rows[-1] |= {"saved_ms": plain - paste, "encode_ms": encode}
        for mode in sorted(BLENDS):  # with colour, sharpness and jaw corrections, as the pipeline pastes
            rows[-1][f"fitted_{mode}_ms"] = paste_ms(given, face, PasteMemory(), mode)[0]
        rows[-1] |= {"append_ms": append, "kbit_s": rate}
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
