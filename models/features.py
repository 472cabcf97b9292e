"""Speech → Whisper encoder states → one feature window per video frame.

The windows follow MuseTalk (Zhang et al. 2024, `audio_processor.py`), but also for fractional seconds and without its
discontinuity every 30 s. A *step* is one encoder position: 20 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.errors import AudioError, WeightsError
from models.runtime.cuda_graphs import GraphedFunction
from models.runtime.gpu_memory import compute_in_parts
from models.runtime.tensors import as_tensor
from models.speech.mel import HOP_SAMPLES, log_mel
from models.types import WHISPER_HZ, WINDOW_STEPS
from models.weights.loading import build_module, find_weights, load_state_dict, read_json
from models.whisper_encoder import WhisperEncoder

STEP_SAMPLES = (
    2 * HOP_SAMPLES
)  # the encoder's second convolution halves 100 mel frames per second: 320 samples per step
STEPS_PER_S = WHISPER_HZ // STEP_SAMPLES  # 50
FULL_MARGIN_S = 2.0  # dropped at each inner edge of a 30 s context: the first context gives the first 28 s
EMBEDDED_CONTEXT_S = 8.0  # the context length that the embedded networks were trained with
EMBEDDED_MARGIN_S = 1.0
PAD_STEPS_LEFT, PAD_STEPS_RIGHT = 2, 6  # zero steps before and after the speech, each × ceil(50 / fps)
CPU_BATCH, CUDA_BATCH = 1, 16  # contexts encoded at once; bounds the memory for long speech
GRAPH_BATCHES = (1, 2, 4)  # contexts per CUDA graph; more run in several replays
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

Samples = Any  # float numpy array or torch tensor `(n,)`
Seconds = Any  # the same, or a sequence of floats


@dataclass(frozen=True, slots=True)
class Context:
    """One encoder call, in steps from the start of the speech.

    The encoder gets `[start, start + context_steps)`, padded with zeros; its states `[keep_from, keep_to)` are used.
    """

    start: int
    keep_from: int
    keep_to: int


def plan_contexts(sample_count: int, context_steps: int, margin_steps: int) -> list[Context]:
    """Cover speech of `sample_count` samples with overlapping contexts whose kept spans are adjacent.

    `margin_steps` are dropped at inner edges, nothing at the ends of the speech. Where context n begins does not depend
    on the speech after it.
    """
    assert 0 <= 2 * margin_steps < context_steps, (context_steps, margin_steps)
    total, kept_to, contexts = sample_count // STEP_SAMPLES, 0, list[Context]()
    while not contexts or kept_to < total:
        start = max(kept_to - margin_steps, 0)
        is_last = (start + context_steps) * STEP_SAMPLES >= sample_count
        keep_to = total if is_last else start + context_steps - margin_steps
        contexts.append(Context(start, kept_to, keep_to))
        kept_to = keep_to
    return contexts


def cut_windows(states: torch.Tensor, seconds: float, fps: int = 25, ahead_s: Seconds | None = None) -> torch.Tensor:
    """Encoder states `(steps, s, d)` of `seconds` of speech → windows `(n, 10 · s, d)`, n = floor(seconds · fps).

    States are cut to floor(50 · seconds) steps and padded with zeros: 2 · ceil(50 / fps) steps before and
    6 · ceil(50 / fps) after. Window k is the ten steps from floor(k · 50 / fps), flattened step by step. `seconds` is
    first rounded to whole samples, so that 1.16 s at 25 fps are 29 frames and not 28.99….

    ahead_s: for each frame, seconds by which its window starts later, rounded to steps and limited to the padded
    states; frames beyond its end are not shifted.
    """
    assert states.ndim == 3 and fps > 0 and fps == int(fps), (states.shape, fps)
    sample_count, fps = round(seconds * WHISPER_HZ), int(fps)
    frames, steps = sample_count * fps // WHISPER_HZ, sample_count // STEP_SAMPLES
    assert len(states) >= steps, (len(states), steps)
    unit = math.ceil(STEPS_PER_S / fps)
    zeros = states.new_zeros((PAD_STEPS_RIGHT * unit, *states.shape[1:]))
    padded = torch.cat([zeros[: PAD_STEPS_LEFT * unit], states[:steps], zeros])  # (steps + 8 · unit, s, d)
    starts = torch.arange(frames) * STEPS_PER_S // fps  # (n,)
    if ahead_s is not None:
        ahead = torch.as_tensor(ahead_s, dtype=torch.float64, device="cpu")[:frames]
        starts[: len(ahead)] += (ahead * STEPS_PER_S).round().long()
        starts = starts.clamp(0, len(padded) - WINDOW_STEPS)
    index = starts[:, None] + torch.arange(WINDOW_STEPS)  # (n, 10)
    return padded[index.to(states.device)].flatten(1, 2)  # (n, 10 · s, d)


class WhisperFeatures:
    """Whisper's encoder with MuseTalk's windows. Results are torch tensors in the model's dtype on its device.

    Gradients are not recorded, but results are not inference tensors: a training step may use them as input.
    """

    def __init__(self, encoder: WhisperEncoder) -> None:
        self.encoder = encoder
        self._states: Callable[[torch.Tensor], torch.Tensor] = self._encoded  # of contexts, see there
        self.mel_bins: int = encoder.conv1.in_channels
        self.full_context_steps: int = encoder.embed_positions.num_embeddings  # 1500: 30 s

    @classmethod
    def load(cls, dir: Path | str, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> WhisperFeatures:
        """Read `config.json` and `model.safetensors` or `pytorch_model.bin` from a Hugging Face Whisper folder.

        The weights may be a whole Whisper or only its encoder, with or without the `model.` prefix.

        Raises WeightsError: a file is missing or damaged, or keys or shapes do not match.
        """
        folder = Path(dir)
        config = read_json(folder / "config.json")
        path = find_weights(folder, WEIGHT_FILES)
        state = _encoder_keys(load_state_dict(path, wrappers=()))
        try:
            return cls(build_module(lambda: WhisperEncoder(config), state, path, device, dtype))
        except KeyError as error:
            raise WeightsError(
                f"{folder / 'config.json'} has no {error}.", "Use the config file of a Whisper."
            ) from error

    def record(self) -> None:
        """On CUDA, run the encoder as a CUDA graph from now on; its results are then inference tensors.

        A graph is recorded at the first call with a length of the context. Without it a call waits for Python, which
        launches about 130 kernels. Has no effect on another device.
        """
        if self.device.type == "cuda":
            self._states = GraphedFunction(self._encoded, GRAPH_BATCHES, "graphs", self.device)

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv1.weight.dtype

    def windows(self, samples_16khz: Samples, fps: int = 25, ahead_s: Seconds | None = None) -> torch.Tensor:
        """Windows from 30 s encoder contexts, as MuseTalk's released networks expect them.

        samples_16khz: float mono `(n,)` in [-1, 1]. Returns `(floor(n · fps / 16000), 50, 384)` for whisper-tiny. For
        speech over 30 s, the first context gives the first 28 s and contexts overlap by 4 s. ahead_s: see
        `cut_windows`.

        Raises AudioError: the samples are empty, not one channel, integers, or not finite.
        """
        return self._windows(samples_16khz, fps, self.full_context_steps, round(FULL_MARGIN_S * STEPS_PER_S), ahead_s)

    def windows_in_context(
        self,
        samples_16khz: Samples,
        fps: int = 25,
        context_s: float = EMBEDDED_CONTEXT_S,
        margin_s: float = EMBEDDED_MARGIN_S,
        ahead_s: Seconds | None = None,
    ) -> torch.Tensor:
        """Windows from shorter, faster encoder contexts, for networks that were trained with them.

        Speech is padded with zeros to exactly `context_s`, or split into contexts of `context_s` that overlap by
        2 · `margin_s`. Shapes and errors as for `windows`.
        """
        context_steps, margin_steps = round(context_s * STEPS_PER_S), round(margin_s * STEPS_PER_S)
        return self._windows(samples_16khz, fps, context_steps, margin_steps, ahead_s)

    def _windows(
        self,
        samples_16khz: Samples,
        fps: int,
        context_steps: int,
        margin_steps: int,
        ahead_s: Seconds | None,
    ) -> torch.Tensor:
        samples = check_samples(samples_16khz).float()  # (n,)
        plan = plan_contexts(len(samples), context_steps, margin_steps)
        batch = CUDA_BATCH if self.device.type == "cuda" else CPU_BATCH
        kept = []

        def encoded(part: Sequence[Context]) -> torch.Tensor:
            return self._states(self.context_samples(samples, part, context_steps))

        for first in range(0, len(plan), batch):
            contexts = plan[first : first + batch]
            states = compute_in_parts(encoded, contexts)
            kept += [s[c.keep_from - c.start : c.keep_to - c.start] for s, c in zip(states, contexts, strict=True)]
        return cut_windows(torch.cat(kept), len(samples) / WHISPER_HZ, fps, ahead_s)

    def _encoded(self, samples: torch.Tensor) -> torch.Tensor:
        """Speech of contexts `(b, n)` → hidden states `(b, n / 320, 5, 384)`."""
        return self.encode(self.log_mel(samples))

    @staticmethod
    def context_samples(samples: torch.Tensor, contexts: Sequence[Context], context_steps: int) -> torch.Tensor:
        """The input of each context: speech `(n,)` → `(len(contexts), context_steps · 320)`, zeros after its end."""
        length = context_steps * STEP_SAMPLES
        rows = samples.new_zeros((len(contexts), length))
        for row, context in zip(rows, contexts, strict=True):
            span = samples[context.start * STEP_SAMPLES :][:length]
            row[: len(span)] = span
        return rows

    def log_mel(self, samples: Samples) -> torch.Tensor:
        """Speech `(n,)` or `(b, n)`, padded to the context → float32 `(b, 80, n / 160)` on the model's device."""
        batch = torch.atleast_2d(as_tensor(samples)).to(self.device, torch.float32)
        return log_mel(batch, self.mel_bins)

    def encode(self, mel: Any) -> torch.Tensor:
        """Log-mel `(b, 80, 2 · steps)` of contexts of up to 30 s → hidden states `(b, steps, 5, 384)`.

        For whisper-tiny these are the embedding with positions, the first three layers, and the final layer norm.
        """
        mel = as_tensor(mel).to(self.device, self.dtype)
        assert mel.ndim == 3 and mel.shape[1] == self.mel_bins and mel.shape[2] % 2 == 0, mel.shape
        with torch.no_grad():
            states: torch.Tensor = self.encoder(mel)
        return states


def _encoder_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's tensors without prefixes, from a whole Whisper or only its encoder."""
    bare = {key.removeprefix("model."): value for key, value in state.items()}
    inside = {key.removeprefix("encoder."): value for key, value in bare.items() if key.startswith("encoder.")}
    return inside or bare


def check_samples(samples: Samples) -> torch.Tensor:
    """Speech as a float tensor `(n,)`. Raises AudioError: empty, not one channel, integers, or not finite."""
    tensor = as_tensor(samples)
    if not tensor.is_floating_point():
        raise AudioError(f"The samples are {tensor.dtype}, not floats.", "Scale them to float32 in [-1, 1].")
    if tensor.ndim != 1:
        raise AudioError(f"The samples have shape {tuple(tensor.shape)}.", "Mix them down to one channel, shape (n,).")
    if not len(tensor):
        raise AudioError("The audio has no samples.", "Send at least one video frame of speech.")
    if not bool(torch.isfinite(tensor).all()):
        raise AudioError("The samples contain NaN or infinity.", "Decode the audio again, into float32 in [-1, 1].")
    return tensor
