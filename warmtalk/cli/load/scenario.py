"""The scenario of a load: how many sessions, how they arrive, speak and watch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from warmtalk.cli.yaml_files import read_model

SHIPPED = Path(__file__).parent / "scenario.yaml"
Watch = Literal["fmp4", "websocket", "webrtc", "none"]


class Scenario(BaseModel):
    """See scenario.yaml. Shares are 0 to 1; those of `watch` count relative to their sum."""

    model_config = ConfigDict(extra="forbid")

    duration_s: float = Field(gt=0, le=86_400)
    sessions: int = Field(ge=1, le=100_000)
    arrivals_per_s: float = Field(gt=0)
    stay_s: float = Field(gt=0)
    pause_s: float = Field(ge=0)
    texts: list[str] = Field(min_length=1)
    avatars: list[str] = []
    watch: dict[Watch, float]
    interrupt: float = Field(0.0, ge=0, le=1)
    enhance: float = Field(0.0, ge=0, le=1)
    buffer_s: float = Field(0.3, ge=0)
    seed: int = 1

    @field_validator("watch")
    @classmethod
    def _some_share(cls, shares: dict[Watch, float]) -> dict[Watch, float]:
        if min(shares.values(), default=0.0) < 0 or not sum(shares.values()):
            raise ValueError("needs at least one share above 0, and none below")
        return shares


def read_scenario(path: Path | None) -> Scenario:
    """The scenario of a file; None: the shipped one. Raises ConfigError with the key that is wrong."""
    write = "--write-scenario."
    return read_model(path or SHIPPED, Scenario, ("Scenario", f"Make one with {write}"), f"Start from {write}")
