"""models.restore.heads: heads stay on the device, the most recently used ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.restore import heads
from models.restore.heads import Heads


class Drawn:
    """Avatar faces that record what is drawn. The head of frame k is grey k; frame 99 cannot be decoded."""

    def __init__(self, name: str) -> None:
        self.key, self.frames = (name, "1"), []

    def head(self, frame: int) -> np.ndarray:
        if frame == 99:
            raise OSError("a damaged frame")
        self.frames.append(frame)
        return np.full((512, 512, 3), frame, np.uint8)


def levels(cache: Heads, wanted: list) -> list[int]:
    rows = cache.rows([(*one, None) for one in wanted])
    assert rows.shape == (len(wanted), 512, 512, 3)
    return rows[:, 300, 200, 1].tolist()


def test_only_heads_that_were_not_used_lately_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MIN_HEADS", 3)
    one, two = Drawn("one"), Drawn("two")
    cache = Heads("cpu", cache_bytes=0)  # three heads
    assert levels(cache, [(one, 7), (one, 8), (one, 7)]) == [7, 8, 7] and one.frames == [7, 8]
    assert levels(cache, [(two, 7), (one, 7)]) == [7, 7] and two.frames == [7] and one.frames == [7, 8]
    assert levels(cache, [(two, 9), (one, 7)]) == [9, 7] and one.frames == [7, 8]  # frame 8 made room
    assert levels(cache, [(one, 8)]) == [8] and one.frames == [7, 8, 8]


def test_a_frame_that_cannot_be_drawn_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    avatar = Drawn("one")
    cache = Heads("cpu", cache_bytes=0)
    for _ in range(2):
        with pytest.raises(OSError, match="damaged"):
            levels(cache, [(avatar, 3), (avatar, 99)])
    assert levels(cache, [(avatar, 3)]) == [3]


def test_a_head_that_is_drawn_already_is_used_where_it_is_missing() -> None:
    avatar, cache = Drawn("one"), Heads("cpu", cache_bytes=0)
    assert cache.missing(avatar, [5, 6, 5]) == [5, 6]
    drawn = np.full((512, 512, 3), 77, np.uint8)
    assert cache.rows([(avatar, 5, drawn), (avatar, 6, None)])[:, 0, 0, 0].tolist() == [77, 6] and avatar.frames == [6]
    assert cache.missing(avatar, [5, 6, 7]) == [7]


def test_a_head_that_could_not_be_copied_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    avatar, cache = Drawn("one"), Heads("cpu", cache_bytes=0)
    assert levels(cache, [(avatar, 5)]) == [5]

    def fail(self: torch.Tensor, *arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as broken, pytest.raises(torch.OutOfMemoryError):
        broken.setattr(torch.Tensor, "index_copy_", fail)
        levels(cache, [(avatar, 6)])
    assert levels(cache, [(avatar, 6), (avatar, 5)]) == [6, 5] and avatar.frames == [5, 6, 6, 5]
