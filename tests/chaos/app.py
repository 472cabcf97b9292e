"""The graph with an AudioFeatures stage whose encoder is fake: that stage has no engine to choose in its config."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from ray import serve

import graph
from deployments.features import AudioFeatures
from tests.chaos.engines import Encoder


class FakeFeatures(AudioFeatures):
    def apply(self, config: Any, changed: set[str] | None) -> None:
        self.model = Encoder()  # type: ignore[assignment]
        self._rest = np.zeros((50, 384), np.float16)


def build_app(args: dict[str, Any] | None = None) -> serve.Application:
    """As graph.build_app."""
    with mock.patch.object(graph, "AudioFeatures", FakeFeatures):
        return graph.build_app(args)
