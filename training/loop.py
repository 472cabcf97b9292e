"""The training loop of all networks: AdamW, warm-up and cosine, averaged weights, checkpoints, progress."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARM_UP_STEPS = 150
CLIP_NORM = 1.0
SAY_EVERY_S, SAVE_EVERY_S = 20.0, 90.0


class OutOfTime(Exception):
    """The time of this run is over. Its state is saved, and the same command resumes it."""


class Fit:
    """Trains `net` for `steps` steps and keeps an exponential average of its weights, which is the result.

    The state is written to `path` every SAVE_EVERY_S seconds, and read from there if it exists.
    """

    def __init__(
        self, name: str, net: nn.Module, steps: int, rate: float, path: Path, averaging: float = 0.999
    ) -> None:
        self.name, self.net, self.steps, self.rate, self.path, self.averaging = name, net, steps, rate, path, averaging
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        fused = next(net.parameters()).is_cuda
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=fused)
        self.step = 0
        if path.exists():
            self._restore(torch.load(path, map_location=next(net.parameters()).device, weights_only=True))

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def run(self, loss_of: Callable[[int], torch.Tensor], deadline_s: float) -> Any:
        """Train to the end and return the averaged network. loss_of(step) returns a scalar.

        Raises OutOfTime at `deadline_s` (of time.monotonic).
        """
        started, first, said = time.monotonic(), self.step, 0.0
        saved = started
        parameters = list(self.net.parameters())
        while not self.done:
            if time.monotonic() > deadline_s:
                self.save()
                raise OutOfTime(f"{self.name}: step {self.step} of {self.steps}")
            self._set_rate()
            loss = loss_of(self.step)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            self.optimiser.step()
            self.step += 1
            self._follow()
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
            if time.monotonic() - said > SAY_EVERY_S or self.done:
                value = loss.item()
                said = time.monotonic()
                pace = (self.step - first) / (said - started)
                print(f"  {self.name} {self.step}/{self.steps} loss {value:.4f}, {pace:.1f} steps/s", flush=True)
        self.save()
        return self.average

    def _set_rate(self) -> None:
        warm = min(1.0, (self.step + 1) / min(WARM_UP_STEPS, max(self.steps // 10, 1)))
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm * cosine + 1e-6

    def _follow(self) -> None:
        keep = min(self.averaging, self.step / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - keep)

    def save(self) -> None:
        """Write the state atomically."""
        state = {"net": self.net.state_dict(), "average": self.average.state_dict(), "step": self.step}
        temporary = self.path.with_suffix(".part")
        torch.save({**state, "optimiser": self.optimiser.state_dict()}, temporary)
        temporary.replace(self.path)

    def _restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
