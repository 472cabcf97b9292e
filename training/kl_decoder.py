"""How exact is a cropped KL decoder? Trains a small AutoencoderKL on faces and measures it. One command, one GPU:

    python -m training.kl_decoder --out .train/kl --steps 3000
    python -m training.kl_decoder --out .train/kl --clip me.mp4     # further faces, of your own video
    python -m training.kl_decoder --out .train/kl --tiny            # a few steps on a CPU, as a test

The net has the structure of Stable Diffusion's VAE at half its width. It learns the face crops of the default avatar,
and of the clips, with their own mouths and with those generated for the first of TEXTS. Then the mouths generated for
the second are decoded twice: in full, and as the crop that is pasted, with given group statistics
(models/cropped_decoder.py). Printed and written to OUT/report.json: the difference inside the mask, in grey levels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.cropped_decoder import CroppedDecoder, decoder_statistics
from models.features import WhisperFeatures
from models.geometry import warp
from models.musetalk import Decoder, MuseTalk, to_images
from models.speech.audio import resample
from models.types import CropWindow, PreparedAvatar, UInt8
from training.loop import Fit
from training.stages import Device

EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "embedded"
WIDTHS = (64, 128, 256, 256)  # half of Stable Diffusion's
TINY_WIDTHS = (32, 32, 32, 32)
KL_WEIGHT, EDGE_WEIGHT = 1e-6, 0.5
TEXTS = (
    "Good morning, and welcome to the programme. Today we speak about boats, bread and butter.",
    "Five purple elephants moved past the farm while we watched them from above.",
)


@dataclass(frozen=True, slots=True)
class Faces:
    """One avatar: its crops and generated mouths, uint8 `(n, 256, 256, 3)`, frame for frame, and its paste masks.

    mouths: per text of TEXTS.
    """

    name: str
    own: Tensor
    mouths: tuple[Tensor, ...]
    masks: Tensor  # bool (n, 256, 256)
    window: CropWindow


def speech_windows(device: str) -> list[Tensor]:
    """MuseTalk's feature windows of TEXTS in the default voice."""
    from models.tts.hibari import HibariTTS

    voice, whisper = HibariTTS.load(), WhisperFeatures.load(EMBEDDED / "whisper", device)
    found = []
    for text in TEXTS:
        spoken = [resample(speech.samples, speech.sample_rate_hz, 16_000) for speech in voice.speak(text)]
        found.append(whisper.windows_in_context(np.concatenate(spoken)))
    return found


def crops_of(avatar: PreparedAvatar, n: int) -> UInt8:
    """The face crops that preparation encoded, of the first n frames."""
    assert avatar.frames is not None
    return np.stack([warp(avatar.frames[k], avatar.transforms[k]) for k in range(n)])


def faces_of(avatar: PreparedAvatar, model: MuseTalk, windows: list[Tensor], n: int, device: str) -> Faces:
    """The first n frames of an avatar."""
    assert avatar.latents is not None
    mouths = []
    for spoken in windows:
        repeated = spoken[torch.arange(n, device=spoken.device) % len(spoken)]
        mouths.append(torch.from_numpy(model.generate(avatar.latents[:n], repeated)).to(device))
    masks = torch.from_numpy(avatar.masks[:n] > 0)
    own = torch.from_numpy(crops_of(avatar, n)).to(device)
    return Faces(avatar.avatar_id, own, tuple(mouths), masks.to(device), CropWindow.around(avatar.masks))


def train(faces: list[Faces], device: Device, widths: tuple[int, ...], steps: int, batch: int, out: Path) -> Any:
    """Train the autoencoder on own faces and the first text's mouths; return the averaged net."""
    torch.manual_seed(3)
    net = device.place(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths,
            layers_per_block=2,
            sample_size=256,
        )
    )
    images = torch.cat([part for face in faces for part in (face.own, face.mouths[0])])

    def loss_of(step: int) -> Tensor:
        picked = to_images(images[device.pick(len(images), batch)])
        light = 1 + 0.3 * (torch.rand(batch, 3, 1, 1, device=device.name) - 0.5)
        picked = (picked * light).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        picked = picked.flip(3) if step % 2 else picked
        with device.autocast():
            posterior = net.encode(picked).latent_dist
            decoded = net.decode(posterior.sample()).sample.float()
        edges = sum(F.l1_loss(decoded.diff(dim=dim), picked.diff(dim=dim)) for dim in (2, 3))
        return F.l1_loss(decoded, picked) + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean()

    trained = Fit("kl", net, steps, 4e-4, out / "kl.pt", averaging=0.995).run(loss_of, float("inf"))
    with torch.no_grad():
        latents = torch.cat([trained.encode(to_images(face.own[:64])).latent_dist.mode() for face in faces])
    trained.register_to_config(scaling_factor=1 / latents.std().item())
    return trained.to(memory_format=torch.channels_last)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def measure(vae: AutoencoderKL, faces: Faces, batch: int) -> dict[str, Any]:
    """Differences of the crop from the full decode, inside the mask, for statistics from several frames."""
    whole, cropped = Decoder(vae), CroppedDecoder(vae, faces.window)
    errors: dict[str, list[Tensor]] = {"own frame": [], "another generated mouth": [], "five frames before": []}
    rebuilt = list[Tensor]()
    n = len(faces.own)
    for start in range(0, n, batch):
        k = torch.arange(start, min(n, start + batch), device=faces.own.device)
        latents = encode(vae, faces.mouths[1][k])
        mask = faces.window.cut(faces.masks[k])
        wanted = whole(latents).round()
        rebuilt.append((wanted - faces.mouths[1][k]).abs()[faces.masks[k]])
        references = {
            "own frame": encode(vae, faces.own[k]),
            "another generated mouth": encode(vae, faces.mouths[0][k]),
            "five frames before": encode(vae, faces.mouths[1][(k - 5) % n]),
        }
        for name, reference in references.items():
            made = cropped(latents, decoder_statistics(vae, reference)).round()
            errors[name].append((made - faces.window.cut(wanted)).abs()[mask])
    report: dict[str, Any] = {"window": str(faces.window), "autoencoder_levels": float(torch.cat(rebuilt).mean())}
    for name, parts in errors.items():
        levels = torch.cat(parts)  # (pixels in masks, 3)
        report[name] = {
            "mean": round(float(levels.mean()), 3),
            "within_4": round(float((levels.amax(1) <= 4).float().mean()), 5),
            "largest": float(levels.max()),
        }
    return report


def encode(vae: AutoencoderKL, faces: Tensor) -> Tensor:
    """Scaled latents of faces, uint8 `(n, 256, 256, 3)`."""
    latents: Tensor = vae.encode(to_images(faces)).latent_dist.mode() * vae.config.scaling_factor
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.kl_decoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clip", type=Path, action="append", default=[], help="another face to learn and measure")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="3 steps of a narrow net on 6 frames, as a test")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    model = MuseTalk.load(
        EMBEDDED / "musetalk/musetalk.json", EMBEDDED / "musetalk/unet.safetensors", EMBEDDED / "vae", chosen.device
    )
    store = AvatarStore(chosen.out / "avatars", EMBEDDED / "avatars")
    names = ["presenter"]
    for clip in chosen.clip:
        names.append(clip.stem.replace("_", "-"))
        if not store.exists(names[-1]):
            options = PrepareOptions(batch_size=16)
            prepare_avatar(clip, names[-1], store, model.encode_reference, model.vae_fingerprint, options)
    windows = speech_windows(chosen.device)
    avatars = [store.load(name) for name in names]
    faces = [faces_of(a, model, windows, 6 if chosen.tiny else len(a), chosen.device) for a in avatars]
    widths, steps, batch = (TINY_WIDTHS, 3, 2) if chosen.tiny else (WIDTHS, chosen.steps, chosen.batch)
    vae = train(faces, Device(chosen.device.split(":")[0]), widths, steps, batch, chosen.out)
    report = {face.name: measure(vae, face, batch) for face in faces}
    (chosen.out / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
