"""Step 1 of training: spoken sentences with their mouth tracks, made on all CPU cores.

    python -m training.speech OUT.npz --clips 4000

Half of the clips use hibari's voice, half of those with another pitch, pace and vocal tract; the rest use espeak-ng's
variants. Most are changed by `training.augment`. A quarter contain several sentences, so that a clip is longer than one
Whisper context.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.speech.visemes import COLUMNS, SILENCE, mouth_track
from models.types import WHISPER_HZ, Phoneme
from training import voices
from training.augment import disguise
from training.sentences import HELD_OUT, sentences
from training.voices import ESPEAK_ACCENTS, ESPEAK_HELD_OUT, ESPEAK_VOICES, Spoken

FPS = 25
FRAME_SAMPLES = WHISPER_HZ // FPS  # 640
TRAIN, HELD_HIBARI, HELD_ESPEAK = range(3)  # uses of a clip
HIBARI_SHARE, CHANGED_SHARE, LONG_SHARE = 0.55, 0.5, 0.25
MAX_CLIP_S = 14.0
BLOCK = 16  # clips that a worker makes at a time


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """samples: int16 at 16 kHz, a whole number of frames. mouth: float16 `(frames, 7)`. closures: frames of p, b, m."""

    samples: npt.NDArray[np.int16]
    mouth: npt.NDArray[np.float16]
    closures: tuple[int, ...]
    use: int


def joined(parts: Sequence[Spoken], pauses_s: Sequence[float]) -> Spoken:
    """The parts with digital silence before each and after the last; `pauses` has one item more than `parts`."""
    assert len(pauses_s) == len(parts) + 1, (len(pauses_s), len(parts))
    sound, phonemes, time_s = [], list[Phoneme](), 0.0
    for part, pause_s in zip([*parts, None], pauses_s, strict=True):
        silence = np.zeros(int(pause_s * WHISPER_HZ), np.float32)
        sound.append(silence)
        phonemes.append(Phoneme(SILENCE, time_s, time_s + len(silence) / WHISPER_HZ))
        time_s += len(silence) / WHISPER_HZ
        if part is not None:
            sound.append(part.samples)
            phonemes += [Phoneme(p.symbol, time_s + p.start_s, time_s + p.end_s) for p in part.phonemes]
            time_s += len(part.samples) / WHISPER_HZ
    return Spoken(np.concatenate(sound), merged_silences(phonemes))


def merged_silences(phonemes: Sequence[Phoneme]) -> tuple[Phoneme, ...]:
    """Merge adjacent silences, so that the mouth closes once for them."""
    out: list[Phoneme] = []
    for phoneme in phonemes:
        if out and phoneme.symbol == SILENCE == out[-1].symbol:
            out[-1] = Phoneme(SILENCE, out[-1].start_s, phoneme.end_s)
        else:
            out.append(phoneme)
    return tuple(out)


def repaced(spoken: Spoken, factor: float) -> Spoken:
    """Play slower (> 1) or faster (< 1): pace, pitch and vocal tract change together."""
    sound = voices.to_whisper_rate(spoken.samples, WHISPER_HZ / factor)
    moved = [Phoneme(p.symbol, p.start_s * factor, p.end_s * factor) for p in spoken.phonemes]
    return Spoken(sound, tuple(moved))


def to_clip(spoken: Spoken, use: int) -> Clip:
    """Cut the speech to whole frames and compute the mouth track."""
    frames = len(spoken.samples) // FRAME_SAMPLES
    samples = (np.clip(spoken.samples[: frames * FRAME_SAMPLES], -1, 1) * 32767).astype(np.int16)
    track = mouth_track(spoken.phonemes, frames, FPS)
    return Clip(samples, track.mouth.astype(np.float16), track.closures, use)


def random_spoken(text: str, random: np.random.Generator) -> Spoken:
    """A sentence spoken by a random voice of the training set."""
    if random.random() < HIBARI_SHARE:
        spoken = voices.hibari().speak(text, random.uniform(0.85, 1.25))
        return repaced(spoken, random.uniform(0.84, 1.28)) if random.random() < CHANGED_SHARE else spoken
    voice = f"{random.choice(ESPEAK_ACCENTS)}+{random.choice(ESPEAK_VOICES)}"
    pace, pitch = int(random.integers(130, 200)), int(random.integers(20, 85))
    return repaced(voices.espeak().speak(text, voice, pace, pitch), random.uniform(0.93, 1.08))


def training_clip(texts: Sequence[str], seed: int) -> Clip:
    """One training clip of one or several sentences and voices. Deterministic for its seed."""
    random = np.random.default_rng(seed)
    parts, length_s = list[Spoken](), 0.0
    for text in texts:
        part = random_spoken(text, random)
        length_s += len(part.samples) / WHISPER_HZ
        if parts and length_s > MAX_CLIP_S:
            break
        parts.append(part)
    pauses_s = [random.choice([0.0, random.uniform(0, 0.5)]) for _ in range(len(parts) + 1)]
    spoken = joined(parts, pauses_s)
    return to_clip(Spoken(disguise(spoken.samples, random), spoken.phonemes), TRAIN)


def held_out_clips() -> Iterator[Clip]:
    """The held-out sentences without augmentation: by hibari, then by espeak-ng's held-out variants."""
    pauses_s = (0.2, 0.2)
    for text in HELD_OUT:
        yield to_clip(joined([voices.hibari().speak(text)], pauses_s), HELD_HIBARI)
    for index, text in enumerate(HELD_OUT):
        voice = f"en-us+{ESPEAK_HELD_OUT[index % len(ESPEAK_HELD_OUT)]}"
        yield to_clip(joined([voices.espeak().speak(text, voice)], pauses_s), HELD_ESPEAK)


def _clips_of_block(block: int, clips: int, seed: int) -> list[Clip]:
    """The clips from `block · BLOCK` on. They do not depend on the number of workers."""
    random = np.random.default_rng([seed, block])
    texts = sentences(max(clips, 64), seed)
    made = []
    for index in range(block * BLOCK, min((block + 1) * BLOCK, clips)):
        count = int(random.integers(2, 5)) if random.random() < LONG_SHARE else 1
        first = texts[index % len(texts)]
        more = [texts[int(k)] for k in random.integers(len(texts), size=count - 1)]
        made.append(training_clip([first, *more], seed * 1_000_003 + index))
    return made


def build(clips: int, seed: int = 0, workers: int | None = None) -> list[Clip]:
    """Held-out clips first, then about `clips` training clips."""
    blocks = range(-(-clips // BLOCK))
    workers = min(workers or os.cpu_count() or 1, len(blocks))
    arguments = (blocks, [clips] * len(blocks), [seed] * len(blocks))
    if workers == 1:
        trained = list(map(_clips_of_block, *arguments))
    else:
        with ProcessPoolExecutor(workers) as pool:
            trained = list(pool.map(_clips_of_block, *arguments))
    return [*held_out_clips(), *chain.from_iterable(trained)]


def save(clips: Sequence[Clip], path: Path) -> None:
    """Write one `.npz`: all samples and all tracks concatenated, with the lengths of the clips."""
    closures = [(index, frame) for index, clip in enumerate(clips) for frame in clip.closures]
    np.savez(
        path,
        samples=np.concatenate([clip.samples for clip in clips]),
        mouth=np.concatenate([clip.mouth for clip in clips]),
        frames=np.array([len(clip.mouth) for clip in clips]),
        use=np.array([clip.use for clip in clips]),
        closures=np.array(closures, np.int32).reshape(-1, 2),
    )


def load(path: Path) -> list[Clip]:
    """Read what `save` wrote."""
    with np.load(path) as file:
        samples, mouth, frames, use, closures = (file[k] for k in ("samples", "mouth", "frames", "use", "closures"))
    clips, start = [], 0
    for index, count in enumerate(frames):
        stop = start + int(count)
        closed = tuple(int(frame) for frame in closures[closures[:, 0] == index, 1])
        clips.append(
            Clip(samples[start * FRAME_SAMPLES : stop * FRAME_SAMPLES], mouth[start:stop], closed, int(use[index]))
        )
        assert clips[-1].mouth.shape == (count, COLUMNS), clips[-1].mouth.shape
        start = stop
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    clips = build(arguments.clips, arguments.seed, arguments.workers)
    save(clips, arguments.out)
    seconds = sum(len(clip.mouth) for clip in clips) / FPS
    print(f"{len(clips)} clips, {seconds:,.0f} s, {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
