"""MuseTalk on a CPU with OpenVINO: the fast twin of `models/musetalk.py`, with numpy arrays in and out.

The UNet, the VAE's decoder and a tiny VAE's encoder are compiled networks. After the first conversion they start from
the cache without importing torch or diffusers. The encoder of a KL VAE runs in torch: OpenVINO's latents would differ
by several float16 steps.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.openvino_faces import OpenVINOFaces
from models.runtime.openvino_cache import CompiledNet, Progress, compile_cached, has_fast_bfloat16
from models.types import CROP_PX, LATENT_PX, WINDOW_TOKENS, Float32, UInt8
from models.weights.loading import fingerprint, read_json
from models.weights.vae_files import vae_files, vae_fingerprint

_SOURCE = Path(__file__).with_name("musetalk.py")  # builds the modules, so it is part of the cache's fingerprint

UNET_SIZES = (1, 2, 4)  # frames at a time; two streams of 4 take 9 % less processor time than of 2
DECODER_SIZES = (1,)  # more would not fit the processor's cache

Array = Any  # numpy array or CPU torch tensor


class OpenVINOMuseTalk:
    """The methods of `models.musetalk.MuseTalk` on OpenVINO.

    In float32, latents are within 1e-3 of torch's (relative to the largest), faces within one grey level. In bfloat16,
    faces differ by 0.2 grey levels on average, 99.9 % of the values by at most 2; latents of references stay float32.
    """

    def __init__(
        self,
        unet_config: Path,
        unet_weights: Path,
        vae_dir: Path,
        decoder_dir: Path | None,
        cache_dir: Path | None,
        threads: int,
        progress: Progress | None,
        precision: str,
    ) -> None:
        self.paths = (unet_config, unet_weights, vae_dir)
        self.decoder_dir = decoder_dir or vae_dir
        self.vae_fingerprint = vae_fingerprint(vae_dir)
        self._width = int(read_json(unet_config).get("cross_attention_dim", 0))
        self._fingerprint = fingerprint(unet_config, unet_weights, *vae_files(self.decoder_dir), _SOURCE)
        self._cache_dir, self._threads = cache_dir, threads
        self._progress, self._precision = progress, precision

    @classmethod
    def load(
        cls,
        unet_config: Path | str,
        unet_weights: Path | str,
        vae_dir: Path | str,
        cache_dir: Path | str | None = None,
        threads: int = 0,
        warm: bool = True,
        progress: Progress | None = None,
        decoder_dir: Path | str | None = None,
        precision: str = "float32",
    ) -> OpenVINOMuseTalk:
        """Load the same files as `MuseTalk.load`.

        cache_dir: holds converted networks; None converts at every start. threads: 0 lets OpenVINO choose. warm:
        convert and compile now (some seconds the first time, about 1.5 s later), not at the first call. progress:
        called while converting. decoder_dir: decodes in place of `vae_dir`, see `MuseTalk.load`. precision: of the UNet
        and the decoder, `float32`, `bfloat16`, or `auto`: bfloat16 where the processor multiplies such numbers, which
        takes less than half of the time. Raises WeightsError.
        """
        folder = Path(cache_dir) if cache_dir is not None else None
        paths = (Path(unet_config), Path(unet_weights), Path(vae_dir))
        decoder = Path(decoder_dir) if decoder_dir is not None else None
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16() else "float32"
        engine = cls(*paths, decoder, folder, threads, progress, precision)
        if warm:
            engine.warm()
        return engine

    def warm(self) -> None:
        """Convert and compile the UNet and the decoder, and run them once in every batch size."""
        self._predict.warm(self._progress)
        self._decode.warm(self._progress)

    def generate(self, latents: Array, windows: Array) -> UInt8:
        """Generate face crops, RGB uint8 `(n, 256, 256, 3)`, from latents `(n, 8, 32, 32)` and windows `(n, 50, 384)`.

        Raises InputError.
        """
        return self.decode(self.predict(latents, windows))

    def predict(self, latents: Array, windows: Array) -> Float32:
        """Predict scaled face latents `(n, 4, 32, 32)`, see `MuseTalk.predict`. Raises InputError."""
        pair = self._pair(latents, windows)
        return self._predict(*pair)

    def decode(self, latents: Array) -> UInt8:
        """Decode scaled latents `(n, 4, 32, 32)` to face crops, RGB uint8 `(n, 256, 256, 3)`. Raises InputError."""
        checked = _checked(latents, (4, LATENT_PX, LATENT_PX), "latents")
        faces: UInt8 = self._decode(checked)
        return faces

    def encode_reference(self, faces_rgb: Array) -> Float32:
        """Encode face crops, RGB uint8 `(n, 256, 256, 3)`, to the UNet's input latents `(n, 8, 32, 32)`.

        See `MuseTalk.encode_reference`. Raises InputError.
        """
        faces = np.asarray(faces_rgb)
        if faces.dtype != np.uint8:
            raise InputError(f"The face crops are {faces.dtype}.", "Pass RGB uint8 images.")
        _check_shape(faces, (CROP_PX, CROP_PX, 3), "face crops")
        if _is_tiny(self.paths[2]):
            return self._encode(faces)
        from models.musetalk import encode_reference

        latents: Float32 = encode_reference(self.vae, faces).numpy()
        return latents

    def _pair(self, latents: Array, windows: Array) -> tuple[Float32, Float32]:
        latents = _checked(latents, (8, LATENT_PX, LATENT_PX), "latents")
        windows = _checked(windows, (WINDOW_TOKENS, self._width), "feature windows")
        if len(latents) != len(windows):
            raise InputError(f"Got {len(latents)} latents but {len(windows)} windows.", "Pass one of each per frame.")
        return latents, windows

    @cached_property
    def recorded(self) -> OpenVINOFaces | None:
        """Generates the faces of avatars, with a cropped decoder; None where the decoder cannot be cropped exactly."""
        return OpenVINOFaces(self.predict, self._decode) if _is_tiny(self.decoder_dir) else None

    @cached_property
    def vae(self) -> Any:
        """The VAE in torch, which encodes and measures where OpenVINO does not."""
        from models.musetalk import load_vae

        return load_vae(self.paths[2])

    @cached_property
    def _encode(self) -> CompiledNet:
        def build() -> Any:
            from models.musetalk import load_vae
            from models.reference_encoder import ReferenceEncoder

            return ReferenceEncoder(load_vae(self.paths[2]))

        vae = fingerprint(*vae_files(self.paths[2]), _SOURCE, _SOURCE.with_name("reference_encoder.py"))
        example = np.zeros((2, CROP_PX, CROP_PX, 3), np.uint8)
        return compile_cached(  # one face at a time: more would not fit the processor's cache
            "musetalk-reference", build, [example], vae, self._cache_dir, self._threads, (1,), progress=self._progress
        )

    @cached_property
    def _predict(self) -> CompiledNet:
        def build() -> Any:
            from models.musetalk import Generator, load_unet

            return Generator(load_unet(*self.paths[:2]))

        latents = np.zeros((2, 8, LATENT_PX, LATENT_PX), np.float32)
        windows = np.zeros((2, WINDOW_TOKENS, self._width), np.float32)
        return self._compiled("musetalk-predict", build, UNET_SIZES, latents, windows)

    @cached_property
    def _decode(self) -> CompiledNet:
        def build() -> Any:
            from models.musetalk import ByteDecoder, load_vae

            return ByteDecoder(load_vae(self.decoder_dir))

        return self._compiled(
            "musetalk-decode", build, DECODER_SIZES, np.zeros((2, 4, LATENT_PX, LATENT_PX), np.float32)
        )

    def _compiled(self, name: str, build: Any, sizes: tuple[int, ...], *examples: Float32) -> CompiledNet:
        return compile_cached(
            name,
            build,
            examples,
            self._fingerprint,
            self._cache_dir,
            self._threads,
            sizes,
            progress=self._progress,
            precision=self._precision,
        )


def _is_tiny(vae_dir: Path) -> bool:
    """Whether the folder has a VAE without norms, which can be cropped exactly."""
    return bool(read_json(vae_files(vae_dir)[0]).get("_class_name") == "AutoencoderTiny")


def _checked(value: Array, tail: tuple[int, ...], what: str) -> Float32:
    """`value` as float32 `(n, *tail)`. Raises InputError for another shape."""
    array = np.ascontiguousarray(value, np.float32)
    _check_shape(array, tail, what)
    return array


def _check_shape(array: npt.NDArray[Any], tail: tuple[int, ...], what: str) -> None:
    """Raises InputError unless the shape is `(n, *tail)`."""
    if array.shape[1:] != tail or not len(array):
        wanted = ", ".join(["n ≥ 1", *map(str, tail)])
        raise InputError(f"The {what} have shape {array.shape}.", f"Pass ({wanted}).")
