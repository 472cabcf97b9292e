"""The default face restorer: a small network trained by `training/restorer.py`.

Two engines run the same weights: OpenVINO (fast on a CPU, starts from its cache without importing torch) and torch (any
device; the slow twin that tests compare with).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from models.errors import ConfigError, InputError, WeightsError
from models.restore.align import check_strength
from models.types import CROP_PX, RESTORED_PX, Float32, UInt8
from models.weights.loading import check_keys, fingerprint, load_state_dict

if TYPE_CHECKING:
    from models.restore.small_net import ImageGraph

EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "embedded" / "restorer" / "restorer.safetensors"
_NET_SOURCE = Path(__file__).with_name("small_net.py")
MAX_FACES = 8  # per pass: working memory grows by about 50 MB per face
ENGINES = ("openvino", "torch")

RunGraph = Callable[[UInt8, Float32], UInt8]


class SmallRestorer:
    """Bicubic upsampling plus a learned correction, about 12 ms per face on two cores. Thread-safe."""

    def __init__(self, run: RunGraph, engine: str) -> None:
        self.engine = engine
        self._run = run

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str = "cpu",
        engine: str = "openvino",
        threads: int = 0,
        cache_dir: str | Path | None = None,
    ) -> SmallRestorer:
        """Load the weights (safetensors; None: the embedded ones) into an engine.

        device: a torch device; the openvino engine runs on "cpu" only. threads: of the openvino engine, 0 lets it
        choose (the torch engine uses the process's setting). cache_dir: holds the converted network; None converts it
        at every start.

        Raises:
            WeightsError: the file is missing, damaged or has other shapes.
            ConfigError: unknown engine, or a device that it does not run on.
        """
        path = Path(weights) if weights is not None else EMBEDDED_WEIGHTS
        if engine == "torch":
            return cls(_torch_graph(path, device), engine)
        if engine != "openvino":
            raise ConfigError(f"Unknown restorer engine {engine!r}.", f"Use one of {', '.join(ENGINES)}.")
        if device != "cpu":
            raise ConfigError(
                f"The openvino engine does not run on {device!r}.", "Use engine 'torch' with this device."
            )
        return cls(_openvino_graph(path, threads, cache_dir), engine)

    def restore(self, faces: UInt8, strength: float = 1.0) -> UInt8:
        """Restore faces: RGB uint8 `(n, 256, 256, 3)` → `(n, 512, 512, 3)`.

        strength: 0 is bicubic upsampling (OpenCV's INTER_CUBIC), 1 the full model; linear between them, rounded once.
        Raises InputError for another shape, type or strength.
        """
        faces = np.asarray(faces)
        if faces.ndim != 4 or faces.shape[1:] != (CROP_PX, CROP_PX, 3) or faces.dtype != np.uint8:
            raise InputError(
                f"Faces of shape {faces.shape} and type {faces.dtype} cannot be restored.",
                f"Pass RGB uint8 (n, {CROP_PX}, {CROP_PX}, 3).",
            )
        check_strength(strength)
        out = np.empty((len(faces), RESTORED_PX, RESTORED_PX, 3), np.uint8)
        if strength == 0:
            for face, into in zip(faces, out, strict=True):
                cv2.resize(face, (RESTORED_PX, RESTORED_PX), dst=into, interpolation=cv2.INTER_CUBIC)
            return out
        amount = np.array([strength], np.float32)
        for start in range(0, len(faces), MAX_FACES):
            out[start : start + MAX_FACES] = self._run(faces[start : start + MAX_FACES], amount)
        return out


def load_graph(path: Path) -> ImageGraph:
    """Return the network with the weights of `path`, a torch module in fp32 on the CPU. Raises WeightsError."""
    import torch

    from models.restore.small_net import ImageGraph, SmallRestorerNet

    net = SmallRestorerNet()
    state = {name: tensor.float() for name, tensor in load_state_dict(path).items()}
    check_keys(net, state, path)
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise WeightsError(
            f"{path} contains values that are not finite.", "Train it again: `python -m training.restorer`."
        )
    net.load_state_dict(state)
    graph: ImageGraph = ImageGraph(net).eval().requires_grad_(False)
    return graph


def _torch_graph(path: Path, device: str) -> RunGraph:
    import torch

    graph = load_graph(path).to(device, memory_format=torch.channels_last)

    def run(faces: UInt8, strength: Float32) -> UInt8:
        with torch.inference_mode():
            # Copied: arrays from another process are read-only, which torch does not accept.
            out = graph(torch.from_numpy(faces.copy()).to(device), torch.from_numpy(strength).to(device))
        result: UInt8 = out.cpu().numpy()
        return result

    return run


def _openvino_graph(path: Path, threads: int, cache_dir: str | Path | None) -> RunGraph:
    from models.runtime.openvino_cache import compile_cached

    net = compile_cached(
        "small-restorer",
        lambda: load_graph(path),
        (np.zeros((2, CROP_PX, CROP_PX, 3), np.uint8), np.ones(1, np.float32)),
        fingerprint(path, _NET_SOURCE),
        cache_dir=cache_dir,
        threads=threads,
        batched=(True, False),
    )
    net.warm()  # otherwise the first chunk of each batch size would wait for its compilation
    return net
