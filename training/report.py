"""Step 7 of training: measures of the networks on held-out sentences, and a picture of generated frames.

This is a quick check during training. The published figures come from `python -m benchmarks.embedded`, which runs the
whole product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor

from models.musetalk import position_code
from models.types import CROP_PX, WHISPER_WIDTH, WINDOW_TOKENS
from training import presenter
from training.data import SpeechBank, jittered, lower_half_black
from training.losses import correlation, psnr
from training.nets import MouthReader
from training.speech import HELD_ESPEAK, HELD_HIBARI
from training.stages import LOWER

MOUTH = (
    slice(None),
    slice(None),
    slice(150, 240),
    slice(60, 196),
)  # where the mouth's PSNR is measured
BATCH = 64
SHEET_FRAMES = 12


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    vae: AutoencoderTiny
    unet: UNet2DConditionModel
    reader: MouthReader
    device: str


@dataclass(frozen=True, slots=True)
class Case:
    """One test case: the voice, the face, and what the reference says."""

    name: str
    use: int
    is_default: bool
    talking_reference: bool = False


CASES = (
    Case("default", HELD_HIBARI, is_default=True),
    Case("talking reference", HELD_HIBARI, is_default=True, talking_reference=True),
    Case("new identity", HELD_HIBARI, is_default=False),
    Case("held-out espeak voice", HELD_ESPEAK, is_default=True),
)


def generate(nets: Networks, reference: Tensor, windows: Tensor) -> Tensor:
    """References `(b, 3, 256, 256)` in [-1, 1] and windows `(b, 50, 384)` → generated faces."""
    scale = nets.vae.config.scaling_factor
    given = torch.cat([nets.vae.encoder(lower_half_black(reference)), nets.vae.encoder(reference)], 1) * scale
    heard = windows + position_code(WINDOW_TOKENS, WHISPER_WIDTH).to(nets.device)
    made = nets.unet(given, torch.zeros(1, dtype=torch.long, device=nets.device), heard).sample
    return torch.as_tensor(nets.vae.decoder(made / scale)).clamp(-1, 1)


def clip_faces(nets: Networks, bank: SpeechBank, frames: Tensor, case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Truth and generated faces of the frames of one clip, `(n, 3, 256, 256)` each."""
    random = torch.Generator().manual_seed(seed)
    one = presenter.default_identity(1) if case.is_default else presenter.random_identities(1, random)
    still = presenter.random_poses(1, random, amount=0.5)
    still["blink"] *= 0
    talk = bank.mouth[bank.frames_of(case.use)].roll(37 * (seed + 1), 0)
    textures = presenter.textures(nets.device)
    truths, made = [], []
    for part in frames.split(BATCH):
        count = len(part)
        identity = presenter.Identity({k: v.expand(count).to(nets.device) for k, v in one.items()})
        pose = presenter.Pose({k: v.expand(count).to(nets.device) for k, v in still.items()})
        crop = jittered(presenter.face_crop_transform(identity, pose, CROP_PX), random, amount=0.0)
        other = talk[:count] if case.talking_reference else presenter.rest_mouth(count, nets.device)
        truth, reference = (
            presenter.render(identity, pose, mouth, textures, CROP_PX, 2, crop) * 2 - 1
            for mouth in (bank.mouth[part], other)
        )
        truths.append(truth)
        made.append(generate(nets, reference, bank.windows(part)))
    return torch.cat(truths), torch.cat(made)


def case_numbers(
    nets: Networks, bank: SpeechBank, case: Case, clips: int, most_frames: int
) -> tuple[dict[str, Any], list[Tensor]]:
    """Measures of one case over its first `clips` clips, and a few frames: truth above generated."""
    numbers: dict[str, list[float]] = {"vae": [], "vae_mouth": [], "made_mouth": [], "r": []}
    read_truth, read_made, rows = [], [], list[Tensor]()
    held = bank.frames_of(case.use)
    for index, clip in enumerate(torch.unique(bank.clip[held])[:clips]):
        truth, made = clip_faces(nets, bank, held[bank.clip[held] == clip][:most_frames], case, index)
        coded = torch.cat([nets.vae.decoder(nets.vae.encoder(part)) for part in truth.split(BATCH)]).clamp(-1, 1)
        numbers["vae"].append(psnr(coded, truth))
        numbers["vae_mouth"].append(psnr(coded[MOUTH], truth[MOUTH]))
        numbers["made_mouth"].append(psnr(made[MOUTH], truth[MOUTH]))
        read_truth.append(nets.reader(truth[:, :, LOWER:]))
        read_made.append(nets.reader(made[:, :, LOWER:]))
        numbers["r"].append(correlation(read_truth[-1][:, 0], read_made[-1][:, 0]))
        if index < 2:
            shown = np.linspace(2, len(truth) - 3, SHEET_FRAMES).astype(int)
            rows += [torch.cat(list(images[shown]), 2) for images in (truth, made)]
    truth_all, made_all = torch.cat(read_truth), torch.cat(read_made)
    ratio = made_all.std(0) / truth_all.std(0)
    result: dict[str, Any] = {name: round(float(np.mean(values)), 3) for name, values in numbers.items()}
    result["r_worst"] = round(min(numbers["r"]), 3)
    result["r_opening_width"] = [round(correlation(truth_all[:, k], made_all[:, k]), 3) for k in (0, 1)]
    result["amplitude_opening_width"] = [round(float(ratio[k]), 3) for k in (0, 1)]
    return result, rows


def report(nets: Networks, bank: SpeechBank, folder: Path, clips: int = 12, most_frames: int = 1000) -> dict[str, Any]:
    """Measures of all cases over `clips` clips, at most `most_frames` frames of each. Writes `sheet.png`."""
    results, rows = dict[str, Any](), list[Tensor]()
    for case in CASES:
        with torch.inference_mode():
            results[case.name], shown = case_numbers(nets, bank, case, clips, most_frames)
        rows += shown
        print(f"  {case.name}: {results[case.name]}", flush=True)
    write_sheet(rows, folder / "sheet.png")
    return results


def write_sheet(rows: Sequence[Tensor], path: Path) -> None:
    """Rows of equal size `(3, h, w)` in [-1, 1] below one another, at half size."""
    sheet = (torch.cat(list(rows), 1).permute(1, 2, 0).float().cpu().numpy() * 127.5 + 127.5).clip(0, 255)
    half = cv2.resize(sheet.astype(np.uint8), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), half[..., ::-1])
