"""Measures how steadily crops follow a head of known motion, and the error of a paste.

    python -m benchmarks.steadiness

Prints a table per face size: landmarks alone, landmarks with tracked motion, each smoothing method, and 1 px of noise
on all landmarks. Lengths are in frame px per coordinate, rms, against the truth. Writes steadiness.json to `--out`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import argument_parser, rms
from benchmarks.known_motion import KnownMotion, following, known_motion, level_rms, misplacement
from models.avatar.detect import BlazeMesh
from models.avatar.parse import masks_of
from models.avatar.survey import FaceTracker, Survey
from models.avatar.track import CropTrack, TrackOptions, crop_transforms, landmarks_in_crop
from models.geometry import warp
from models.media.frames import VideoFrames
from models.stitch.paste import paste, warp_alpha
from models.types import UInt8

FACES_PX = (160, 256)
FRAMES, FPS = 100, 25
CODED_CRF = 18.0  # x264's, for the encoded clip
METHODS: dict[str, dict[str, Any]] = {
    "landmarks alone, unsmoothed": {"affine_tracking_enabled": False, "smoothing": "none"},
    "landmarks alone, zero_phase": {"affine_tracking_enabled": False},
    "tracked, none": {"smoothing": "none"},
    "tracked, zero_phase": {},
    "tracked, kalman": {"smoothing": "kalman"},
    "tracked, one_euro": {"smoothing": "one_euro"},
    "tracked, whole pixels": {"subpixel_enabled": False},
}


def surveyed(frames: list[UInt8]) -> Survey:
    """The survey (first pass of preparation) of frames."""
    follower = FaceTracker(BlazeMesh())
    for frame in frames:
        follower.take(frame)
    return follower.survey(copied=False)


def measure(clip: KnownMotion, frames: list[UInt8]) -> dict[str, dict[str, float]]:
    """The error of each method against the known motion."""
    seen = surveyed(frames)
    noise = np.random.default_rng(0).normal(size=(len(clip), 68, 2))
    found: dict[str, dict[str, float]] = {}
    for name, options in METHODS.items():
        found[name] = asdict(following(clip, _track(seen, seen.landmarks, **options).transforms))
    for name in ("landmarks alone, zero_phase", "tracked, zero_phase"):
        track = _track(seen, clip.true_landmarks() + noise, **METHODS[name])
        found[f"1 px noise: {name}"] = asdict(following(clip, track.transforms))
    return found


def pasted(clip: KnownMotion, frames: list[UInt8]) -> dict[str, float]:
    """The error of pasting back an unchanged crop, in px and grey levels rms, where the mask is at least half."""
    seen = surveyed(frames)
    track = _track(seen, seen.landmarks)
    masks, index = masks_of(landmarks_in_crop(track), FPS, scenes=track.scenes)
    shifts, levels = [], []
    for k in range(0, len(clip), 7):
        frame, transform, mask = frames[k], track.transforms[k], masks[index[k]]
        back = paste(frame, warp(frame, transform), transform, mask)
        alpha, core = warp_alpha(transform, mask, frame.shape[:2]), np.zeros(frame.shape[:2], bool)
        core[alpha.region] = alpha.weights >= 128
        shifts.append(misplacement(frame, back, core))
        levels.append(level_rms(frame, back, core))
    return {
        "off_px": float(np.sqrt((np.array(shifts) ** 2).sum(1).mean())),
        "levels": rms(levels),
    }


def _track(seen: Survey, landmarks: Any, **options: Any) -> CropTrack:
    return crop_transforms(landmarks, seen.has_face, FPS, TrackOptions(**options), seen.motions, seen.cuts)


def _coded(clip: KnownMotion, folder: Path) -> list[UInt8]:
    folder.mkdir(parents=True, exist_ok=True)
    path = clip.write(folder / f"known_motion_{clip.face_px:g}.mp4", CODED_CRF)
    with path.open("rb") as file:
        video = VideoFrames(file)
        return [video[k].copy() for k in range(len(video))]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for steadiness.json and the clips")
    out = parser.parse_args().out
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    for face_px in FACES_PX:
        clip = known_motion(face_px, FRAMES, FPS, talking=True)
        drawn = list(clip.frames())
        for kind, frames in (("drawn", drawn), (f"H.264 crf {CODED_CRF:g}", _coded(clip, out))):
            name = f"{face_px} px face, {kind}"
            results[name] = measure(clip, frames)
            print(f"\n{name}\n{'':44}   place  jitter  roll °     lag")
            for method, found in results[name].items():
                numbers = (found["place_rms"], found["jitter_rms"], found["roll_rms_deg"], found["lag_frames"])
                print(f"{method:44} {numbers[0]:7.3f} {numbers[1]:7.4f} {numbers[2]:7.3f} {numbers[3]:+7.2f}")
        results[f"{face_px} px face, pasted"] = untouched = pasted(clip, drawn)
        print(f"unchanged crop pasted back: {untouched['off_px']:.3f} px off, {untouched['levels']:.2f} grey levels")
    (out / "steadiness.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
