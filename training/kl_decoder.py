"""How exact is a cropped KL decoder? Trains a small AutoencoderKL on faces and measures it. One command, one GPU:

    python -m training.kl_decoder --out .train/kl --minutes 3
    python -m training.kl_decoder --out .train/kl --clip me.mp4     # further faces, of your own video
    python -m training.kl_decoder --out .train/kl --tiny            # a few steps on a CPU, as a test

The net has the structure of Stable Diffusion's VAE at half its width. It learns the face crops of the default avatar,
and of the clips, with their own mouths and with those generated for the first of TEXTS. Then the mouths generated for
the second are decoded twice: in full, and as the crop that is pasted, with given group statistics
(models/cropped_decoder.py): those of the avatar's own face, or the mean over some of REFERENCES mouths of the first
text. Printed and written to OUT/report.json: the difference inside the mask, in grey levels.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from models.avatar.decoding import error_of, own_faces, speech_windows, spread
from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.cropped_decoder import CroppedDecoder, decoder_statistics
from models.musetalk import Decoder, MuseTalk, to_images
from models.types import CropWindow, PreparedAvatar
from training.loop import Fit
from training.stages import Device

EMBEDDED = Path(__file__).resolve().parents[1] / "models" / "embedded"
WIDTHS = (64, 128, 256, 256)  # half of Stable Diffusion's
TINY_WIDTHS = (32, 32, 32, 32)
KL_WEIGHT, EDGE_WEIGHT = 1e-6, 0.5
REFERENCES, AVERAGED = 4, (1, 2, 4)  # mouths generated for every frame, and how many are averaged
PACE_STEPS = 20, 30  # steps before the pace is measured, and in its measurement
TEXTS = (
    "Good morning, and welcome to the programme. Today we speak about boats, bread and butter.",
    "Five purple elephants moved past the farm while we watched them from above.",
)


@dataclass(frozen=True, slots=True)
class Faces:
    """One avatar: its crops and generated mouths, uint8 `(n, 256, 256, 3)`, frame for frame, and its paste masks.

    mouths: per text of TEXTS. references: each for one window of the first text, the same in all frames.
    """

    name: str
    own: Tensor
    mouths: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    masks: Tensor  # bool (n, 256, 256)
    window: CropWindow


def faces_of(avatar: PreparedAvatar, model: MuseTalk, windows: list[Tensor], n: int, device: str) -> Faces:
    """The first n frames of an avatar. Generated mouths are pasted into its own faces."""
    assert avatar.latents is not None
    latents = avatar.latents[:n]
    own = torch.from_numpy(own_faces(avatar, range(n))).to(device)
    masks = torch.from_numpy(np.ascontiguousarray(avatar.masks[:n])).to(device)
    weight = masks[..., None] / 255

    def generated(spoken: Tensor) -> Tensor:
        made = torch.from_numpy(model.generate(latents, spoken)).to(device)
        return (own + weight * (made.float() - own)).round().to(torch.uint8)

    mouths = tuple(generated(spoken[torch.arange(n) % len(spoken)]) for spoken in windows)
    references = tuple(generated(windows[0][[k] * n]) for k in spread(len(windows[0]), REFERENCES))
    return Faces(avatar.avatar_id, own, mouths, references, masks > 0, CropWindow.around(avatar.masks))


def train(
    faces: list[Faces], device: Device, widths: tuple[int, ...], steps: int, batch: int, minutes: float, out: Path
) -> Any:
    """Train the autoencoder on own faces and the first text's mouths; return the averaged net.

    minutes: if `steps` would take longer, there are as many as fit, with the whole schedule of learning rates.
    """
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
    fit = Fit("kl", net, steps, 4e-4, out / "kl.pt", averaging=0.995)
    first, begun_s = fit.step + PACE_STEPS[0], 0.0

    def loss_of(step: int) -> Tensor:
        nonlocal begun_s
        if step - first in (0, PACE_STEPS[1]):
            if device.name == "cuda":
                torch.cuda.synchronize()
            if step > first:
                pace = PACE_STEPS[1] / (time.monotonic() - begun_s)
                fit.steps = max(step + 1, min(fit.steps, first + int(60 * minutes * pace)))
            begun_s = time.monotonic()
        picked = to_images(images[device.pick(len(images), batch)])
        light = 1 + 0.3 * (torch.rand(batch, 3, 1, 1, device=device.name) - 0.5)
        picked = (picked * light).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        picked = picked.flip(3) if step % 2 else picked
        with device.autocast():
            posterior = net.encode(picked).latent_dist
            decoded = net.decode(posterior.sample()).sample.float()
        edges = sum(F.l1_loss(decoded.diff(dim=dim), picked.diff(dim=dim)) for dim in (2, 3))
        return F.l1_loss(decoded, picked) + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean()

    trained = fit.run(loss_of, float("inf"))
    with torch.no_grad():
        latents = torch.cat([trained.encode(to_images(face.own[:64])).latent_dist.mode() for face in faces])
    trained.register_to_config(scaling_factor=1 / latents.std().item())
    return trained.to(memory_format=torch.channels_last)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def measure(vae: AutoencoderKL, faces: Faces, batch: int) -> dict[str, Any]:
    """Differences of the crop from the full decode, inside the mask, for statistics of several faces."""
    whole, cropped = Decoder(vae), CroppedDecoder(vae, faces.window)
    levels: dict[str, list[Tensor]] = {}
    rebuilt = list[Tensor]()
    n = len(faces.own)
    for start in range(0, n, batch):
        k = torch.arange(start, min(n, start + batch), device=faces.own.device)
        latents = encode(vae, faces.mouths[1][k])
        wanted = whole(latents).round()
        rebuilt.append((wanted - faces.mouths[1][k]).abs()[faces.masks[k]])
        given = [decoder_statistics(vae, encode(vae, part[k])) for part in (faces.own, *faces.references)]
        sources = {"own frame": given[0]}
        sources |= {
            f"mouths: {m}": torch.stack([given[1 + j] for j in spread(REFERENCES, m)]).mean(0) for m in AVERAGED
        }
        for name, statistics in sources.items():
            made = (cropped(latents, statistics).round() - faces.window.cut(wanted)).abs()
            levels.setdefault(name, []).append(made[faces.window.cut(faces.masks[k])])
    report: dict[str, Any] = {"window": str(faces.window), "autoencoder_levels": float(torch.cat(rebuilt).mean())}
    for name, parts in levels.items():
        found = torch.cat(parts).to(torch.uint8).cpu().numpy()  # (pixels in masks, 3)
        mean, p999 = error_of(found)
        report[name] = {"mean": mean, "p999": p999, "largest": int(found.max())}
    return report


def encode(vae: AutoencoderKL, faces: Tensor) -> Tensor:
    """Scaled latents of faces, uint8 `(n, 256, 256, 3)`, in the VAE's precision."""
    images = to_images(faces).to(next(vae.parameters()).dtype)
    latents: Tensor = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.kl_decoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clip", type=Path, action="append", default=[], help="another face to learn and measure")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training: fewer steps where they take longer")
    parser.add_argument("--batch", type=int, default=8)
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
    windows = [speech_windows(text, device=chosen.device) for text in TEXTS]
    avatars = [store.load(name) for name in names]
    faces = [faces_of(a, model, windows, 6 if chosen.tiny else len(a), chosen.device) for a in avatars]
    widths, steps, batch = (TINY_WIDTHS, 3, 2) if chosen.tiny else (WIDTHS, chosen.steps, chosen.batch)
    vae = train(faces, Device(chosen.device.split(":")[0]), widths, steps, batch, chosen.minutes, chosen.out)
    report = {face.name: measure(vae, face, batch) for face in faces}
    if not chosen.device.startswith("cpu"):
        vae.half()
        report |= {f"{face.name}, float16": measure(vae, face, batch) for face in faces}
    (chosen.out / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
