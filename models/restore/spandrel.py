"""Uses any face model that spandrel can load (CodeFormer, RestoreFormer …) as a restorer. Needs the extra `[restore]`.

spandrel detects the architecture from the file. Its packages need torchvision, hence the extra. Nothing of them is
imported before an engine is loaded. https://github.com/chaiNNer-org/spandrel
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from models.errors import ConfigError, WeightsError
from models.restore.align import restore_aligned
from models.types import RESTORED_PX, UInt8
from models.weights.loading import load_state_dict

INSTALL = "Install the extra: pip install 'warmtalk[restore]'."


class SpandrelRestorer:
    """A LandmarkRestorer around a spandrel ImageModelDescriptor, which takes one RGB face in [0, 1] per call."""

    needs_landmarks = True

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, path: Path | str, device: str = "cpu", dtype: str = "float32") -> SpandrelRestorer:
        """Load a face restoration model of any architecture that spandrel (and its extra architectures) supports.

        dtype: float32, or float16 and bfloat16 where the architecture allows them.

        Raises:
            ConfigError: the extra is not installed, or the model does not run in this dtype.
            WeightsError: spandrel does not recognise the file as an image model with three channels.
        """
        spandrel = _import_spandrel()
        load_state_dict(path)  # refuses a pickle with code in it, and names a truncated file
        try:
            model = spandrel.ModelLoader(device=torch.device("cpu")).load_from_file(str(path))
        except Exception as error:  # spandrel's errors share no base class
            raise WeightsError(
                f"spandrel cannot read {path}: {error}.", "Use the weights of a face restoration model."
            ) from error
        if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (
            3,
            3,
        ):
            raise WeightsError(
                f"{path} is not a model from RGB images to RGB images.", "Use the weights of a face restoration model."
            )
        supported = {"float32": True, "float16": model.supports_half, "bfloat16": model.supports_bfloat16}
        if not supported.get(dtype, False):
            usable = ", ".join(name for name, available in supported.items() if available)
            raise ConfigError(f"{Path(path).name} does not run in {dtype}.", f"Use one of {usable}.")
        model.to(torch.device(device), getattr(torch, dtype))
        model.eval()
        return cls(model)

    def restore(self, faces: UInt8, strength: float = 1.0, landmarks: Any = None, around: Any = None) -> UInt8:
        """Restore faces, see LandmarkRestorer. Raises InputError."""
        return restore_aligned(faces, strength, landmarks, self._run, batch=1, around=around)

    def _run(self, faces: UInt8) -> UInt8:
        return np.stack([self._one(face) for face in faces])

    def _one(self, face: UInt8) -> UInt8:
        """One face `(512, 512, 3)`. A model that enlarges gets a smaller picture, so that its detail is kept."""
        scale = int(self.model.scale)
        side = math.ceil(RESTORED_PX / scale)
        if side != RESTORED_PX:
            face = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(np.array(face)).permute(2, 0, 1)[None]  # (1, 3, side, side)
        with torch.inference_mode():
            image = self.model((x.to(self.model.device).float() / 255).to(self.model.dtype))
            levels = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
        restored: UInt8 = levels[0].permute(1, 2, 0).contiguous().cpu().numpy()
        if restored.shape[0] != RESTORED_PX:
            restored = cv2.resize(restored, (RESTORED_PX, RESTORED_PX), interpolation=cv2.INTER_AREA)
        return restored


def _import_spandrel() -> Any:
    """Import spandrel, and its extra architectures (CodeFormer among them) if installed. Raises ConfigError."""
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError as error:
        raise ConfigError(f"The spandrel restorer cannot be imported: {error}.", INSTALL) from error
    try:
        extra = importlib.import_module("spandrel_extra_arches")
    except ImportError:
        return spandrel
    extra.install(ignore_duplicates=True)
    return spandrel
