"""Trains the embedded UNet and VAE: one command, one GPU, under 25 minutes.

    python -m training.train OUT                     # all steps, one after another
    python -m training.train OUT --minutes 9         # stops after 9 minutes; the same command resumes
    python -m training.train OUT --tiny              # a few steps on the CPU, as a test of the code
    python -m training.train OUT --vae DIR --unet FILE --unet-rate 8e-4 --unet-steps 2000       # fine-tune the UNet

Steps: speech (CPU cores) → Whisper windows → rendered pairs → VAE → mouth reader → UNet → report. Speech and networks
are kept in OUT; each run makes windows and pairs again, from fixed seeds. The result is OUT/vae and OUT/musetalk.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file

from models.musetalk import load_vae
from training import speech
from training.data import PairRenderer, Pairs, SpeechBank, render_pairs, speech_bank
from training.loop import OutOfTime
from training.nets import MouthReader
from training.report import Networks, report
from training.stages import Device, UNetLosses, train_reader, train_unet, train_vae

WHISPER = Path(__file__).parent.parent / "models" / "embedded" / "whisper"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Amounts of data and numbers of steps. The defaults made the shipped weights."""

    clips: int = 4000
    pairs: int = 80_000
    render_batch: int = 64
    vae_steps: int = 5000
    vae_batch: int = 48
    reader_steps: int = 1200
    reader_batch: int = 128
    unet_steps: int = 6000
    unet_batch: int = 128
    seed: int = 0
    report_clips: int = 12
    report_frames: int = 1000


TINY = Recipe(clips=8, pairs=12, render_batch=4, vae_steps=3, vae_batch=4, reader_steps=3, reader_batch=4, unet_steps=3,
              unet_batch=4, report_clips=1, report_frames=12)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Start:
    """Initial weights instead of random ones. A given VAE is not trained further."""

    vae: Path | None = None
    unet: Path | None = None
    unet_rate: float = 1.5e-3


class Training:
    """The steps in order. A step is skipped if its result is already in the folder."""

    def __init__(
        self, folder: Path, recipe: Recipe, device: Device, deadline_s: float, losses: UNetLosses, start: Start
    ) -> None:
        self.folder, self.recipe, self.device, self.losses, self.start = folder, recipe, device, losses, start
        self.deadline_s, self.started_s = deadline_s, time.monotonic()
        self.seconds: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, step: str, started_s: float, what: str) -> None:
        self.seconds[step] = round(time.monotonic() - started_s, 1)
        print(f"[{time.monotonic() - self.started_s:5.0f} s] {step}: {what} in {self.seconds[step]} s", flush=True)

    def run(self) -> dict[str, Any]:
        """Run all steps. Raises OutOfTime at the deadline."""
        torch.manual_seed(self.recipe.seed)
        bank = self.bank()
        pairs = self.pairs(bank)
        vae = self.vae(pairs)
        reader = self.reader(pairs, bank, vae)
        unet = self.unet(pairs, bank, vae, reader)
        started_s = time.monotonic()
        numbers = report(
            Networks(vae, unet, reader, self.device.name),
            bank,
            self.folder,
            self.recipe.report_clips,
            self.recipe.report_frames,
        )
        self.say("report", started_s, "done")
        log = {
            "recipe": asdict(self.recipe),
            "losses": asdict(self.losses),
            "seconds": self.seconds,
            "held_out": numbers,
        }
        (self.folder / "log.json").write_text(json.dumps(log, indent=2) + "\n")
        return log

    def bank(self) -> SpeechBank:
        path, started_s = self.folder / "speech.npz", time.monotonic()
        if not path.exists():
            speech.save(speech.build(self.recipe.clips, self.recipe.seed), path)
        clips = speech.load(path)
        self.say("speech", started_s, f"{len(clips)} clips, {sum(len(c.mouth) for c in clips) / speech.FPS:,.0f} s")
        started_s = time.monotonic()
        bank = speech_bank(clips, WHISPER, self.device.name)
        self.say("windows", started_s, f"{len(bank.mouth):,} frames")
        return bank

    def pairs(self, bank: SpeechBank) -> Pairs:
        started_s = time.monotonic()
        renderer = PairRenderer(bank, self.recipe.seed + 1, self.device.name)
        pairs = render_pairs(renderer, self.recipe.pairs, self.recipe.render_batch)
        self.say("pairs", started_s, f"{len(pairs):,} pairs")
        return pairs

    def vae(self, pairs: Pairs) -> AutoencoderTiny:
        started_s, r = time.monotonic(), self.recipe
        if self.start.vae is not None:
            vae = self.device.place(load_vae(self.start.vae))
            return vae.requires_grad_(False)
        vae = train_vae(pairs, self.device, r.vae_steps, r.vae_batch, self.folder / "vae.ckpt", self.deadline_s)
        vae = vae.requires_grad_(False)
        save_vae(vae, self.folder / "vae")
        self.say("vae", started_s, f"scaling factor {vae.config.scaling_factor:.4f}")
        return vae

    def reader(self, pairs: Pairs, bank: SpeechBank, vae: AutoencoderTiny) -> MouthReader:
        started_s, r, path = time.monotonic(), self.recipe, self.folder / "reader.ckpt"
        reader: MouthReader = train_reader(
            pairs, bank, vae, self.device, r.reader_steps, r.reader_batch, path, self.deadline_s
        )
        self.say("reader", started_s, f"{r.reader_steps} steps")
        reader.requires_grad_(False)
        return reader

    def unet(self, pairs: Pairs, bank: SpeechBank, vae: AutoencoderTiny, reader: MouthReader) -> UNet2DConditionModel:
        started_s, r, path = time.monotonic(), self.recipe, self.folder / "unet.ckpt"
        unet = train_unet(
            pairs, bank, vae, reader, self.device, r.unet_steps, r.unet_batch, path, self.deadline_s, self.losses,
            self.start.unet_rate, r.seed + 3, self.start.unet,
        )  # fmt: skip
        save_unet(unet, self.folder / "musetalk")
        self.say("unet", started_s, f"{sum(p.numel() for p in unet.parameters()):,} parameters")
        return unet.requires_grad_(False)


def save_vae(vae: AutoencoderTiny, folder: Path) -> None:
    """Write a diffusers folder with float16 weights."""
    _save(vae, folder / "config.json", folder / "diffusion_pytorch_model.safetensors")


def save_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write MuseTalk's two files with float16 weights."""
    _save(unet, folder / "musetalk.json", folder / "unet.safetensors")


def _save(net: Any, config: Path, weights: Path) -> None:
    config.parent.mkdir(parents=True, exist_ok=True)
    skipped = {"block_out_channels"} if isinstance(net, AutoencoderTiny) else set()  # derived from two others there
    plain = {k: v for k, v in net.config.items() if not k.startswith("_") and k not in skipped}
    written = {"_class_name": type(net).__name__, **plain}
    config.write_text(json.dumps(written, indent=2) + "\n")
    state = {key: value.detach().half().cpu().contiguous() for key, value in net.state_dict().items()}
    save_file(state, weights, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0, help="stop after this time and keep the state")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything, on the CPU")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=None, help=f"default {default}")
    for name, weight in asdict(UNetLosses()).items():
        parser.add_argument(f"--{name}-weight", type=float, default=weight)
    parser.add_argument("--vae", type=Path, default=None, help="use this VAE folder and train no VAE")
    parser.add_argument("--unet", type=Path, default=None, help="start from these UNet weights")
    parser.add_argument("--unet-rate", type=float, default=1.5e-3, help="highest learning rate")
    arguments = vars(parser.parse_args())
    chosen = {k: arguments[k] for k in asdict(Recipe()) if arguments[k] is not None}
    recipe = replace(TINY if arguments["tiny"] else Recipe(), **chosen)
    losses = UNetLosses(**{name: arguments[f"{name}_weight"] for name in asdict(UNetLosses())})
    device = Device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    start = Start(arguments["vae"], arguments["unet"], arguments["unet_rate"])
    deadline_s = time.monotonic() + 60 * arguments["minutes"]
    try:
        Training(arguments["out"], recipe, device, deadline_s, losses, start).run()
    except OutOfTime as stop:
        print(f"Out of time at {stop}. Run the same command again to continue.")


if __name__ == "__main__":
    main()
