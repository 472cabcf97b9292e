"""Faces of avatars on a CPU: what is pasted is decoded, the rest of a face is kept from the first time it was made.

The decoder must be a tiny VAE's, which can be cropped exactly. The first time that a frame of an avatar is generated,
its whole face is decoded and kept. From then on only the window is decoded, and put into the kept face. Outside of the
window, a face differs only as far as the decoder lets the mouth change what is far from it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from models.map_window import WHOLE_FACE, MapWindow, rounded
from models.runtime.openvino_cache import CompiledNet
from models.runtime.openvino_crop import crop_decoder
from models.types import CROP_PX, CropWindow, Float16, Float32, UInt8

KEPT_WINDOWS = 32  # windows whose decoders stay compiled, each a few MB; avatars in use keep theirs
NICENESS = 19  # of compiling: sessions speak meanwhile

log = logging.getLogger(__name__)

Predict = Callable[[Any, Any], Float32]  # latents (n, 8, 32, 32), feature windows (n, 50, 384) → (n, 4, 32, 32)


@dataclass(frozen=True, slots=True, eq=False)
class KeptAvatar:
    """latents: `(n, 8, 32, 32)`. window: what is decoded of a face once `decoder` is compiled.

    faces: `(n, 256, 256, 3)`, of which those of `made` are kept.
    """

    latents: Float16
    window: CropWindow
    decoder: Future[CompiledNet] | None
    faces: UInt8
    made: npt.NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + self.faces.nbytes

    def compiled(self) -> CompiledNet | None:
        """The decoder of the window, if it is compiled."""
        ready = self.decoder is not None and self.decoder.done() and self.decoder.exception() is None
        return self.decoder.result() if ready and self.decoder is not None else None


Frame = tuple[KeptAvatar, int, Float16]  # the avatar, the number of its frame, and the feature window (50, 384)


class OpenVINOFaces:
    """The twin of `CudaFaces` in models/musetalk_cuda.py. Not thread-safe: one thread calls all methods."""

    exact_crops = True
    whole_faces = True  # `start` returns whole faces of every avatar

    def __init__(self, predict: Predict, decoder: CompiledNet) -> None:
        self._predict, self._decoder = predict, decoder
        self._cropped = dict[CropWindow, Future[CompiledNet]]()  # the oldest first
        self._compiling = ThreadPoolExecutor(1, "compile", _lower_priority)

    def hold(self, latents: Float16, window: CropWindow = WHOLE_FACE, statistics: Float32 | None = None) -> KeptAvatar:
        """Keep an avatar's faces. The decoder of a new window is compiled meanwhile, in about 0.2 s."""
        window = rounded(window)
        cropped = window != WHOLE_FACE
        decoder, kept = (self._decoder_of(window), len(latents)) if cropped else (None, 0)
        faces = np.empty((kept, CROP_PX, CROP_PX, 3), np.uint8)  # takes memory when it is written
        return KeptAvatar(latents, window, decoder, faces, np.zeros(kept, np.bool_))

    def start(self, frames: Sequence[Frame]) -> list[UInt8]:
        """Whole faces `(256, 256, 3)` of the frames."""
        # 1. the UNet
        latents = np.stack([avatar.latents[number] for avatar, number, _ in frames])
        z = self._predict(latents, np.stack([window for *_, window in frames]))
        # 2. which decoder each frame needs
        nets, places = dict[CropWindow, CompiledNet](), defaultdict[CropWindow, list[int]](list)
        for k, (avatar, number, _) in enumerate(frames):
            net = avatar.compiled() if avatar.decoder is not None and avatar.made[number] else None
            window = WHOLE_FACE if net is None else avatar.window
            nets[window] = net or self._decoder
            places[window].append(k)
        # 3. decode
        faces: list[Any] = [None] * len(frames)
        for window, chosen in places.items():
            for k, pixels in zip(chosen, nets[window](z[chosen]), strict=True):
                avatar, number, _ = frames[k]
                faces[k] = pixels if window == WHOLE_FACE else _put(avatar.faces[number], window, pixels)
                if avatar.decoder is not None and not avatar.made[number]:
                    avatar.faces[number], avatar.made[number] = pixels, True
        return faces

    def report(self) -> dict[str, Any]:
        """Which windows have a compiled decoder."""
        return {
            f"decoder rows {window.rows} columns {window.columns}": {"compiled": decoder.done()}
            for window, decoder in dict(self._cropped).items()
        }

    def _decoder_of(self, window: CropWindow) -> Future[CompiledNet]:
        if window not in self._cropped:
            self._cropped[window] = self._compiling.submit(self._compile, window)
            if len(self._cropped) > KEPT_WINDOWS:
                del self._cropped[next(iter(self._cropped))]
        return self._cropped[window]

    def _compile(self, window: CropWindow) -> CompiledNet:
        try:
            crop = partial(crop_decoder, target=MapWindow(window.rows, window.columns, CROP_PX))
            net = self._decoder.changed(crop)
            net.warm()
            return net
        except Exception:
            log.exception("LipSync: the decoder of %s cannot be compiled: whole faces are decoded.", window)
            raise


def _put(face: UInt8, window: CropWindow, pixels: UInt8) -> UInt8:
    """A copy of the face with these pixels in the window."""
    face = face.copy()
    window.cut(face[None])[0] = pixels
    return face


def _lower_priority() -> None:
    """Of the calling thread. Elsewhere than on Linux, this would change the whole process."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
