"""Trains the small restorer on the synthetic presenter. One command, one GPU:

    python -m training.restorer --vae models/embedded/vae --out .train/restorer --seconds 200 --device cuda:0

It writes restorer.safetensors (fp16, for models/embedded/restorer/), log.json and sheet.png to `--out`. The same
command resumes from the last checkpoint; `--seconds` counts all runs together. `--device cpu --pictures 40 --seconds
300` trains a weaker net without a GPU.

A clean face is drawn at 512² and degraded like a face from LipSync (training/degradation.py); the net learns the
inverse. Two views of each face with different noise must give equal results, which reduces flicker.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.restore.small import load_graph
from models.restore.small_net import CELL_OUT, SmallRestorerNet
from models.types import RESTORED_PX
from training.degradation import VAE, Degradation
from training.restorer_faces import Faces, portraits
from training.restorer_measures import GREY, Comparison, compare, table, upsample

SEED = 20
HELD_OUT_SEED = 1_000_003
HELD_OUT_FACES = 32
RENDER_SHARE = 0.3  # largest share of the time for drawing faces
PORTRAIT_SHARE = 0.1  # share of a batch: photographs, for other textures than the presenter's
BATCH = 16  # pictures per step, with two views each
LEARNING_RATE = 1.5e-3
EMA = 0.999
ERROR_FLOOR = 1e-6  # 60 dB; a smaller error gains nothing
CHECKPOINT_S = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One training run. `pictures` and `steps` are upper limits (steps 0: no limit); `batch` is in pictures.

    start: initial weights instead of plain bicubic. rate: the highest learning rate. report: whether the net is
    measured on held-out faces at the end.
    """

    out: Path
    vae: Path | None
    device: str = "cuda:0"
    seconds: float = 200.0
    pictures: int = 6000
    steps: int = 0
    batch: int = BATCH
    supersample: int = 2
    rate: float = LEARNING_RATE
    seed: int = SEED
    start: Path | None = None
    report: bool = True


class Batches:
    """A pool of drawn faces, and batches of faces and photographs."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        device, start = settings.device, time.monotonic()
        faces = Faces(device, settings.seed)
        pool: list[Tensor] = []
        while len(pool) * faces.chunk < settings.pictures:
            if pool and time.monotonic() - start > RENDER_SHARE * settings.seconds:
                break
            pool.append((faces.draw(faces.chunk, settings.supersample) * GREY).round().to(torch.uint8))
        self.pool = torch.cat(pool)  # (pictures, 3, 512, 512)
        self.portraits = portraits().to(device)
        self.batch, self.device = settings.batch, device
        self.render_s = time.monotonic() - start
        say(f"{len(self.pool)} faces and {len(self.portraits)} photographs in {self.render_s:.0f} s")

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean pictures `(batch, 3, 512, 512)` in 0..1, and which of them are faces of the pool, bool `(batch,)`."""
        photographs = round(self.batch * PORTRAIT_SHARE) if len(self.portraits) else 0
        room = self.portraits.shape[-1] - RESTORED_PX
        picks = torch.randint(len(self.pool), (self.batch - photographs,), generator=generator)
        pictures = [self.pool[picks.to(self.device)]]
        for _ in range(photographs):
            which, top, left = (
                int(torch.randint(most, (1,), generator=generator)) for most in (len(self.portraits), room, room)
            )
            crop = self.portraits[which, :, top : top + RESTORED_PX, left : left + RESTORED_PX]
            pictures.append(crop[None].flip(-1) if top % 2 else crop[None])
        clean = torch.cat(pictures).float() / GREY
        # photographs only: a VAE shifts the colours of a tinted face back, and the restorer cannot undo that
        gain = 1 + 0.1 * (torch.rand(photographs, 3, 1, 1, generator=generator) - 0.5).to(self.device)
        bias = 0.06 * (torch.rand(photographs, 3, 1, 1, generator=generator) - 0.5).to(self.device)
        faces = self.batch - photographs
        clean[faces:] = (clean[faces:] * gain + bias).clamp(0, 1)
        return clean, torch.arange(self.batch) < faces


def restore(net: SmallRestorerNet, faces: Tensor, low_precision: bool = False) -> Tensor:
    """`(n, 3, 256, 256)` → `(n, 3, 512, 512)`, both in 0..1, not clipped."""
    cells = net.cells(faces * GREY)
    with torch.autocast(faces.device.type, torch.bfloat16, enabled=low_precision):
        correction = net.correction(cells)
    # the bicubic part must stay fp32: bfloat16 has 8 bits for 256 levels
    return F.pixel_shuffle(net.base(cells) + correction.float(), CELL_OUT) / GREY


def loss(restored: Tensor, clean: Tensor) -> Tensor:
    """restored: `(2, n, 3, h, w)`, two views; clean `(n, 3, h, w)`. Decibels + gradient + spectrum + steadiness.

    Decibels (the logarithm of each picture's squared error) give mild and strong degradation equal weight. With the
    squared error itself, strong degradation would dominate.
    """
    target = clean[None].expand_as(restored)
    error = restored - target
    decibels = error.square().mean((2, 3, 4)).add(ERROR_FLOOR).log().mean()
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    spectrum = _amplitudes(restored).sub(_amplitudes(target)).abs().mean()
    steadiness = (restored[0] - restored[1]).abs().mean()
    total: Tensor = 0.01 * decibels + 0.25 * gradient + 0.01 * spectrum + 0.2 * steadiness
    return total


def _amplitudes(pictures: Tensor) -> Tensor:
    """log(1 + |Fourier transform|) of brightness: the amount of detail, independent of its position."""
    return torch.fft.rfft2(pictures.mean(-3), norm="ortho").abs().log1p()


class Trainer:
    """The net, the running mean of its weights and the optimiser, with a checkpoint in safetensors (no pickle)."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.net = SmallRestorerNet().to(settings.device, memory_format=torch.channels_last)
        if settings.start:
            self.net.load_state_dict(load_graph(settings.start).net.state_dict())
        self.mean = copy.deepcopy(self.net).requires_grad_(False)
        self.parameters = list(self.net.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=1e-4, betas=(0.9, 0.99))
        self.step, self.elapsed_s = 0, 0.0
        self.low_precision = settings.device.startswith("cuda")

    @property
    def path(self) -> Path:
        return self.settings.out / "checkpoint.safetensors"

    @property
    def progress(self) -> float:
        """0 at the start, 1 when done."""
        by_steps = self.step / self.settings.steps if self.settings.steps else 0.0
        return max(self.elapsed_s / self.settings.seconds, by_steps)

    def save(self) -> None:
        """Write everything that `resume` needs, atomically."""
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state |= {f"mean.{name}": value for name, value in self.mean.state_dict().items()}
        for index, parameter in enumerate(self.parameters):
            for name, value in self.optimiser.state[parameter].items():
                state[f"adam.{index}.{name}"] = value
        state["progress"] = torch.tensor([self.step, self.elapsed_s], dtype=torch.float64)
        partial = self.path.with_suffix(".part")
        save_file({name: value.detach().contiguous().cpu() for name, value in state.items()}, partial)
        partial.replace(self.path)

    def resume(self) -> None:
        """Load the checkpoint in `out`, if there is one."""
        if not self.path.is_file():
            return
        state = load_file(self.path)
        for prefix, net in (("net.", self.net), ("mean.", self.mean)):
            net.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        moments: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(self.parameters))}
        for name, value in state.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                moments[int(index)][key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        step, self.elapsed_s = state["progress"].tolist()
        self.step = int(step)

    def train_step(self, views: Tensor, clean: Tensor) -> float | None:
        """One step. Returns the loss at every hundredth step, because reading it waits for the GPU."""
        rate = self.settings.rate * min(1.0, (self.step + 1) / 100) * _cosine(self.progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        restored = restore(self.net, views.flatten(0, 1), self.low_precision)
        value = loss(restored.view(2, *clean.shape), clean)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            keep = min(EMA, self.step / (self.step + 20))
            torch._foreach_lerp_(list(self.mean.parameters()), self.parameters, 1 - keep)
        return float(value.detach()) if self.step % 100 == 1 else None


def _cosine(progress: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)) + 1e-3


def train_restorer(settings: Settings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, save and measure. Returns the content of log.json."""
    settings.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings)
    trainer.resume()
    batches = Batches(settings, say)
    if trainer.step == 0:
        trainer.elapsed_s = batches.render_s
    vae = VAE(settings.vae, settings.device) if settings.vae else None
    losses = _train(trainer, batches, vae, say)
    trainer.save()
    weights = {name: value.half().contiguous().cpu() for name, value in trainer.mean.state_dict().items()}
    save_file(weights, settings.out / "restorer.safetensors")
    report = held_out_report(trainer.mean.eval(), vae, settings) if settings.report else {}
    table(report, say)
    log = {
        "steps": trainer.step,
        "seconds": round(trainer.elapsed_s, 1),
        "pictures": len(batches.pool),
        "batch": settings.batch,
        "seed": settings.seed,
        "device": torch.cuda.get_device_name(settings.device) if "cuda" in settings.device else settings.device,
        "torch": torch.__version__,
        "held_out": {name: row.to_dict() for name, row in report.items()},
        "loss": losses,
    }
    (settings.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    return log


def _train(trainer: Trainer, batches: Batches, vae: VAE | None, say: Callable[[str], None]) -> list[tuple[int, float]]:
    """Train until the time or the number of steps is reached. Returns (step, loss) pairs."""
    settings = trainer.settings
    generator = torch.Generator().manual_seed(settings.seed + 1 + trainer.step)
    noise = torch.Generator(settings.device).manual_seed(settings.seed + 1 + trainer.step)
    degrade = Degradation(vae, noise, settings.device)
    before_s, start, saved = trainer.elapsed_s, time.monotonic(), time.monotonic()
    losses: list[tuple[int, float]] = []
    while trainer.progress < 1:
        clean, faces = batches.draw(generator)
        with torch.no_grad():
            views = degrade(clean, faces, views=2)
        value = trainer.train_step(views, clean)
        trainer.elapsed_s = before_s + time.monotonic() - start
        if value is not None:
            losses.append((trainer.step, round(value, 5)))
            say(f"[{trainer.elapsed_s:.0f} s] step {trainer.step} loss {value:.4f}")
        if time.monotonic() - saved > CHECKPOINT_S:
            trainer.save()
            saved = time.monotonic()
    return losses


def held_out_report(net: SmallRestorerNet, vae: VAE | None, settings: Settings) -> dict[str, Comparison]:
    """Measure the net on faces of a held-out seed: the presenter and new people. Writes sheet.png."""
    report: dict[str, Comparison] = {}
    rows: list[Tensor] = []
    count = HELD_OUT_FACES if settings.device.startswith("cuda") else 4
    with torch.inference_mode():
        for name, share in (("presenter", 1.0), ("new people", 0.0)):
            clean = Faces(settings.device, HELD_OUT_SEED, share).draw(count)
            generator = torch.Generator(settings.device).manual_seed(HELD_OUT_SEED)
            views = Degradation(vae, generator, settings.device)(clean, views=2)
            restored = torch.stack([restore(net, view).clamp(0, 1) for view in views])
            report[name] = compare(views, restored, clean)
            rows += [torch.cat([upsample(views[0][i : i + 1])[0], restored[0][i], clean[i]], -1) for i in range(2)]
    sheet = (torch.cat(rows, -2).permute(1, 2, 0) * GREY).round().byte().cpu().numpy()
    cv2.imwrite(str(settings.out / "sheet.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return report


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train the small face restorer on the synthetic presenter.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log, sheet and checkpoint")
    parser.add_argument("--vae", type=Path, help="AutoencoderTiny folder that degrades the faces (default: none)")
    parser.add_argument("--start", type=Path, help="initial weights (default: plain bicubic)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=200.0, help="training time, drawing included (default 200)")
    parser.add_argument("--pictures", type=int, default=6000, help="faces to draw at most (default 6000)")
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps (default: by time only)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"pictures per step (default {BATCH})")
    parser.add_argument("--supersample", type=int, default=2, help="supersampling of faces; 1 is four times as fast")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--no-report", dest="report", action="store_false", help="skip the measurement at the end")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    train_restorer(Settings(**vars(args)))


if __name__ == "__main__":
    main()
