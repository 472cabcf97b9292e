"""MuseTalk on CUDA: the fast twin of `models/musetalk.py`. Frames of held avatars in, pixels in host memory out.

The UNet and the decoders are recorded as CUDA graphs for several batch sizes, and timed, so that every number of frames
runs in the sizes that take the least time on this device. What avatars need stays on the device; a batch uploads
feature windows and copies back what the decoder made. `start` returns while the device computes, so the next batch can
be uploaded meanwhile.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from models.cropped_decoder import CroppedDecoder
from models.errors import CorruptError
from models.map_window import WHOLE_FACE, rounded
from models.musetalk import LATENT_CHANNELS, UNET_CHANNELS, Generator, MuseTalk
from models.runtime.cuda_graphs import GraphedFunction, Recording, check_compile, fastest_split, graph_batch_sizes
from models.runtime.fused_pass import interleave, upsampling_kernel
from models.runtime.transfers import Transfers
from models.types import LATENT_PX, WINDOW_TOKENS, CropWindow, Float16, Float32, UInt8

LARGEST_DECODE = 16  # frames per call of a decoder. On an H200, 32 were a fifth slower: 2 GB and more per feature map
RECORDED_WINDOWS = 128  # windows whose decoders stay recorded, each a few MB; others are recorded again
SMALL_WINDOW = CropWindow((128, 132), (128, 132))
LATENT_SHAPE = (LATENT_CHANNELS, LATENT_PX, LATENT_PX)


@dataclass(frozen=True, slots=True, eq=False)
class HeldAvatar:
    """What an avatar's frames need, on the device. latents: `(n, 8, 32, 32)`. window: what is decoded of a face.

    statistics: of a cropped KL decoder, `(n, norms, 2, groups)`.
    """

    latents: torch.Tensor
    window: CropWindow = WHOLE_FACE
    statistics: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return int(self.latents.nbytes + (0 if self.statistics is None else self.statistics.nbytes))


Frame = tuple[HeldAvatar, int, Float16]  # the avatar, the number of its frame, and the feature window (50, 384)


class CudaFaces:
    """Generates faces with recorded networks. Not thread-safe: one thread calls all methods."""

    whole_faces = False  # where only a window is decoded, `start` gives that window

    def __init__(self, unet: nn.Module, decoder: nn.Module, mode: str, batch_size: int) -> None:
        """decoder: the VAE that decodes. mode: `graphs` or `inductor`, see models/runtime/cuda_graphs.py."""
        weight = unet.conv_in.weight
        self.device, self.dtype, self.batch_size = weight.device, weight.dtype, batch_size
        self._transfers, self._pool = Transfers(self.device), torch.cuda.graph_pool_handle()
        generator = Generator(folded_unet(unet)).eval()

        def predict(latents: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
            z: torch.Tensor = generator(latents.to(memory_format=torch.channels_last), windows)
            return z

        sizes = [size for size in graph_batch_sizes("graphs", max(2, batch_size)) if size > 1]  # see GraphedFunction
        rows = (
            ((UNET_CHANNELS, LATENT_PX, LATENT_PX), self.dtype),
            (
                (WINDOW_TOKENS, int(unet.config.cross_attention_dim)),
                torch.float16,
            ),
        )
        self._unet = _Sizes(GraphedFunction(predict, sizes, mode, self.device, True, self._pool), *rows)
        self._decoder = CroppedDecoder(decoder).eval()
        self._compile_kernels()
        self._decoders = dict[CropWindow, _Sizes]()  # the least recently used first
        self._decoder_of(WHOLE_FACE)

    @property
    def exact_crops(self) -> bool:
        """Whether a cropped decoder gives exactly the window of the whole face, without statistics."""
        return self._decoder.statistics_shape is None

    def hold(
        self, latents: Float16 | torch.Tensor, window: CropWindow = WHOLE_FACE, statistics: Float32 | None = None
    ) -> HeldAvatar:
        """Put an avatar on the device. A new window is recorded, which takes about a second."""
        window = rounded(window)
        self._decoder_of(window)
        needed = window != WHOLE_FACE and not self.exact_crops
        expected = (len(latents), *(self._decoder.statistics_shape or ()))
        if needed and (statistics is None or statistics.shape != expected):
            found = None if statistics is None else statistics.shape
            raise CorruptError(
                f"The decoder statistics have shape {found}, not {expected}.", "Prepare the avatar again."
            )
        kept = torch.as_tensor(statistics).to(self.device) if needed else None
        return HeldAvatar(torch.as_tensor(latents).to(self.device, self.dtype), window, kept)

    def start(self, frames: Sequence[Frame]) -> PendingFaces:
        """Begin to generate the frames' faces, or the windows of them that are decoded."""
        # 1. frames of one window, and of one avatar, next to each other
        groups = {id(avatar): number for number, (avatar, _, _) in enumerate(frames)}
        windows = {frames[k][0].window: k for k in range(len(frames))}
        order = sorted(range(len(frames)), key=lambda k: (windows[frames[k][0].window], groups[id(frames[k][0])]))
        ordered = [frames[k] for k in order]
        with torch.inference_mode():
            # 2. upload
            speech = self._transfers.up([window for _, _, window in ordered])
            numbers = self._transfers.up(np.array([number for _, number, _ in ordered]))
            held = _Frames([avatar for avatar, _, _ in ordered], numbers)
            # 3. the UNet
            z = torch.empty((len(frames), *LATENT_SHAPE), dtype=self.dtype, device=self.device)
            for start, stop, recording in self._unet.parts(0, len(frames)):
                held.select("latents", start, stop, recording.inputs[0])
                recording.inputs[1][: stop - start] = speech[start:stop]
                recording.replay()
                z[start:stop] = recording.output[: stop - start]
            # 4. the decoder of each window
            pending = PendingFaces(order)
            for window, start, stop in held.windows():
                for first, last, recording in self._decoder_of(window).parts(start, stop):
                    if last == len(frames):
                        pending.last_part.record()
                    recording.inputs[0][: last - first] = z[first:last]
                    if len(recording.inputs) > 1:
                        held.select("statistics", first, last, recording.inputs[1])
                    recording.replay()
                    made = recording.output[: last - first].clone()  # the next call overwrites it
                    pending.made.append((first, self._transfers.down(made)))
        return pending

    def generate(self, latents: Any, windows: Any) -> UInt8:
        """Whole faces of frames that belong to no avatar, `(n, 256, 256, 3)`."""
        held, faces = self.hold(latents), list[UInt8]()
        windows = np.asarray(windows, np.float16)
        for start in range(0, len(windows), self.batch_size):
            stop = min(len(windows), start + self.batch_size)
            faces += self.start([(held, k, windows[k]) for k in range(start, stop)])()
        return np.stack(faces)

    def report(self) -> dict[str, Any]:
        """Milliseconds per call of each size, and the sizes in which a full batch runs."""
        decoders = dict(self._decoders)  # a copy: the compute thread may record another window
        sizes = {"unet": self._unet, **{f"decoder {_name(window)}": made for window, made in decoders.items()}}
        return {
            name: {
                "ms": {size: round(1e3 * took_s, 2) for size, took_s in made.seconds.items()},
                "full_batch": list(made.split(self.batch_size)),
            }
            for name, made in sizes.items()
        }

    def _compile_kernels(self) -> None:
        """Those of cropped decoders, so that a window of a new avatar is recorded quickly."""
        shape = self._decoder.statistics_shape
        latents = torch.zeros((1, *LATENT_SHAPE), dtype=self.dtype, device=self.device)
        statistics = None if shape is None else torch.zeros((1, *shape), device=self.device)
        with torch.inference_mode():
            self._decoder.at(SMALL_WINDOW)(latents.to(memory_format=torch.channels_last), statistics)

    def _decoder_of(self, window: CropWindow) -> _Sizes:
        """Recorded when it is needed, unless it is among the RECORDED_WINDOWS that were used last."""
        made = self._decoders.pop(window, None) or self._record(window)
        self._decoders[window] = made
        if len(self._decoders) > RECORDED_WINDOWS:
            del self._decoders[next(iter(self._decoders))]  # CUDA keeps a graph that still runs until it is done
        return made

    def _record(self, window: CropWindow) -> _Sizes:
        decoder = self._decoder.at(window)
        rows: list[tuple[tuple[int, ...], torch.dtype]] = [(LATENT_SHAPE, self.dtype)]
        if window != WHOLE_FACE and (shape := decoder.statistics_shape):
            rows.append((shape, torch.float32))

        def decode(latents: torch.Tensor, *statistics: torch.Tensor) -> torch.Tensor:
            faces = decoder(latents.to(memory_format=torch.channels_last), *statistics)
            return faces.round().to(torch.uint8)

        sizes = graph_batch_sizes("graphs", min(LARGEST_DECODE, self.batch_size))
        return _Sizes(GraphedFunction(decode, sizes, "graphs", self.device, pool=self._pool), *rows)


class CudaMuseTalk(MuseTalk):
    """MuseTalk whose networks can be recorded."""

    recorded: CudaFaces | None = None

    def record(self, mode: str, batch_size: int) -> None:
        """Make `recorded`, which generates up to `batch_size` faces quickly on CUDA; `generate` uses it.

        mode: `graphs` or `inductor`, see models/runtime/cuda_graphs.py; `off` undoes it. All sizes are recorded now.
        Raises ConfigError.
        """
        self.recorded = None
        if check_compile(mode, self.device) != "off":
            self.recorded = CudaFaces(self.unet, self.decoder, mode, batch_size)

    def generate(self, latents: Any, windows: Any) -> UInt8:
        if self.recorded is None:
            return super().generate(latents, windows)
        return self.recorded.generate(*self._pair(latents, windows))


class _Sizes:
    """A recorded function with the seconds that each of its batch sizes takes."""

    def __init__(self, function: GraphedFunction, *rows: tuple[tuple[int, ...], torch.dtype]) -> None:
        self._function = function  # a graph does not keep the weights and kernels that it uses
        # the largest first: the others fit into its memory
        self._recordings = {size: function.recording(size, *rows) for size in reversed(function.sizes)}
        self.seconds = {size: recording.seconds() for size, recording in self._recordings.items()}
        self._splits: dict[int, tuple[int, ...]] = {}

    def split(self, n: int) -> tuple[int, ...]:
        """The sizes in which n frames take the least time."""
        if n not in self._splits:
            self._splits[n] = fastest_split(n, self.seconds)
        return self._splits[n]

    def parts(self, start: int, stop: int) -> list[tuple[int, int, Recording]]:
        """Which recording computes which of the frames `start` to `stop`."""
        parts = list[tuple[int, int, Recording]]()
        for size in self.split(stop - start):
            parts.append((start, min(stop, start + size), self._recordings[size]))
            start += size
        return parts


class _Frames:
    """The frames of a batch: their avatars, and on the device the numbers of the avatars' frames."""

    def __init__(self, avatars: list[HeldAvatar], numbers: torch.Tensor) -> None:
        self._avatars, self._numbers = avatars, numbers

    def windows(self) -> list[tuple[CropWindow, int, int]]:
        """Each window with the frames that have it, from the first to one after the last."""
        return [(avatar.window, start, stop) for avatar, start, stop in self._runs(lambda avatar: avatar.window)]

    def select(self, name: str, start: int, stop: int, to: torch.Tensor) -> None:
        """Copy what the avatars hold for the frames `start` to `stop` to the first rows of `to`."""
        for avatar, first, last in self._runs(id, start, stop):
            held = getattr(avatar, name)
            to[first - start : last - start] = held.index_select(0, self._numbers[first:last])

    def _runs(self, key: Any, start: int = 0, stop: int | None = None) -> list[tuple[HeldAvatar, int, int]]:
        runs = list[tuple[HeldAvatar, int, int]]()
        for _, members in groupby(self._avatars[start:stop], key):
            same = list(members)
            runs.append((same[0], start, start + len(same)))
            start += len(same)
        return runs


class PendingFaces:
    """Pixels that the device is making."""

    def __init__(self, order: list[int]) -> None:
        """order: the places in the batch of the frames as they are computed."""
        self._order = order
        self.made: list[tuple[int, Callable[[], UInt8]]] = []  # first frame, and its and the next ones' pixels
        self.last_part = torch.cuda.Event(blocking=True)  # does not keep a core busy

    def wait_for_last_part(self) -> None:
        """Until the device has begun the last call of a decoder: the next batch should be started now."""
        self.last_part.synchronize()

    def __call__(self) -> list[UInt8]:
        """Wait for the pixels of each frame's window, `(rows, columns, 3)`, in the order of the batch."""
        faces: list[Any] = [None] * len(self._order)
        for first, wait in self.made:
            for k, pixels in enumerate(wait(), first):
                faces[self._order[k]] = pixels
        return faces


def _name(window: CropWindow) -> str:
    (top, bottom), (left, right) = window.rows, window.columns
    return "full" if window == WHOLE_FACE else f"rows {top}-{bottom} columns {left}-{right}"


def folded_unet(unet: nn.Module) -> nn.Module:
    """The UNet for time step 0, with the same weights in memory and fewer operations.

    The time embedding, and what each resnet makes of it, is a constant. Upsampling is folded into the convolution after
    it. The results are the same but for rounding.
    """
    tensors = [*unet.parameters(), *unet.buffers()]
    folded: nn.Module = copy.deepcopy(unet, {id(tensor): tensor for tensor in tensors})
    with torch.inference_mode():
        time = unet.time_proj(torch.zeros(1, dtype=torch.long, device=unet.conv_in.weight.device))
        time = unet.time_embedding(time.to(unet.conv_in.weight.dtype))  # (1, 1280)
    folded.time_embedding = _Constant(time)
    for block in folded.modules():
        if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
            with torch.inference_mode():
                block.time_emb_proj = _Constant(block.time_emb_proj(block.nonlinearity(time)))
        for number, upsampler in enumerate(getattr(block, "upsamplers", None) or ()):
            if isinstance(upsampler, Upsample2D):
                block.upsamplers[number] = _FoldedUpsampling(upsampler)
    return folded


class _Constant(nn.Module):  # type: ignore[misc]
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.clone())

    def forward(self, *inputs: Any) -> torch.Tensor:
        value: torch.Tensor = self.value
        return value


class _FoldedUpsampling(nn.Module):  # type: ignore[misc]
    """Diffusers' Upsample2D: nearest-neighbour upsampling by two, and a convolution."""

    def __init__(self, upsampler: Upsample2D) -> None:
        super().__init__()
        self.register_buffer("kernel", upsampling_kernel(upsampler.conv.weight.detach()))
        self.register_buffer("bias", upsampler.conv.bias.detach()[:, None, None])

    def forward(self, x: torch.Tensor, size: Any = None) -> torch.Tensor:
        assert size is None, size  # diffusers passes one only for sides that 8 does not divide
        return interleave(F.conv2d(x, self.kernel, padding=1)) + self.bias
