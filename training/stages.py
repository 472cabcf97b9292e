"""Steps 4 to 6 of training: the VAE, the mouth reader, the UNet. Each function returns the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from models.musetalk import position_code
from models.types import CROP_PX, LATENT_PX, WHISPER_WIDTH, WINDOW_TOKENS
from models.weights.loading import load_state_dict
from training.data import Pairs, SpeechBank, lower_half_black, to_signed
from training.loop import Fit
from training.losses import image_loss, image_weight, latent_weight, slope_loss, weighted_l1
from training.nets import MouthReader, make_unet, make_vae, readings_of

LATENT_NOISE = 0.05  # added to the decoder's input, since fp16 and the UNet give slightly inexact latents
SQUARED_WEIGHT = 4.0  # of the squared error beside L1, for few pixels with large errors: a fifth of the loss
MASKED_SHARE = 0.12  # share of the VAE's images whose lower half is black, as in the UNet's masked input
WINDOW_NOISE, REFERENCE_NOISE = 0.03, 0.03
CONTEXT_ROWS = 2  # latent rows above the lower half that are decoded with it, so that no seam appears in the middle
LOWER = CROP_PX // 2


@dataclass(frozen=True, slots=True)
class Device:
    """The device, with its precision: bfloat16 on a GPU, float32 on a CPU."""

    name: str

    def autocast(self) -> Any:
        return torch.autocast(self.name, dtype=torch.bfloat16, enabled=self.name == "cuda")

    def place(self, net: nn.Module) -> Any:
        return net.to(self.name, memory_format=torch.channels_last)

    def pick(self, count: int, batch: int) -> Tensor:
        return torch.randint(count, (batch,), device=self.name)


def train_vae(pairs: Pairs, device: Device, steps: int, batch: int, path: Path, deadline_s: float) -> AutoencoderTiny:
    """The autoencoder. Its scaling factor is set so that latents of faces have a standard deviation of 1."""
    torch.manual_seed(1)
    vae = device.place(make_vae())
    fit = Fit("vae", vae, steps, 2e-3, path)
    weight = image_weight(device.name)

    def loss_of(step: int) -> Tensor:
        picked = device.pick(len(pairs), batch)
        half = batch // 2
        images = to_signed(torch.cat([pairs.target[picked[:half]], pairs.reference[picked[half:]]]))
        masked = max(1, int(batch * MASKED_SHARE))
        images[:masked] = lower_half_black(images[:masked])
        images = images.contiguous(memory_format=torch.channels_last)  # (b, 3, 256, 256)
        with device.autocast():
            latents = vae.encoder(images)  # (b, 4, 32, 32)
            decoded = vae.decoder(latents + LATENT_NOISE * torch.randn_like(latents)).float()
        small = 1e-3 * (latents.float() ** 2).mean() + 1e-2 * latents.float().mean() ** 2
        squared = SQUARED_WEIGHT * (weight * (decoded - images) ** 2).mean()
        return image_loss(decoded, images, weight) + squared + small

    trained = fit.run(loss_of, deadline_s)
    with torch.no_grad():
        latents = trained.encoder(to_signed(pairs.target[:256]))
    trained.register_to_config(scaling_factor=1 / latents.std().item())
    return trained


def train_reader(
    pairs: Pairs, bank: SpeechBank, vae: AutoencoderTiny, device: Device, steps: int, batch: int, path: Path,
    deadline_s: float,
) -> MouthReader:  # fmt: skip
    """The mouth reader, trained on rendered faces and on the same faces after the VAE."""
    torch.manual_seed(2)
    reader = device.place(MouthReader())
    fit = Fit("reader", reader, steps, 1e-3, path, averaging=0.998)

    def loss_of(step: int) -> Tensor:
        picked = device.pick(len(pairs), batch)
        half = batch // 2
        images = to_signed(torch.cat([pairs.target[picked[:half]], pairs.reference[picked[half:]]]))
        mouth = torch.cat([bank.mouth[pairs.frame[picked[:half]]], pairs.reference_mouth[picked[half:]]])
        with torch.no_grad(), device.autocast():
            coded = batch // 4
            images[:coded] = vae.decoder(vae.encoder(images[:coded])).float()
        images = images + 0.03 * torch.randn_like(images)
        with device.autocast():
            read = reader(images[:, :, LOWER:].contiguous(memory_format=torch.channels_last))
        return (read.float() - readings_of(mouth)).abs().mean()

    trained: MouthReader = fit.run(loss_of, deadline_s)
    return trained


@dataclass(frozen=True, slots=True, eq=False)
class PairLatents:
    """Scaled latents, float16 `(n, 4, 32, 32)` each: the target, and the product's two inputs from the reference."""

    target: Tensor
    masked: Tensor
    reference: Tensor


def encode_pairs(pairs: Pairs, vae: AutoencoderTiny, device: Device, batch: int = 256) -> PairLatents:
    """The references as `MuseTalk.encode_reference` encodes them, and the latents of the targets."""

    def latents(images: Tensor, mask: bool) -> Tensor:
        out = torch.empty((len(images), 4, LATENT_PX, LATENT_PX), dtype=torch.float16, device=device.name)
        for first in range(0, len(images), batch):
            faces = to_signed(images[first : first + batch])
            faces = lower_half_black(faces) if mask else faces
            with torch.no_grad(), torch.autocast(device.name, dtype=torch.float16, enabled=device.name == "cuda"):
                encoded = vae.encoder(faces.contiguous(memory_format=torch.channels_last))
            out[first : first + batch] = (encoded.float() * vae.config.scaling_factor).half()
        return out

    return PairLatents(latents(pairs.target, False), latents(pairs.reference, True), latents(pairs.reference, False))


@dataclass(frozen=True, slots=True)
class UNetLosses:
    """Weights of the losses of the UNet."""

    pixels: float = 2.0
    reading: float = 0.5
    slope: float = 0.5


def train_unet(
    pairs: Pairs, bank: SpeechBank, vae: AutoencoderTiny, reader: MouthReader, device: Device, steps: int, batch: int,
    path: Path, deadline_s: float, weights: UNetLosses = UNetLosses(), rate: float = 1.5e-3, seed: int = 3,
    start: Path | None = None,
) -> UNet2DConditionModel:  # fmt: skip
    """The UNet. Losses: L1 of latents; pixels and edges of the decoded lower half; the mouth reader's readings of it.

    start: initial weights instead of random ones.
    """
    torch.manual_seed(seed)
    unet = make_unet()
    if start is not None:
        unet.load_state_dict(load_state_dict(start))
    unet = device.place(unet)
    fit = Fit("unet", unet, steps, rate, path)
    if fit.done:
        return fit.average  # type: ignore[return-value]
    latents = encode_pairs(pairs, vae, device)
    in_latents, in_pixels = latent_weight(device.name), image_weight(device.name, mouth=4.0)[:, :, LOWER:]
    code = position_code(WINDOW_TOKENS, WHISPER_WIDTH).to(device.name)
    zero = torch.zeros(1, dtype=torch.long, device=device.name)
    edge, scale = LATENT_PX // 2 - CONTEXT_ROWS, 1 / vae.config.scaling_factor

    def loss_of(step: int) -> Tensor:
        i = device.pick(len(pairs), batch)
        given = torch.cat([latents.masked[i], latents.reference[i]], 1).float()  # (b, 8, 32, 32)
        given = (given + REFERENCE_NOISE * torch.randn_like(given)).contiguous(memory_format=torch.channels_last)
        heard = bank.windows(pairs.frame[i])  # (b, 50, 384)
        heard = heard + code + WINDOW_NOISE * torch.randn_like(heard)
        truth = to_signed(pairs.target[i, :, LOWER:])  # (b, 3, 128, 256)
        with device.autocast():
            made = unet(given, zero, heard, return_dict=False)[0]
            lower = vae.decoder(made[:, :, edge:] * scale)[:, :, 8 * CONTEXT_ROWS :]
            read = reader(lower.contiguous(memory_format=torch.channels_last)).float()
            with torch.no_grad():
                wanted = reader(truth.contiguous(memory_format=torch.channels_last)).float()
        loss = weighted_l1(made.float(), latents.target[i].float(), in_latents)
        loss = loss + weights.pixels * image_loss(lower.float(), truth, in_pixels)
        return loss + weights.reading * (read - wanted).abs().mean() + weights.slope * slope_loss(read, wanted)

    trained: UNet2DConditionModel = fit.run(loss_of, deadline_s)
    return trained
