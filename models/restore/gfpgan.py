"""GFPGAN v1.4 (and v1.3): restores faces with the prior of a StyleGAN2 face generator.

Weights: TencentARC's `GFPGANv1.4.pth`, the network under `params_ema`. The noise is the checkpoint's own, so the same
face gives the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.errors import ConfigError, InputError
from models.restore.align import restore_aligned
from models.restore.align_device import aligned_pass, enlarges, start_on_device
from models.restore.gfpgan_fused import FusedGFPGAN
from models.restore.gfpgan_net import GFPGANNet, channels_last
from models.runtime.cuda_graphs import GraphedFunction, check_compile, graph_batch_sizes
from models.runtime.tensors import as_tensor
from models.runtime.transfers import Transfers
from models.types import CROP_PX, RESTORED_PX, UInt8
from models.weights.loading import build_module, load_state_dict

MAX_FACES = 4  # per pass: working memory is 0.7 GB for one face and 0.43 GB per further face, in fp32 on a CPU
DTYPES = ("float32", "float16", "bfloat16")


class GFPGAN:
    """A LandmarkRestorer for faces on the FFHQ template. Pass landmarks unless the faces are aligned already."""

    needs_landmarks = True

    def __init__(self, module: GFPGANNet, max_faces: int = MAX_FACES, compile: str = "off") -> None:
        self.module, self.max_faces = module, max_faces
        recorded = check_compile(compile, self.device) != "off"
        self.batch_sizes = graph_batch_sizes("graphs", max_faces) if recorded else (max_faces,)
        self._transfers = Transfers(self.device)
        self._plain = self._crops = aligned_pass(FusedGFPGAN(module) if recorded else module_pass(module), self.device)
        if recorded:
            self._crops = GraphedFunction(self._plain, self.batch_sizes, "graphs", self.device)

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: Any = "cpu",
        dtype: torch.dtype | str = torch.float32,
        max_faces: int = MAX_FACES,
        compile: str = "off",
    ) -> GFPGAN:
        """Load `GFPGANv1.4.pth`, or another file with the same keys and shapes (safetensors too).

        dtype: a torch dtype or its name; the normalisation of each modulated convolution stays in fp32. max_faces: per
        pass. compile: `off`, or `graphs` on CUDA, which records FusedGFPGAN. It has its own kernels, so `inductor` is
        the same.

        Raises:
            WeightsError: the file is missing, damaged or does not fit; the message names the first wrong keys.
            ConfigError: unknown dtype or compile mode.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ConfigError(f"There is no dtype {name!r} for GFPGAN.", f"Use one of {', '.join(DTYPES)}.")
        module = build_module(GFPGANNet, load_state_dict(path), path, device, getattr(torch, name))
        return cls(channels_last(module), max_faces, compile)

    @property
    def device(self) -> torch.device:
        return self.module.final_linear.weight.device

    def net(self, x: Any) -> torch.Tensor:
        """Run the network alone: RGB `(n, 3, 512, 512)` in [-1, 1] → restored RGB of the same shape, unclipped.

        x: array or tensor of any float type. The result is on the network's device, in its dtype. Raises InputError.
        """
        weight = self.module.final_linear.weight
        x = as_tensor(x)
        if x.ndim != 4 or x.shape[1:] != (3, RESTORED_PX, RESTORED_PX):
            raise InputError(f"The batch has shape {tuple(x.shape)}.", f"Pass (n, 3, {RESTORED_PX}, {RESTORED_PX}).")
        with torch.inference_mode():
            image: torch.Tensor = self.module(x.to(weight.device, weight.dtype, memory_format=torch.channels_last))
        return image.contiguous()

    def restore(self, faces: UInt8, strength: Any = 1.0, landmarks: Any = None, around: Any = None) -> UInt8:
        """Restore faces: RGB uint8 `(n, 512, 512, 3)` or `(n, 256, 256, 3)` → `(n, 512, 512, 3)`.

        landmarks: `(n, 5, 2)`, eye centres, nose tip and mouth corners in px of `faces`. Each face is warped onto the
        FFHQ template, and back over itself with a soft edge. None: the faces are aligned already. around:
        `(n, 512, 512, 3)` on the template, what surrounds the face; None is grey. strength: a number, or one per face;
        0 is bicubic upsampling, 1 the full model. Raises InputError.
        """
        return self.start(faces, strength, landmarks, around)()

    def start(
        self, faces: Sequence[UInt8] | UInt8, strength: Any = 1.0, landmarks: Any = None, around: Any = None
    ) -> Callable[[], UInt8]:
        """Begin `restore`, and return a function that waits for it. On a GPU, several calls overlap.

        faces: n of `(s, s, 3)`. around: may be a tensor on `device`.
        """
        if self.device.type == "cuda" and len(faces) and np.any(strength) and enlarges(landmarks):
            with torch.inference_mode():
                # faces of 512 px come from videos only: recording them would take a minute in the middle of work
                run = self._crops if len(faces[0]) == CROP_PX else self._plain
                return start_on_device(run, self._transfers, faces, strength, landmarks, around, self.max_faces)
        if isinstance(around, torch.Tensor):
            around = around.cpu().numpy()
        out = restore_aligned(np.asarray(faces), strength, landmarks, self._run, self.max_faces, around=around)
        return lambda: out

    def _run(self, faces: UInt8) -> UInt8:
        with torch.inference_mode():
            x = torch.from_numpy(np.array(faces)).permute(0, 3, 1, 2)  # copied: the array may be read-only
            image = self.net(x.to(self.device).float() / 127.5 - 1)  # (n, 3, 512, 512)
            levels = (image.float().clamp(-1, 1) + 1) * 127.5
            restored: UInt8 = levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return restored


def module_pass(module: GFPGANNet) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network as a function of RGB `(n, 3, 512, 512)` in fp32, which converts to its dtype and layout."""

    def run(x: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = module(x.to(module.final_linear.weight.dtype, memory_format=torch.channels_last))
        return image

    return run
