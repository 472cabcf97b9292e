"""Measures speech recognition: word errors, invented words and milliseconds, with a real Whisper folder.

    python -m benchmarks.recognition                             # weights/whisper-tiny.en
    python -m benchmarks.recognition weights/whisper-base --language en --threads 2

Hibari and, if installed, espeak-ng speak sentences of the Harvard list (IEEE 1969) and typical questions of viewers.
The recognised words are compared with the text. Human voices and room acoustics are not included: people are recognised
better than espeak-ng, and rooms increase the errors.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.common import argument_parser
from models.recognition.whisper import FOLDER, WhisperRecognizer
from models.speech.audio import resample
from models.tts.hibari import HibariTTS
from models.types import WHISPER_HZ, Float32

SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls.",
    "The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck.",
    "A large size in stockings is hard to sell.",
    "The boy was there when the sun rose.",
    "A rod is used to catch pink salmon.",
    "Kick the ball straight and follow through.",
    "Help the woman get back to her feet.",
    "Who are you, and how do you work?",
    "Can you tell me a joke about the weather?",
    "Stop.",
    "Yes, please go on.",
    "No, that is not what I meant.",
    "What is the capital of France?",
    "Thank you, that was very helpful.",
    "Could you say that again more slowly?",
)
PAUSE_S = 0.4  # silence before and after, as with push-to-talk
NOISE_DB = 10.0  # signal-to-noise ratio with white noise


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def word_errors(said: list[str], heard: list[str]) -> int:
    """The number of words to insert, remove or replace (Levenshtein distance)."""
    row = list(range(len(heard) + 1))
    for k, word in enumerate(said, 1):
        last, row[0] = row[0], k
        for j, other in enumerate(heard, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1]


def voices() -> dict[str, Callable[[str], Float32]]:
    """The voices: functions that speak a sentence at 16 kHz."""
    tts = HibariTTS.load(threads=1)

    def hibari(text: str) -> Float32:
        return np.concatenate([resample(s.samples, s.sample_rate_hz, WHISPER_HZ) for s in tts.speak(text)])

    found: dict[str, Callable[[str], Float32]] = {"hibari": hibari}
    try:
        import training.voices

        voice = training.voices.espeak()
    except Exception as error:  # noqa: BLE001  # whatever an optional library of another licence lacks
        print(f"(espeak-ng is not available: {error})")
        return found
    found["espeak-ng"] = lambda text: voice.speak(text).samples
    return found


def noisy(samples: Float32, db: float) -> Float32:
    noise = np.random.default_rng(0).normal(0, 1, len(samples)).astype(np.float32)
    power = float((samples**2).mean()) / float((noise**2).mean()) / 10 ** (db / 10)
    return samples + noise * np.float32(np.sqrt(power))


def sounds_without_words() -> dict[str, Float32]:
    """Sounds that contain no words, 4 s each."""
    times, rng = np.arange(4 * WHISPER_HZ) / WHISPER_HZ, np.random.default_rng(0)
    sounds = {
        "silence": np.zeros(len(times)),
        "hiss": rng.normal(0, 0.05, len(times)),
        "mains hum": 0.1 * np.sin(2 * np.pi * 100 * times),
        "beeps": 0.3 * np.sin(2 * np.pi * 440 * times) * (times * 2 % 2 < 1),
        "chord": sum(0.05 * np.sin(2 * np.pi * hz * times) for hz in (220, 277, 330, 440)),
        "keys": rng.normal(0, 0.2, len(times)) * (rng.random(len(times)) > 0.999),
    }
    return {name: np.asarray(sound, np.float32) for name, sound in sounds.items()}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("weights", nargs="?", default=FOLDER, help="a Whisper folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--language", default=None, help="by default the recogniser detects it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=float, default=None, help="seconds; by default the engine's own")
    options = parser.parse_args()
    recognizer = WhisperRecognizer.load(
        options.weights, options.device, threads=options.threads, context_s=options.context
    )
    for name, voice in voices().items():
        for condition in ("clean", f"noise {NOISE_DB:g} dB below"):
            errors = total = 0
            spent, lengths = [], []
            for text in SENTENCES:
                samples = np.pad(voice(text), round(PAUSE_S * WHISPER_HZ))
                samples = samples if condition == "clean" else noisy(samples, NOISE_DB)
                begin_s = time.perf_counter()
                heard = recognizer.transcribe(samples, options.language).text
                spent.append(time.perf_counter() - begin_s)
                lengths.append(len(samples) / WHISPER_HZ)
                missed = word_errors(words_of(text), words_of(heard))
                errors, total = errors + missed, total + len(words_of(text))
                if missed:
                    print(f"    {text!r} → {heard!r}")
            print(
                f"| {name}, {condition} | {100 * errors / total:.1f} % of {total} words wrong | "
                f"{1000 * statistics.median(spent):.0f} ms for {statistics.median(lengths):.1f} s |"
            )
    heard_in = {
        name: recognizer.transcribe(sound, options.language).text for name, sound in sounds_without_words().items()
    }
    invented = {name: text for name, text in heard_in.items() if text}
    print(f"| words invented for {', '.join(heard_in)} | {invented or 'none'} | |")


if __name__ == "__main__":
    main()
