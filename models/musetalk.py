"""MuseTalk's UNet and VAE, in diffusers' own classes: avatar latents and feature windows → face crops.

One pass of the UNet inpaints the masked lower half of a face in latent space (Zhang et al. 2024), without diffusion.
`models/musetalk_openvino.py` is the fast twin for CPUs, `models/musetalk_cuda.py` for CUDA.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn

from models.errors import InputError, WeightsError
from models.runtime.tensors import as_tensor
from models.types import CROP_PX, LATENT_PX, WINDOW_TOKENS, UInt8
from models.weights.loading import build_module, load_state_dict, read_json
from models.weights.vae_files import modern_vae_keys, vae_files, vae_fingerprint

POSITION_BASE = 10_000.0  # of the sinusoidal positional encoding (Vaswani et al. 2017; MuseTalk's PositionalEncoding)
LATENT_CHANNELS = 4
UNET_CHANNELS = 2 * LATENT_CHANNELS  # masked face first, then reference
MAX_BATCH = 32  # faces per call of the VAE or the UNet: limits memory for any input
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}

Array = Any  # numpy array or torch tensor


def position_code(tokens: int, width: int) -> torch.Tensor:
    """Return the sinusoidal positional encoding, float32 `(tokens, width)`: sine in even columns, cosine in odd."""
    position = torch.arange(tokens, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(POSITION_BASE) / width))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=2).flatten(1)


class Generator(nn.Module):  # type: ignore[misc]
    """The UNet with positional encoding and time step 0.

    Input latents `(n, 8, 32, 32)`, windows `(n, 50, 384)` → scaled latents `(n, 4, 32, 32)`.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        code = position_code(WINDOW_TOKENS, int(unet.config.cross_attention_dim))
        self.register_buffer("positions", code.to(unet.conv_in.weight.device), persistent=False)

    def forward(self, latents: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        windows = (windows.float() + self.positions).to(latents.dtype)  # (n, 50, 384)
        timestep = torch.zeros(1, dtype=torch.long, device=latents.device)
        return self.unet(latents, timestep, encoder_hidden_states=windows, return_dict=False)[0]


class Decoder(nn.Module):  # type: ignore[misc]
    """The VAE's decoder: scaled latents `(n, 4, 32, 32)` → RGB in [0, 255], float `(n, 256, 256, 3)`, unrounded."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return to_faces(self.vae.decode(latents / self.scaling_factor, return_dict=False)[0])


class ByteDecoder(Decoder):
    """The same, rounded to nearest: RGB uint8 `(n, 256, 256, 3)`."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return super().forward(latents).round().to(torch.uint8)


class MuseTalk:
    """A loaded UNet and VAE. Takes numpy arrays or torch tensors; returns latents as tensors on the device, faces as
    numpy arrays. No method records gradients.

    The VAE is an AutoencoderKL, or an AutoencoderTiny called without its [0, 1] packing of latents (`scale_latents`).
    For both, the UNet works on encoder output × `scaling_factor`, and images are in [-1, 1]. decoder: another
    autoencoder of the same latents, which decodes in place of `vae`. TAESD's latents are Stable Diffusion's after
    scaling and its factor is 1, so it takes the UNet's output unchanged.
    """

    def __init__(
        self, unet: nn.Module, vae: nn.Module, vae_fingerprint: str = "", decoder: nn.Module | None = None
    ) -> None:
        self.unet, self.vae, self.vae_fingerprint = unet, vae, vae_fingerprint
        self._generator = Generator(unet).eval()
        self._decoder = ByteDecoder(vae if decoder is None else decoder).eval()

    @classmethod
    def load(
        cls,
        unet_config: Path | str,
        unet_weights: Path | str,
        vae_dir: Path | str,
        device: Any = "cpu",
        dtype: torch.dtype = torch.float32,
        decoder_dir: Path | str | None = None,
    ) -> Self:
        """Load a MuseTalk-format UNet (`musetalk.json`, `unet.pth` or safetensors) and a diffusers VAE folder.

        decoder_dir: a VAE folder that decodes in place of `vae_dir`, for example TAESD for Stable Diffusion 1's VAE.
        Raises WeightsError for a missing, partial or wrong file; the message names the first wrong keys.
        """
        unet = load_unet(Path(unet_config), Path(unet_weights), device, dtype)
        if decoder_dir is None:
            return cls(unet, load_vae(Path(vae_dir), device, dtype), vae_fingerprint(vae_dir))
        vae, decoder = load_vae(Path(vae_dir), device, dtype), load_vae(Path(decoder_dir), device, dtype)
        vae.decoder = decoder.encoder = None  # never run: 50 M parameters of a Stable Diffusion VAE
        return cls(unet, vae, vae_fingerprint(vae_dir), decoder)

    @property
    def decoder(self) -> nn.Module:
        """The autoencoder that decodes."""
        return self._decoder.vae

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    def encode_reference(self, faces_rgb: Array) -> torch.Tensor:
        """Encode face crops, RGB uint8 `(n, 256, 256, 3)`, to the UNet's input latents `(n, 8, 32, 32)`.

        The first four channels are the masked face (lower half black before normalisation, so −1 after it), the last
        four the whole face. The mode of the KL encoder's distribution is used, so that latents are the same in every
        preparation. Raises InputError.
        """
        return encode_reference(self.vae, faces_rgb)

    def predict(self, latents: Array, windows: Array) -> torch.Tensor:
        """Predict scaled face latents `(n, 4, 32, 32)` from latents `(n, 8, 32, 32)` and windows `(n, 50, 384)`.

        Raises InputError.
        """
        latents, windows = self._pair(latents, windows)
        with torch.inference_mode():
            chunks = [
                self._generator(
                    z.to(self.device, self.dtype, memory_format=torch.channels_last),
                    w.to(self.device, torch.float32),
                )
                for z, w in zip(latents.split(MAX_BATCH), windows.split(MAX_BATCH), strict=True)
            ]
        return torch.cat(chunks).contiguous()

    def decode(self, latents: Array) -> UInt8:
        """Decode scaled latents `(n, 4, 32, 32)` to face crops, RGB uint8 `(n, 256, 256, 3)`, rounded to nearest.

        Raises InputError.
        """
        latents = _tensor(latents, (LATENT_CHANNELS, LATENT_PX, LATENT_PX), "latents")
        with torch.inference_mode():
            chunks = [
                self._decoder(z.to(self.device, self.dtype, memory_format=torch.channels_last))
                for z in latents.split(MAX_BATCH)
            ]
        return np.ascontiguousarray(torch.cat(chunks).cpu().numpy())

    def generate(self, latents: Array, windows: Array) -> UInt8:
        """Return `decode(predict(latents, windows))`: face crops, RGB uint8 `(n, 256, 256, 3)`."""
        return self.decode(self.predict(latents, windows))

    def _pair(self, latents: Array, windows: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as tensors of equal length. Raises InputError."""
        latents = _tensor(latents, (UNET_CHANNELS, LATENT_PX, LATENT_PX), "latents")
        windows = _tensor(windows, (WINDOW_TOKENS, int(self.unet.config.cross_attention_dim)), "feature windows")
        if len(latents) != len(windows):
            raise InputError(f"Got {len(latents)} latents but {len(windows)} windows.", "Pass one of each per frame.")
        return latents, windows


def encode_reference(vae: nn.Module, faces_rgb: Array) -> torch.Tensor:
    """Do `MuseTalk.encode_reference` with the VAE alone: `(n, 256, 256, 3)` → `(n, 8, 32, 32)`. Raises InputError."""
    faces = _tensor(faces_rgb, (CROP_PX, CROP_PX, 3), "face crops")
    if faces.dtype != torch.uint8:
        raise InputError(f"The face crops are {faces.dtype}.", "Pass RGB uint8 images.")
    with torch.inference_mode():
        chunks = [_encode_chunk(vae, chunk) for chunk in faces.split(MAX_BATCH // 2)]
    return torch.cat(chunks)


def _encode_chunk(vae: nn.Module, faces: torch.Tensor) -> torch.Tensor:
    weight = next(vae.parameters())
    image = to_images(faces.to(weight.device))  # (n, 3, 256, 256)
    masked = image.clone()
    masked[:, :, CROP_PX // 2 :] = -1
    both = torch.cat([masked, image]).to(weight.dtype, memory_format=torch.channels_last)  # (2n, 3, 256, 256)
    encoded = vae.encode(both)
    latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()  # (2n, 4, 32, 32)
    return torch.cat((latents * vae.config.scaling_factor).chunk(2), dim=1).contiguous()  # (n, 8, 32, 32)


def to_images(faces: torch.Tensor) -> torch.Tensor:
    """Face crops, RGB uint8 `(n, h, w, 3)`, as the VAE's images, float `(n, 3, h, w)` in [-1, 1]."""
    return faces.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_faces(images: torch.Tensor) -> torch.Tensor:
    """The VAE's images `(n, 3, h, w)` as face crops, RGB in [0, 255], float `(n, h, w, 3)`, unrounded."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)


def load_unet(config_path: Path, weights: Path, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a UNet2DConditionModel with MuseTalk's eight latent channels in and four out. Raises WeightsError."""
    config = read_json(config_path)
    if (config.get("in_channels"), config.get("out_channels")) != (UNET_CHANNELS, LATENT_CHANNELS):
        raise WeightsError(
            f"{config_path} describes a UNet with {config.get('in_channels')} channels in and "
            f"{config.get('out_channels')} out, not {UNET_CHANNELS} and {LATENT_CHANNELS}.",
            "Use the config of a MuseTalk UNet.",
        )
    state = load_state_dict(weights)
    unet = build_module(lambda: UNet2DConditionModel.from_config(config), state, weights, device, dtype)
    return unet.to(memory_format=torch.channels_last)


def load_vae(folder: Path, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load an AutoencoderKL or AutoencoderTiny, by the `_class_name` in the folder's config (default: KL).

    The default `scaling_factor` is the class's own: 0.18215 for KL, 1 for Tiny. Raises WeightsError.
    """
    config_path, weights = vae_files(folder)
    config = read_json(config_path)
    name = config.get("_class_name", "AutoencoderKL")
    if name not in VAE_CLASSES:
        raise WeightsError(f"{folder} contains a {name}.", f"Use one of {', '.join(VAE_CLASSES)}.")
    state = modern_vae_keys(load_state_dict(weights))
    vae = build_module(lambda: VAE_CLASSES[name].from_config(config), state, weights, device, dtype)
    return vae.to(memory_format=torch.channels_last)


def _tensor(value: Array, tail: tuple[int, ...], what: str) -> torch.Tensor:
    """`value` as a tensor `(n, *tail)`. Raises InputError for another shape."""
    tensor = as_tensor(value)
    if tuple(tensor.shape[1:]) != tail or not len(tensor):
        wanted = ", ".join(["n ≥ 1", *map(str, tail)])
        raise InputError(f"The {what} have shape {tuple(tensor.shape)}.", f"Pass ({wanted}).")
    return tensor
