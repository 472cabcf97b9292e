"""MuseTalk on a CPU through OpenVINO: the fast twin of `models/musetalk.py`, numpy in and out.

The UNet and the VAE's decoder run as one compiled network. Once converted it starts from the cache without torch or
diffusers; only encoding references, which avatars need before a session, loads the VAE in torch. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import InputError
from models.runtime.openvino_cache import BATCH_SIZES, CompiledNet, Progress, compile_cached
from models.types import CROP_PX, LATENT_PX, WINDOW_TOKENS, Float32, UInt8
from models.weights.loading import fingerprint, read_json
from models.weights.vae_files import vae_files, vae_fingerprint

_SOURCE = Path(__file__).with_name("musetalk.py")  # builds the modules: a change there changes the networks

Array = Any  # numpy array or CPU torch tensor


class OpenVINOMuseTalk:
    """MuseTalk's contract on OpenVINO, in fp32: latents within 1e-3 of torch's, faces within one grey level."""

    def __init__(
        self,
        unet_config: Path,
        unet_weights: Path,
        vae_dir: Path,
        decoder_dir: Path | None,
        cache_dir: Path | None,
        threads: int,
        batch_sizes: Sequence[int],
        progress: Progress | None,
    ) -> None:
        self.paths = (unet_config, unet_weights, vae_dir)
        self.decoder_dir = decoder_dir or vae_dir
        self.vae_fingerprint = vae_fingerprint(vae_dir)
        self._width = int(read_json(unet_config).get("cross_attention_dim", 0))
        self._fingerprint = fingerprint(unet_config, unet_weights, *vae_files(self.decoder_dir), _SOURCE)
        self._cache_dir, self._threads, self._batch_sizes = cache_dir, threads, tuple(batch_sizes)
        self._progress = progress

    @classmethod
    def load(
        cls,
        unet_config: Path | str,
        unet_weights: Path | str,
        vae_dir: Path | str,
        cache_dir: Path | str | None = None,
        threads: int = 0,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        warm: bool = True,
        progress: Progress | None = None,
        decoder_dir: Path | str | None = None,
    ) -> OpenVINOMuseTalk:
        """The same files as `MuseTalk.load` takes, ready to run.

        cache_dir: where converted networks are kept; None converts anew. threads: 0 lets OpenVINO choose. warm: convert
        and compile now (seconds the first time, about 1.5 s after) and not at the first call. decoder_dir: what decodes
        in place of `vae_dir`'s decoder, see `MuseTalk.load`. Raises WeightsError.
        """
        folder = Path(cache_dir) if cache_dir is not None else None
        paths = (Path(unet_config), Path(unet_weights), Path(vae_dir))
        decoder = Path(decoder_dir) if decoder_dir is not None else None
        engine = cls(*paths, decoder, folder, threads, batch_sizes, progress)
        if warm:
            engine.warm()
        return engine

    def warm(self) -> None:
        """Convert and compile what `generate` needs, and run it once in every batch size."""
        self._generate.warm(self._progress)

    def generate(self, latents: Array, windows: Array) -> UInt8:
        """Input latents `(n, 8, 32, 32)` and windows `(n, 50, 384)` → face crops, RGB uint8 `(n, 256, 256, 3)`."""
        pair = self._pair(latents, windows)  # checked first: the network may have to be compiled
        return _round(self._generate(*pair))

    def predict(self, latents: Array, windows: Array) -> Float32:
        """Input latents `(n, 8, 32, 32)` and windows `(n, 50, 384)` → scaled face latents `(n, 4, 32, 32)`."""
        pair = self._pair(latents, windows)
        return self._predict(*pair)

    def decode(self, latents: Array) -> UInt8:
        """Scaled latents `(n, 4, 32, 32)` → face crops, RGB uint8 `(n, 256, 256, 3)`."""
        checked = _checked(latents, (4, LATENT_PX, LATENT_PX), "latents")
        return _round(self._decode(checked))

    def encode_reference(self, faces_rgb: Array) -> Float32:
        """Face crops, RGB uint8 `(n, 256, 256, 3)` → input latents `(n, 8, 32, 32)`, by the VAE in torch."""
        from models.musetalk import encode_reference

        latents: Float32 = encode_reference(self._torch_vae, faces_rgb).numpy()
        return latents

    def _pair(self, latents: Array, windows: Array) -> tuple[Float32, Float32]:
        latents = _checked(latents, (8, LATENT_PX, LATENT_PX), "latents")
        windows = _checked(windows, (WINDOW_TOKENS, self._width), "feature windows")
        if len(latents) != len(windows):
            raise InputError(f"{len(latents)} latents came with {len(windows)} windows.", "Send one of each a frame.")
        return latents, windows

    @cached_property
    def _torch_vae(self) -> Any:
        from models.musetalk import load_vae

        return load_vae(self.paths[2])

    @cached_property
    def _generate(self) -> CompiledNet:
        def build() -> Any:
            from models.musetalk import FaceGenerator, load_unet, load_vae

            return FaceGenerator(load_unet(*self.paths[:2]), load_vae(self.decoder_dir))

        return self._compiled("musetalk-generate", build, 8, with_windows=True)

    @cached_property
    def _predict(self) -> CompiledNet:
        def build() -> Any:
            from models.musetalk import Generator, load_unet

            return Generator(load_unet(*self.paths[:2]))

        return self._compiled("musetalk-predict", build, 8, with_windows=True)

    @cached_property
    def _decode(self) -> CompiledNet:
        def build() -> Any:
            from models.musetalk import Decoder, load_vae

            return Decoder(load_vae(self.decoder_dir))

        return self._compiled("musetalk-decode", build, 4, with_windows=False)

    def _compiled(self, name: str, build: Any, channels: int, with_windows: bool) -> CompiledNet:
        examples = [np.zeros((2, channels, LATENT_PX, LATENT_PX), np.float32)]
        if with_windows:
            examples.append(np.zeros((2, WINDOW_TOKENS, self._width), np.float32))
        return compile_cached(
            name,
            build,
            examples,
            self._fingerprint,
            self._cache_dir,
            self._threads,
            self._batch_sizes,
            progress=self._progress,
        )


def _round(image: Float32) -> UInt8:
    """RGB in [0, 255], float `(n, 256, 256, 3)` → uint8, to nearest."""
    assert image.shape[1:] == (CROP_PX, CROP_PX, 3), image.shape
    return np.rint(image, out=image).astype(np.uint8)


def _checked(value: Array, tail: tuple[int, ...], what: str) -> Float32:
    """`value` as float32 `(n, *tail)`. Raises InputError for another shape."""
    array = np.ascontiguousarray(value, np.float32)
    if array.shape[1:] != tail or not len(array):
        wanted = ", ".join(["n ≥ 1", *map(str, tail)])
        raise InputError(f"The {what} have shape {array.shape}.", f"Send ({wanted}).")
    return array
