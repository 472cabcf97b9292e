"""Measures the embedded networks against their bars, with the product's own code.

    python -m benchmarks.embedded
    python -m benchmarks.embedded --quick    # two clips of each kind

Held-out sentences are spoken, converted to feature windows and to faces of the default avatar, pasted, encoded as H.264
and decoded again. FaceMesh measures the lips in that video. The reference is the presenter, drawn with the mouth track
of the same phonemes and processed in the same way. Writes embedded.json and pictures to `--out`. Exit status 1 if a bar
is missed.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from benchmarks.common import Bar, argument_parser, bar_table
from benchmarks.lip_reader import ClipReading, LipReader, closures, follow, vowel_order
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.features import WhisperFeatures
from models.geometry import warp
from models.media.encode import MediaSpec, UtteranceEncoder
from models.musetalk_openvino import OpenVINOMuseTalk
from models.quality.seam import seam_delta_e
from models.speech.audio import resample
from models.speech.visemes import MouthTrack, mouth_track
from models.stitch.crop_filter import CropFilter, pasted_box
from models.stitch.mouth import Mouth
from models.stitch.paste import PasteMemory, Paster, warp_alpha
from models.stitch.rest import RestSettings
from models.types import CROP_PX, WHISPER_HZ, Float32, PreparedAvatar, Speech, UInt8
from training import presenter, voices
from training.make_presenter import idle_poses
from training.sentences import HELD_OUT
from training.voices import ESPEAK_HELD_OUT, FLITE_VOICES, Spoken

EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "embedded"
FPS = 25
BATCH = 8
VOWELS = ("u", "i", "ɑ")
VOWEL_SENTENCES = (  # with long /uː/, /iː/ and /ɑ/; not among the training sentences
    "Two geese in the pool, a palm by the sea.",
    "Father sees the moon from the calm beach.",
    "Who needs a farm of blue peas?",
    "The spa is cool, and the tea is hot.",
)
MOUTH_ROWS, MOUTH_COLUMNS = slice(150, 240), slice(60, 196)  # the part of a crop for the mouth's PSNR
NEW_PEOPLE_SEED, NEW_POSES_SEED = 90_001, 90_002  # differ from all seeds of training
PSNR_FACES = 24
TRUTH_TOP, TRUTH_LEFT, TRUTH_PX = 96, 48, 160  # the part of a crop that a mouth changes, including the jaw
BARS: tuple[Bar, ...] = (
    ("vae_default_db", 32.0, True),
    ("vae_default_mouth_db", 36.0, True),
    ("vae_new_people_db", 30.0, True),
    ("default.r", 0.92, True),
    ("default.r_worst_clip", 0.85, True),
    ("default.amplitude", 0.9, True),
    ("default.amplitude", 1.1, False),
    ("default.best_lag_frames", 0.0, True),
    ("default.best_lag_frames", 0.0, False),
    ("espeak.r", 0.75, True),
    ("flite.r", 0.75, True),
    ("talking_reference_loss", 0.02, False),
    ("default.closed_at_pbm", 0.95, True),
    ("default.closed_elsewhere", 0.45, False),
    ("default.closed_in_silence", 0.98, True),
    ("default.vowels_told_apart", 0.8, True),
    ("seam_delta_e", 1.0, False),
)
INSTALLED_BY = {"espeak": ".venv/bin/pip install espeakng-loader", "flite": "apt-get install flite"}


@dataclass(frozen=True, slots=True, eq=False)
class Uttered:
    """One clip of speech at 16 kHz, its mouth track, and the middle frames of its long vowels."""

    spoken: Spoken
    track: MouthTrack
    vowels: dict[str, list[int]]

    @classmethod
    def of(cls, spoken: Spoken) -> Uttered:
        frames = len(spoken.samples) * FPS // WHISPER_HZ
        vowels: dict[str, list[int]] = {vowel: [] for vowel in VOWELS}
        for phoneme in spoken.phonemes:
            middle = int((phoneme.start_s + phoneme.end_s) / 2 * FPS)
            if phoneme.symbol in vowels and phoneme.end_s - phoneme.start_s >= 0.06 and middle < frames:
                vowels[phoneme.symbol].append(middle)
        return cls(spoken, mouth_track(spoken.phonemes, frames, FPS), vowels)


class Product:
    """AudioFeatures, LipSync and Stitch in one process, with the code of the stages."""

    def __init__(self, avatars: Path) -> None:
        self.features = WhisperFeatures.load(EMBEDDED / "whisper")
        files = (EMBEDDED / "musetalk/musetalk.json", EMBEDDED / "musetalk/unet.safetensors", EMBEDDED / "vae")
        self.engine = OpenVINOMuseTalk.load(*files, threads=2, precision="auto")
        self.avatar: PreparedAvatar = AvatarStore(avatars).load("presenter")
        assert self.avatar.vae_fingerprint == self.engine.vae_fingerprint, "run make_avatar to prepare the avatar again"
        assert self.avatar.latents is not None and self.avatar.frames is not None
        self.latents, self.frames = self.avatar.latents, self.avatar.frames
        self.paster = Paster(self.avatar)

    def shown(self, count: int) -> list[int]:
        """The avatar frames of an utterance at the start of a session."""
        return [int(k) for k in ping_pong(0, count, len(self.avatar))]

    def faces(self, speech: Float32, count: int, latents: Any = None) -> UInt8:
        """Speech at 16 kHz → `count` face crops, for the avatar's latents or for others."""
        padded = np.pad(resample(speech, WHISPER_HZ, WHISPER_HZ), (0, WHISPER_HZ // FPS // 2))
        windows = self.features.windows_in_context(padded, FPS)[:count].numpy().astype(np.float16)
        latents = self.latents[self.shown(count)] if latents is None else latents
        parts = [self.engine.generate(latents[k : k + BATCH], windows[k : k + BATCH]) for k in range(0, count, BATCH)]
        return np.concatenate(parts)

    def pasted(self, faces: UInt8, spoken: Spoken | None = None) -> UInt8:
        """Face crops pasted into the avatar's frames, `(n, h, w, 3)`. spoken: filters and rests the mouth by it."""
        shown, memory = self.shown(len(faces)), PasteMemory()
        mouth = Mouth(FPS, RestSettings(source_rests=spoken is not None), CropFilter(pasted_box(self.avatar)))
        if spoken is not None:
            mouth.add_speech(Speech(spoken.samples, WHISPER_HZ, last=True, phonemes=tuple(spoken.phonemes)), 0)
        out = np.stack([self.frames[index] for index in shown])
        for frame, face, index, weight in zip(out, faces, shown, mouth.weights(0, len(faces)).tolist(), strict=True):
            self.paster.paste_into(frame, mouth.crop(face, weight) if spoken else face, index, weight, memory)
        return out


def coded(frames: UInt8) -> UInt8:
    """Frames after the product's H.264 encoding, decoded."""
    encoder = UtteranceEncoder(MediaSpec(frames.shape[2], frames.shape[1], FPS))
    fragments = encoder.push(frames, np.zeros(0, np.float32), last=True)
    data = io.BytesIO(encoder.init_segment + b"".join(fragment.data for fragment in fragments))
    with av.open(data) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == len(frames), (len(decoded), len(frames))
    return np.stack(decoded)


class Truth:
    """The presenter's mouth and chin, drawn into the avatar's own crops with the poses of the idle clip."""

    def __init__(self, product: Product) -> None:
        self.product, self.poses, self.textures = product, idle_poses(), presenter.textures()
        transforms = torch.from_numpy(np.array(product.avatar.transforms))
        transforms[:, :, 2] -= torch.tensor([TRUTH_LEFT, TRUTH_TOP])
        self.transforms = transforms  # (n, 2, 3), frame px → px of the drawn part

    def parts(self, mouth: Float32) -> UInt8:
        """Mouth track `(n, 7)` → the changed part of the crops, `(n, 160, 160, 3)`."""
        shown, parts = self.product.shown(len(mouth)), []
        for k in range(0, len(mouth), BATCH):
            index = torch.tensor(shown[k : k + BATCH])
            pose = presenter.Pose({name: value[index] for name, value in self.poses.items()})
            part = torch.from_numpy(mouth[k : k + BATCH].copy())
            identity = presenter.default_identity(len(part))
            drawn = presenter.render(identity, pose, part, self.textures, TRUTH_PX, 1, self.transforms[index])
            parts.append(to_uint8(drawn))
        return np.concatenate(parts)

    def crops(self, parts: UInt8) -> UInt8:
        """The avatar's own crops with those parts, `(n, 256, 256, 3)`."""
        product = self.product
        whole = [warp(product.frames[k], product.avatar.transforms[k]) for k in product.shown(len(parts))]
        crops = np.stack(whole)
        crops[:, TRUTH_TOP : TRUTH_TOP + TRUTH_PX, TRUTH_LEFT : TRUTH_LEFT + TRUTH_PX] = parts
        return crops


def to_uint8(images: torch.Tensor) -> UInt8:
    """`(n, 3, h, w)` in [0, 1] → `(n, h, w, 3)`."""
    return np.ascontiguousarray((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


class Bench:
    """Runs the clips and collects the measurements."""

    def __init__(self, avatars: Path, folder: Path) -> None:
        self.product, self.reader, self.folder = Product(avatars), LipReader(), folder
        self.truth = Truth(self.product)
        self.cache = folder / "truth"  # drawing takes most of the time, and depends only on the track
        self.cache.mkdir(parents=True, exist_ok=True)
        self.seams: list[float] = []

    def truth_crops(self, track: MouthTrack) -> UInt8:
        path = self.cache / f"{self.product.avatar.version}-{zlib.crc32(track.mouth.tobytes()):08x}.npz"
        if not path.exists():
            np.savez_compressed(path, parts=self.truth.parts(track.mouth))
        with np.load(path) as file:
            return self.truth.crops(file["parts"])

    def clip(self, uttered: Uttered, picture: str = "", reference: UInt8 | None = None) -> ClipReading:
        """Measure one clip. reference: crops `(n, 256, 256, 3)` to inpaint instead of the avatar's resting ones."""
        count = len(uttered.track.mouth)
        truth = self.truth_crops(uttered.track)
        latents = None if reference is None else self.product.engine.encode_reference(reference[:count])
        made = self.product.faces(uttered.spoken.samples, count, latents)
        frames = {"truth": self.product.pasted(truth), "made": self.product.pasted(made, uttered.spoken)}
        if reference is None:
            self.seams += [
                seam(self.product.avatar, self.product.frames[index], frames["made"][k], index)
                for k, index in enumerate(self.product.shown(count))
                if k % 10 == 5
            ]
        places = [self.reader.place(k, self.product.frames[k]) for k in self.product.shown(count)]
        seen = {name: self.reader.read(coded(images), places) for name, images in frames.items()}
        if picture:
            write_strip(frames["truth"], frames["made"], self.folder / f"{picture}.png")
        return ClipReading(seen["truth"], seen["made"], uttered.track.closures, uttered.track.silent, uttered.vowels)

    def clips(self, kind: str, uttered: Sequence[Uttered], talking: bool = False) -> list[ClipReading]:
        """Measure the clips of one kind. talking: use crops that speak the next clip's words as references."""
        readings = []
        for index, one in enumerate(uttered):
            progress(f"{kind}: clip {index + 1} of {len(uttered)}")
            reference = None
            if talking:
                other = self.truth_crops(uttered[(index + 1) % len(uttered)].track)
                reference = np.resize(other, (len(one.track.mouth), *other.shape[1:]))
            readings.append(self.clip(one, f"{kind}-{index}" if index < 2 else "", reference))
        return readings


def seam(avatar: PreparedAvatar, source: UInt8, composed: UInt8, index: int) -> float:
    """Mean ΔE across the mask's edge in the composed frame, minus that of the source frame."""
    alpha = warp_alpha(avatar.transforms[index], avatar.masks[index], source.shape[:2])
    weights = np.zeros(source.shape[:2], np.uint8)
    weights[alpha.region] = alpha.weights
    return seam_delta_e(source, composed, weights)


def vae_numbers(product: Product) -> dict[str, float]:
    """PSNR of faces through the VAE's encoder, float16 latents and decoder, for new poses and new people."""
    random = torch.Generator().manual_seed(NEW_POSES_SEED)
    pose = presenter.random_poses(PSNR_FACES, random)
    talking = torch.from_numpy(random_mouths(PSNR_FACES))
    people = presenter.random_identities(PSNR_FACES, torch.Generator().manual_seed(NEW_PEOPLE_SEED))
    numbers, textures = dict[str, float](), presenter.textures()
    for name, identity in (("default", presenter.default_identity(PSNR_FACES)), ("new_people", people)):
        crop = presenter.face_crop_transform(identity, pose, CROP_PX)
        faces = to_uint8(presenter.render(identity, pose, talking, textures, CROP_PX, 2, crop))
        latents = np.asarray(product.engine.encode_reference(faces))[:, 4:].astype(np.float16)
        error = (product.engine.decode(latents).astype(np.float64) - faces) ** 2
        numbers[f"vae_{name}_db"] = psnr(error)
        numbers[f"vae_{name}_mouth_db"] = psnr(error[:, MOUTH_ROWS, MOUTH_COLUMNS])
    return numbers


def random_mouths(count: int) -> Float32:
    """`count` mouths, evenly spaced in the held-out sentences."""
    tracks = np.concatenate([Uttered.of(voices.hibari().speak(text)).track.mouth for text in HELD_OUT[:4]])
    return np.ascontiguousarray(tracks[np.linspace(0, len(tracks) - 1, count).astype(int)])


def psnr(squared_error: Any) -> float:
    """Mean PSNR of images, dB."""
    return float(np.mean([10 * np.log10(255**2 / image.mean()) for image in squared_error]))


def write_strip(truth: UInt8, made: UInt8, path: Path) -> None:
    """A picture with twelve frames of a clip, truth above result."""
    shown = np.linspace(2, len(truth) - 3, 12).astype(int)
    rows = [np.hstack([cv2.resize(frames[k][60:500, 60:450], (195, 220)) for k in shown]) for frames in (truth, made)]
    cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


def progress(text: str) -> None:
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


def utterances(clips: int) -> dict[str, list[Spoken]]:
    """The speech clips by kind. Unseen voices, if installed, speak half as many sentences as the default voice."""
    half = max(2, clips // 2)
    texts, hibari = HELD_OUT[-half:], voices.hibari()
    variants = [f"en-us+{ESPEAK_HELD_OUT[k % len(ESPEAK_HELD_OUT)]}" for k in range(half)]
    spoken = {
        "default": [hibari.speak(text) for text in HELD_OUT[:clips]],
        "vowels": [hibari.speak(text) for text in VOWEL_SENTENCES[:clips]],
    }
    if importlib.util.find_spec("espeakng_loader"):
        espeak = voices.espeak()
        spoken["espeak"] = [espeak.speak(text, variant) for text, variant in zip(texts, variants, strict=True)]
    if shutil.which("flite"):
        flite = voices.FliteVoice()
        spoken["flite"] = [flite.speak(text, FLITE_VOICES[k % len(FLITE_VOICES)]) for k, text in enumerate(texts)]
    return spoken


def measure(avatars: Path, folder: Path, clips: int) -> dict[str, Any]:
    """All figures, over `clips` clips of the default voice."""
    bench = Bench(avatars, folder)
    numbers: dict[str, Any] = vae_numbers(bench.product)
    spoken = {kind: list(map(Uttered.of, made)) for kind, made in utterances(clips).items()}
    read = bench.clips("default", spoken["default"])
    numbers["default"] = {**follow(read), **closures(read), **vowel_order(bench.clips("vowels", spoken["vowels"]))}
    half = max(2, clips // 2)
    talking = follow(bench.clips("talking reference", spoken["default"][:half], talking=True))
    numbers["talking_reference"] = talking
    numbers["talking_reference_loss"] = follow(read[:half])["r"] - talking["r"]
    for kind in ("espeak", "flite"):
        if kind in spoken:
            numbers[kind] = follow(bench.clips(kind, spoken[kind]))
    numbers["seam_delta_e"] = float(np.mean(bench.seams))
    return numbers


def look_up(numbers: dict[str, Any], name: str) -> float | None:
    """`a.b` in nested figures, or None if it was not measured."""
    value: Any = numbers
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else float(value)


def table(numbers: dict[str, Any]) -> tuple[str, bool]:
    """The bars with their figures, and whether all that were measured hold."""

    def missing(name: str) -> str:
        how = INSTALLED_BY.get(name.partition(".")[0])
        return f": needs `{how}`" if how else ""

    lines, good = bar_table(BARS, lambda name: look_up(numbers, name), missing)
    return "\n".join(lines), good


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="two clips of each kind")
    parser.add_argument("--avatars", type=Path, default=EMBEDDED / "avatars", help="folder of the prepared presenter")
    parser.add_argument("--out", type=Path, default=Path("results/embedded"))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(2)
    numbers = measure(arguments.avatars, arguments.out, 2 if arguments.quick else len(HELD_OUT))
    progress("")
    text, good = table(numbers)
    (arguments.out / "embedded.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"\n{text}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
