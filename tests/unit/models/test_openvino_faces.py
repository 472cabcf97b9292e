"""Faces of avatars on a CPU: the cropped decoder gives what the whole one does, and each face is decoded whole once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.errors import ConfigError
from models.map_window import WHOLE_FACE, MapWindow
from models.musetalk import ByteDecoder
from models.openvino_faces import Frame, KeptAvatar, OpenVINOFaces
from models.runtime.openvino_cache import CompiledNet, compile_cached, import_openvino
from models.runtime.openvino_crop import crop_decoder
from models.types import CROP_PX, CropWindow, Float32, UInt8
from tests.support.random_weights import make_tiny

MOUTH = CropWindow((124, 256), (36, 220))
WINDOWS = [MOUTH, CropWindow((131, 198), (77, 190)), CropWindow((0, 1), (255, 256)), CropWindow((40, 41), (0, 256))]


@pytest.fixture(scope="module")
def decoder() -> CompiledNet:
    example = np.zeros((2, 4, 32, 32), np.float32)
    return compile_cached("decode", lambda: ByteDecoder(make_tiny()), [example], "", threads=1, batch_sizes=(1,))


def latents(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, 4, 32, 32)).astype(np.float32)


def cropped(net: CompiledNet, window: CropWindow) -> CompiledNet:
    return net.changed(lambda model: crop_decoder(model, MapWindow(window.rows, window.columns, CROP_PX)))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_cropped_decoder_gives_the_window_of_the_whole_face(decoder: CompiledNet, window: CropWindow) -> None:
    made, whole = cropped(decoder, window)(latents(2)), decoder(latents(2))
    assert made.shape == (2, *window.shape, 3) and whole.std() > 3
    assert np.array_equal(made, window.cut(whole))


def test_a_decoder_with_norms_is_refused() -> None:
    operators = import_openvino().opset13
    latents = operators.parameter([1, 4, 32, 32])
    normed = operators.mvn(latents, np.array([2, 3]), True, 1e-5, "inside_sqrt")
    model = import_openvino().Model([normed], [latents])
    with pytest.raises(ConfigError, match="cannot be cropped: it contains MVN"):
        crop_decoder(model, MapWindow((0, 8), (0, 8), 32))


class Spoken:
    """An OpenVINOFaces whose UNet returns the first four channels of its latents plus what is spoken."""

    def __init__(self, decoder: CompiledNet) -> None:
        self.decoder = decoder
        self.faces = OpenVINOFaces(lambda latents, windows: self.latents(latents, windows), decoder)

    @staticmethod
    def latents(latents: Any, windows: Any) -> Float32:
        return np.float32(latents[:, :4]) + windows[:, :1, :1, None]

    def hold(self, count: int, seed: int, window: CropWindow = WHOLE_FACE) -> KeptAvatar:
        pair = np.concatenate([latents(count, seed)] * 2, axis=1).astype(np.float16)
        kept = self.faces.hold(pair, window)
        if kept.decoder is not None:
            kept.decoder.exception()  # waits until it is compiled
        return kept

    def whole(self, frames: list[Frame]) -> UInt8:
        held, windows = np.stack([a.latents[k] for a, k, _ in frames]), np.stack([w for *_, w in frames])
        faces: UInt8 = self.decoder(self.latents(held, windows))
        return faces


def said(value: float) -> Any:
    return np.full((50, 8), value, np.float16)


def test_a_face_is_decoded_whole_once_and_its_window_from_then_on(decoder: CompiledNet) -> None:
    spoken = Spoken(decoder)
    one, two, full = spoken.hold(3, 1, MOUTH), spoken.hold(3, 2, CropWindow((100, 200), (8, 100))), spoken.hold(2, 3)
    first: list[Frame] = [(one, 2, said(0)), (full, 1, said(0)), (two, 0, said(0)), (one, 0, said(0))]
    assert np.array_equal(spoken.faces.start(first), spoken.whole(first))
    later: list[Frame] = [(two, 0, said(1)), (one, 2, said(1)), (one, 1, said(1)), (full, 1, said(1))]
    made, now, before = np.stack(spoken.faces.start(later)), spoken.whole(later), spoken.whole(first)
    assert np.array_equal(made[2:], now[2:])  # a frame that is new, and an avatar whose whole faces are decoded
    for k, (avatar, old) in enumerate([(two, before[2]), (one, before[0])]):
        wanted = old.copy()
        avatar.window.cut(wanted[None])[:] = avatar.window.cut(now[k : k + 1])
        assert np.array_equal(made[k], wanted) and not np.array_equal(made[k], now[k])


def test_avatars_share_the_decoder_of_a_window(decoder: CompiledNet) -> None:
    spoken = Spoken(decoder)
    one, two = spoken.hold(1, 1, MOUTH), spoken.hold(1, 2, CropWindow((125, 255), (37, 219)))
    assert one.decoder is two.decoder and one.nbytes == 3 * CROP_PX**2 + 2 * 8 * 32 * 32
    assert spoken.faces.report() == {"decoder rows (124, 256) columns (36, 220)": {"compiled": True}}


def test_whole_faces_are_decoded_where_the_window_cannot_be_compiled(
    decoder: CompiledNet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(model: Any, target: MapWindow) -> Any:
        raise ConfigError("It cannot be cropped.", "Use another.")

    monkeypatch.setattr("models.openvino_faces.crop_decoder", fail)
    spoken = Spoken(decoder)
    kept = spoken.hold(1, 1, MOUTH)
    for value in (0, 1):
        frames: list[Frame] = [(kept, 0, said(value))]
        assert np.array_equal(spoken.faces.start(frames), spoken.whole(frames))
    assert "cannot be compiled: whole faces are decoded" in caplog.text
