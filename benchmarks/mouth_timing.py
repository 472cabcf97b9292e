"""Measures the motion of the mouth over time, on the embedded default.

    python -m benchmarks.mouth_timing    # some minutes on one core

Shows how the temporal filter, resting, av_offset_ms, mouth_amplitude and plosive_lead_ms change the lips that FaceMesh
measures, and what they cost. Speaks a few sentences with the product's own code; figures are comparable within one run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import argument_parser
from benchmarks.embedded import BATCH, EMBEDDED, FPS, Product, coded
from models.geometry import warp
from models.mouth_gain import MouthGain
from models.quality.flicker import flicker, greys
from models.quality.lips import LipReader, correlate_lags, pearson
from models.speech.activity import ActivityDetector
from models.speech.audio import pad_to_frames, resample
from models.speech.av_offset import LipOffset
from models.speech.feature_windows import blend_rest, plosive_shifts, rest_window
from models.speech.visemes import CLOSERS
from models.stitch.crop_filter import CropFilter, pasted_box
from models.stitch.mouth import Mouth
from models.stitch.paste import PasteMemory
from models.tts.hibari import HibariTTS
from models.types import CROP_PX, RESTORED_PX, WHISPER_HZ, Float16, Speech, UInt8

Float64 = npt.NDArray[np.float64]

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "My mother baked a beautiful apple pie on Sunday.",
    "Papa may buy Bob a map. Maybe mama will pump up the boat.",
)
NOISE_LEVELS = 4.0  # of the noise that is added to crops, grey levels
PAUSE_S = 1.2
MOUTH = np.zeros((CROP_PX, CROP_PX), np.bool_)
MOUTH[140:240, 60:196] = True


class MouthPipeline:
    """Speech → windows → crops → frames, with the options of the stages."""

    def __init__(self, avatars: Path) -> None:
        self.product, self.reader = Product(avatars), LipReader()
        self.rest = rest_window(lambda samples: self._windows(samples, None))

    def windows(self, speech: Speech, lead_s: float = 0.0) -> Float16:
        frames = round(speech.duration_s * FPS)
        samples = resample(speech.samples, speech.sample_rate_hz, WHISPER_HZ)
        ahead_s = plosive_shifts(speech.phonemes, frames, FPS, lead_s)
        windows = self._windows(np.pad(samples, (0, WHISPER_HZ // FPS // 2)), ahead_s)[:frames]
        return blend_rest(windows, self.rest, ActivityDetector()(speech), FPS, speech.last)

    def _windows(self, samples: npt.NDArray[np.float32], ahead_s: Float64 | None) -> Float16:
        made: Float16 = self.product.features.windows_in_context(samples, FPS, ahead_s=ahead_s).numpy()
        return made.astype(np.float16)

    def crops(self, windows: Float16, gain: float = 1.0) -> UInt8:
        latents = self.product.latents[self.product.shown(len(windows))]
        amplitude = MouthGain(self.product.engine, gain) if gain != 1 else None
        parts = []
        for k in range(0, len(windows), BATCH):
            given = latents[k : k + BATCH], windows[k : k + BATCH]
            parts.append(amplitude.generate(*given, self.rest) if amplitude else self.product.engine.generate(*given))
        return np.concatenate(parts)

    def frames(self, crops: UInt8, mouth: Mouth | None = None) -> UInt8:
        """Crops pasted into the avatar's frames; `mouth` filters and weights them, as in Stitch."""
        shown, product, memory = self.product.shown(len(crops)), self.product, PasteMemory()
        weights = np.ones(len(crops)) if mouth is None else mouth.weights(0, len(crops))
        out = np.stack([product.frames[index] for index in shown])
        for frame, crop, index, weight in zip(out, crops, shown, weights.tolist(), strict=True):
            product.paster.paste_into(frame, mouth.crop(crop, weight) if mouth else crop, index, weight, memory)
        return out

    def gap(self, frames: UInt8) -> Float64:
        """The gap of the inner lips after H.264, relative to the distance of the eyes."""
        places = [self.reader.place(k, self.product.frames[k]) for k in self.product.shown(len(frames))]
        return self.reader.read(coded(frames), places).gap

    def crop_filter(self) -> CropFilter:
        return CropFilter(pasted_box(self.product.avatar))

    def filtered(self, crops: UInt8) -> UInt8:
        crop_filter = self.crop_filter()
        return np.stack([crop_filter(crop) for crop in crops])


def mouth_flicker(crops: UInt8) -> Float64:
    """Mean absolute second difference of the mouth over time, grey levels per frame, `(n - 2,)`."""
    return flicker(greys(crops), MOUTH).second


def filtering(pipeline: MouthPipeline, crops: list[UInt8]) -> Iterator[str]:
    after = [pipeline.filtered(one) for one in crops]
    before_gap, after_gap = ([pipeline.gap(pipeline.frames(one)) for one in some] for some in (crops, after))
    r = pearson(np.concatenate(before_gap), np.concatenate(after_gap))
    lag = np.mean([correlate_lags(a, b).lag for a, b in zip(before_gap, after_gap, strict=True)])
    yield f"lips with and without the filter: r {r:.4f}, lag {lag:+.3f} frames"
    still = [mouth_flicker(one) < 2.0 for one in crops]  # frames without motion of the lips
    product = pipeline.product
    own = mouth_flicker(np.stack([warp(product.frames[k], product.avatar.transforms[k]) for k in range(80)]))
    plain, steady = (
        np.concatenate([mouth_flicker(one)[rest] for one, rest in zip(some, still, strict=True)])
        for some in (crops, after)
    )
    yield (
        f"flicker where lips are still: {plain.mean():.3f} → {steady.mean():.3f} levels "
        f"(the source's own: {own.mean():.3f}; {len(plain)} frames)"
    )
    moving = [np.concatenate([mouth_flicker(one) for one in some]).mean() for some in (crops, after)]
    yield f"second difference of all frames, speech included: {moving[0]:.3f} → {moving[1]:.3f}"
    random = np.random.default_rng(0)
    noisy = [
        np.clip(np.rint(one + random.normal(0, NOISE_LEVELS, one.shape)), 0, 255).astype(np.uint8) for one in crops
    ]
    quiet = [pipeline.filtered(one) for one in noisy]
    levels = [
        np.concatenate([mouth_flicker(one)[rest] for one, rest in zip(some, still, strict=True)]).mean()
        for some in (noisy, quiet)
    ]
    r = pearson(np.concatenate(before_gap), np.concatenate([pipeline.gap(pipeline.frames(one)) for one in quiet]))
    yield f"the same under noise of {NOISE_LEVELS:g} levels: {levels[0]:.2f} → {levels[1]:.2f}, lips' r {r:.4f}"
    for size in (CROP_PX, RESTORED_PX):
        crop, crop_filter = cv2.resize(crops[0][0], (size, size)), pipeline.crop_filter()
        crop_filter(crop)
        began_s = time.perf_counter()
        for _ in range(100):
            crop_filter(crop)
        yield f"filtering a crop of {size} px: {(time.perf_counter() - began_s) * 10:.2f} ms"


def with_pause(speech: Speech) -> Speech:
    """The speech twice, with PAUSE_S of silence between."""
    pause = np.zeros(round(PAUSE_S * speech.sample_rate_hz), np.float32)
    return Speech(np.concatenate([speech.samples, pause, speech.samples]), speech.sample_rate_hz, last=True)


def resting(pipeline: MouthPipeline, spoken: list[Speech]) -> Iterator[str]:
    inside, outside, own = list[Float64](), list[Float64](), list[Float64]()
    for speech in (with_pause(speech) for speech in spoken[:2]):
        made = pipeline.crops(pipeline.windows(speech))
        mouth = Mouth(FPS, crop_filter=pipeline.crop_filter())
        mouth.add_speech(speech, 0)
        weights = Mouth(FPS)
        weights.add_speech(speech, 0)
        rest = weights.weights(0, len(made)) == 0
        rest = rest[1:-1] & rest[2:] & rest[:-2]
        source = np.stack([pipeline.product.frames[k] for k in pipeline.product.shown(len(made))])
        for images, values in ((pipeline.frames(made), outside), (pipeline.frames(made, mouth), inside), (source, own)):
            transforms = pipeline.product.avatar.transforms[pipeline.product.shown(len(made))]
            coded_crops = np.stack([warp(*pair) for pair in zip(coded(images), transforms, strict=True)])
            values.append(mouth_flicker(coded_crops)[rest])
    generated, faded, source_own = (float(np.concatenate(some).mean()) for some in (outside, inside, own))
    count = len(np.concatenate(own))
    yield (
        f"motion of the mouth at rest, coded: generated {generated:.3f}, with the fade {faded:.3f}, "
        f"the source's own {source_own:.3f} ({count} frames)"
    )
    began_s = time.perf_counter()
    for speech in spoken:
        ear = Mouth(FPS)
        ear.add_speech(speech, 0)
        ear.weights(0, round(speech.duration_s * FPS))
    frames = sum(round(speech.duration_s * FPS) for speech in spoken)
    yield f"activity and weights: {(time.perf_counter() - began_s) / frames * 1e3:.3f} ms per frame"
    silence = Speech(np.zeros(2 * WHISPER_HZ, np.float32), WHISPER_HZ, last=True)
    bent = pipeline.windows(silence)
    raw = pipeline._windows(np.pad(silence.samples, (0, WHISPER_HZ // FPS // 2)), None)[: len(bent)]
    gaps = [pipeline.gap(pipeline.frames(pipeline.crops(windows)))[15:].mean() for windows in (raw, bent)]
    yield f"lip gap in 2 s of silence: {gaps[0]:.4f}, with rest_in_silence {gaps[1]:.4f}"


def options(pipeline: MouthPipeline, spoken: list[Speech], plain: list[Float64]) -> Iterator[str]:
    for ms in (-80, 80):
        offset = LipOffset(ms / 1e3)
        crops = [pipeline.crops(pipeline.windows(offset(speech))) for speech in spoken[:2]]
        gaps = [pipeline.gap(pipeline.frames(one)) for one in crops]
        lag = np.mean([correlate_lags(a, b).lag for a, b in zip(plain, gaps, strict=False)])
        yield f"av_offset_ms {ms:+d}: lips {lag * 1e3 / FPS:+.0f} ms"
    for gain in (0.7, 0.85, 1.15, 1.3):
        gaps = [pipeline.gap(pipeline.frames(pipeline.crops(pipeline.windows(speech), gain))) for speech in spoken[:2]]
        both = np.concatenate(plain[:2]), np.concatenate(gaps)
        yield (
            f"mouth_amplitude {gain}: the opening varies {both[1].std() / both[0].std():.2f} times as much, "
            f"r {pearson(*both):.3f}"
        )
    for ms in (0, 20, 40):
        before = [
            np.interp((p.start_s + p.end_s) / 2 - 0.04, (np.arange(len(gap)) + 0.5) / FPS, gap)
            for speech in spoken[2:]
            for gap in [pipeline.gap(pipeline.frames(pipeline.crops(pipeline.windows(speech, ms / 1e3))))]
            for p in speech.phonemes
            if p.symbol in CLOSERS
        ]
        yield f"plosive_lead_ms {ms}: lip gap 40 ms before the middle of p, b, m: {np.mean(before):.4f}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--avatars", type=Path, default=EMBEDDED / "avatars", help="folder of the prepared presenter")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pipeline, voice = MouthPipeline(arguments.avatars), HibariTTS.load()
    spoken = [pad_to_frames(speech, FPS) for text in TEXTS for speech in voice.speak(text)]
    crops = [pipeline.crops(pipeline.windows(speech)) for speech in spoken]
    plain = [pipeline.gap(pipeline.frames(made)) for made in crops]
    for rows in (filtering(pipeline, crops), resting(pipeline, spoken), options(pipeline, spoken, plain)):
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
