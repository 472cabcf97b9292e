"""Measures mouths and pastes against their bars.

    python -m benchmarks.quality            # writes out/quality.html and out/quality.json

1. The embedded default speaks three sentences with pauses, with the product's own code; the measurements and gates of
   `warmtalk quality` judge the video. The same is done with a moving head that is prepared from a video.
2. On a clip with known motion: accuracy of pasting, jitter of transforms, and their lag.

Exit status 1 if a bar is missed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import Bar, argument_parser, bar_table, rms
from benchmarks.embedded import EMBEDDED
from benchmarks.known_motion import Following, KnownMotion, following, known_motion, level_rms, misplacement
from benchmarks.side_by_side import prepared
from benchmarks.speaker import Speaker, presenter
from models.avatar.flow import FaceFlow, Motion
from models.avatar.parse import masks_of
from models.avatar.store import AvatarStore
from models.avatar.track import TrackOptions, crop_transforms, landmarks_in_crop
from models.geometry import warp
from models.stitch.paste import paste, warp_alpha
from models.types import Float32
from warmtalk.cli.quality.analysis import analyse_video
from warmtalk.cli.quality.command import write_page
from warmtalk.cli.quality.evaluate import evaluate
from warmtalk.cli.quality.page import Report

TEXT = "Hello! I am a talking head, made by five small models. Please bring me a big map of Bombay, and some apples."
PAUSE_S = 0.8
MOVING_FACE_PX, MOVING_FRAMES = 200.0, 120
GATES = {
    "lips_r": "lips",
    "closed_at_pbm": "closures",
    "jitter_times_source": "jitter",
    "silence_times_source": "silence",
    "seam_delta_e": "seam",
    "seam_flicker_times_source": "seam_flicker",
    "sharpness_times_source": "sharpness",
    "av_offset_ms": "av_offset",
}
NOISE_PX = 1.0  # added to each landmark coordinate
FACES_PX = (160.0, 256.0)
PASTED_FRAMES = 12  # frames of a clip for which the paste is measured
BARS: tuple[Bar, ...] = (
    ("lips_r", 0.85, True),
    ("closed_at_pbm", 0.95, True),
    ("jitter_times_source", 1.05, False),
    ("silence_times_source", 1.1, False),
    ("seam_delta_e", 1.0, False),
    ("broken_gates", 0.0, False),
    ("moving_silence_times_source", 1.1, False),
    ("moving_seam_delta_e", 1.0, False),
    ("moving_broken_gates", 0.0, False),
    ("paste_error_px_160", 0.10, False),
    ("paste_error_px_256", 0.10, False),
    ("paste_levels_160", 0.5, False),
    ("paste_levels_256", 3.0, False),
    ("transform_error_px", 0.15, False),
    ("transform_jitter_px", 0.15, False),
    ("zero_phase_lag_frames", 0.05, False),
    ("zero_phase_lag_frames", -0.05, True),
)


def embedded(speaker: Speaker, page: Path) -> dict[str, float]:
    """The figures of the gates for the default avatar."""
    video = speaker.say(presenter(), "bench", TEXT, PAUSE_S)
    return gates_of(video, AvatarStore(EMBEDDED / "avatars"), page)


def moving(speaker: Speaker, folder: Path, page: Path) -> dict[str, float]:
    """The same for a prepared head that moves, rolls and zooms, with a cut."""
    avatar = prepared(known_motion(MOVING_FACE_PX, MOVING_FRAMES, cut=MOVING_FRAMES // 2), folder, speaker)
    numbers = gates_of(speaker.say(avatar, "moving", TEXT, PAUSE_S), AvatarStore(folder / "avatars"), page)
    return {f"moving_{name}": value for name, value in numbers.items()}


def gates_of(video: Path, store: AvatarStore, page: Path) -> dict[str, float]:
    """The values of the gates, and how many are broken. Writes the page."""
    analysis = analyse_video(video, store)
    report = Report(analysis, evaluate(analysis))
    write_page(report, None, page)
    values = {gate.name: gate.value for gate in report.gates}
    numbers = {name: values[gate] for name, gate in GATES.items()}
    assert all(value is not None for value in numbers.values()), numbers
    return {name: float(value or 0) for name, value in numbers.items()} | {"broken_gates": float(len(report.broken))}


def put_back(face_px: float) -> dict[str, float]:
    """Error of pasting back an unchanged crop, in px and grey levels, rms over frames."""
    clip = known_motion(face_px, 4 * PASTED_FRAMES, cut=None)
    track = crop_transforms(clip.true_landmarks(), np.ones(len(clip), bool), clip.fps)
    mask = masks_of(landmarks_in_crop(track), clip.fps)[0][0]
    away, levels = [], []
    for k in range(0, len(clip), 4):
        frame, transform = clip.frame(k), track.transforms[k]
        pasted = paste(frame, warp(frame, transform), transform, mask)
        alpha, weights = warp_alpha(transform, mask, frame.shape[:2]), np.zeros(frame.shape[:2], np.uint8)
        weights[alpha.region] = alpha.weights
        away.append(np.hypot(*misplacement(frame, pasted, weights)))
        levels.append(level_rms(frame, pasted, weights))
    suffix = f"{face_px:.0f}"
    return {f"paste_error_px_{suffix}": rms(away), f"paste_levels_{suffix}": rms(levels)}


def noisy(clip: KnownMotion) -> Float32:
    """The head's landmarks with white noise."""
    noise = np.random.default_rng(0).normal(scale=NOISE_PX, size=(len(clip), 68, 2))
    return (clip.true_landmarks() + noise).astype(np.float32)


def tracked(clip: KnownMotion, landmarks: Float32) -> list[Motion | None]:
    """The motion between frames, tracked from these landmarks as in preparation, not across a cut."""
    flow = FaceFlow()
    motions = [flow.step(clip.frame(k), landmarks[k]) for k in range(len(clip))]
    return [None if k in clip.cuts else motion for k, motion in enumerate(motions)]


def known() -> dict[str, float]:
    """The figures of the clip with known motion: the default of preparation, and other settings."""
    numbers = {name: value for face_px in FACES_PX for name, value in put_back(face_px).items()}
    clip = known_motion(160.0, 120)
    landmarks = noisy(clip)
    motions = tracked(clip, landmarks)

    def follow(smoothing: str, used: list[Motion | None]) -> Following:
        options, seen = TrackOptions(smoothing=smoothing), np.ones(len(clip), bool)
        return following(clip, crop_transforms(landmarks, seen, clip.fps, options, used, clip.cuts).transforms)

    default, alone, one_euro = follow("zero_phase", motions), follow("zero_phase", []), follow("one_euro", motions)
    return numbers | {
        "transform_error_px": default.place_rms,
        "transform_jitter_px": default.jitter_rms,
        "zero_phase_lag_frames": default.lag_frames,
        "landmarks_alone_error_px": alone.place_rms,
        "landmarks_alone_jitter_px": alone.jitter_rms,
        "one_euro_lag_frames": one_euro.lag_frames,
        "one_euro_jitter_px": one_euro.jitter_rms,
    }


def table(numbers: dict[str, float]) -> tuple[str, bool]:
    """The bars, then figures without a bar; and whether all bars hold."""
    lines, good = bar_table(BARS, numbers.get)
    others = [f"{name:28} {value:8.3f}" for name, value in numbers.items() if name not in {bar[0] for bar in BARS}]
    return "\n".join([*lines, *others]), good


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/quality.html"), help="the page to write")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, page = Path(name), arguments.output
        speaker = Speaker(folder / "sessions")
        print("measuring the embedded default …", file=sys.stderr, flush=True)
        numbers = embedded(speaker, page)
        print("preparing and measuring a moving head …", file=sys.stderr, flush=True)
        numbers |= moving(speaker, folder, page.with_stem(f"{page.stem}-moving"))
    print("measuring known motion …", file=sys.stderr, flush=True)
    numbers |= known()
    text, good = table(numbers)
    arguments.output.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"{text}\n{arguments.output}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
