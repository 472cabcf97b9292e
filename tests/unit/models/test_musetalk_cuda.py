"""Batches on a CUDA device, with recordings that run on the CPU: what goes where, and equality with plain calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models import musetalk_cuda
from models.cropped_decoder import decoder_statistics
from models.map_window import WHOLE_FACE
from models.musetalk import Generator, MuseTalk
from models.musetalk_cuda import CudaFaces, folded_unet
from models.runtime.cuda_graphs import fastest_split
from models.types import CropWindow
from tests.support.random_weights import WIDTH, make_kl, make_tiny, make_unet

CROP, OTHER = CropWindow((120, 256), (20, 236)), CropWindow((128, 240), (40, 200))  # on multiples of four


class Recorded:
    """Stands for GraphedFunction: a replay calls the function. Every size takes ten seconds and one per row."""

    def __init__(self, function: Callable[..., torch.Tensor], sizes: tuple[int, ...], *settings: Any, **more: Any):
        self.sizes, self._function, self.replays = tuple(sorted(sizes)), function, list[int]()
        made.append(self)

    def recording(self, size: int, *rows: tuple[tuple[int, ...], torch.dtype]) -> Any:
        inputs = [torch.full((size, *shape), 7, dtype=dtype) for shape, dtype in rows]  # left by an earlier call
        one = self._function(*(value[:1] for value in inputs))
        output = torch.empty((size, *one.shape[1:]), dtype=one.dtype)

        def replay() -> None:
            self.replays.append(size)
            output.copy_(self._function(*inputs))

        return SimpleNamespace(inputs=inputs, replay=replay, output=output, seconds=lambda: 10.0 + size)


made: list[Recorded] = []


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made.clear()
    monkeypatch.setattr(musetalk_cuda, "GraphedFunction", Recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    event = lambda **options: SimpleNamespace(record=lambda: None, synchronize=lambda: None)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "Event", event)
    with torch.inference_mode():
        yield


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float16)


@pytest.mark.parametrize("make", [make_kl, make_tiny])
@pytest.mark.parametrize("count", [1, 5])
def test_faces_equal_those_of_plain_calls(make: Callable[[], Any], count: int) -> None:
    plain = MuseTalk(make_unet(), make())
    faces = CudaFaces(plain.unet, plain.vae, "graphs", 4)
    latents, windows = noise(count, 8, 32, 32), noise(count, 50, WIDTH, seed=1)
    made, wanted = faces.generate(latents, windows), plain.generate(latents, windows)
    assert wanted.std() > 3 and made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted).max() <= 1  # rounded to another grey level


def test_frames_of_several_avatars_and_windows_share_a_call_of_the_unet() -> None:
    plain = MuseTalk(make_unet(), make_kl())
    faces = CudaFaces(plain.unet, plain.vae, "graphs", 8)
    latents, windows = noise(4, 8, 32, 32), noise(4, 50, WIDTH, seed=1)
    statistics = decoder_statistics(plain.vae, plain.predict(latents, windows)).numpy()  # of these very faces
    avatars = [
        faces.hold(latents, CROP, statistics),
        faces.hold(latents, OTHER, statistics),
        faces.hold(latents),
        faces.hold(latents[::-1].copy(), CROP, statistics[::-1].copy()),
    ]
    batch = [(0, 3), (1, 2), (0, 1), (2, 1), (3, 0)]  # avatar and frame; the last avatar has them reversed
    unet = made[0]
    unet.replays.clear()
    pending = faces.start([(avatars[a], 3 - k if a == 3 else k, windows[k]) for a, k in batch])
    pending.wait_for_last_part()
    got = pending()
    assert unet.replays == [8]
    whole = plain.generate(latents, windows)
    for (avatar, number), face in zip(batch, got, strict=True):
        wanted = avatars[avatar].window.cut(whole[number : number + 1])[0]
        assert face.shape == wanted.shape and np.abs(face.astype(int) - wanted).max() <= 1


def test_a_window_is_decoded_in_steps_that_avatars_share() -> None:
    faces = CudaFaces(make_unet(), make_tiny(), "graphs", 2)
    held = [faces.hold(noise(1, 8, 32, 32), CropWindow((122, 255), columns)) for columns in ((21, 233), CROP.columns)]
    assert [avatar.window for avatar in held] == [CROP, CROP] and len(made) == 3  # the UNet, whole faces, the window
    assert faces.hold(noise(1, 8, 32, 32)).window == WHOLE_FACE


def test_what_an_avatar_holds_is_counted_in_bytes() -> None:
    faces = CudaFaces(make_unet(), make_kl(), "graphs", 2)
    statistics = np.zeros((3, *faces._decoder.statistics_shape), np.float32)
    assert faces.hold(noise(3, 8, 32, 32), CROP, statistics).nbytes == 3 * 8 * 32 * 32 * 4 + statistics.nbytes


def test_the_report_names_the_times_and_the_sizes_of_a_full_batch() -> None:
    faces = CudaFaces(make_unet(), make_kl(), "graphs", 6)
    assert faces.report() == {
        "unet": {"ms": {6: 16000.0, 4: 14000.0, 2: 12000.0}, "full_batch": [6]},
        "decoder full": {"ms": {6: 16000.0, 4: 14000.0, 2: 12000.0, 1: 11000.0}, "full_batch": [6]},
    }


@pytest.mark.parametrize(
    ("rows", "seconds", "sizes"),
    [
        (64, {64: 1.0, 32: 0.4}, (32, 32)),
        (64, {64: 0.7, 32: 0.4}, (64,)),
        (5, {8: 1.0, 4: 0.5, 2: 0.3, 1: 0.25}, (4, 1)),
        (5, {8: 0.7, 4: 0.5, 2: 0.3, 1: 0.25}, (8,)),
        (3, {2: 0.5}, (2, 2)),
    ],
)
def test_a_batch_runs_in_the_sizes_that_take_the_least_time(
    rows: int, seconds: dict[int, float], sizes: tuple[int, ...]
) -> None:
    assert fastest_split(rows, seconds) == sizes


def test_the_folded_unet_equals_the_plain_one_and_shares_its_weights() -> None:
    unet = make_unet()
    folded = folded_unet(unet)
    latents, windows = torch.from_numpy(noise(3, 8, 32, 32)).float(), torch.from_numpy(noise(3, 50, WIDTH, seed=1))
    wanted = Generator(unet).eval()(latents, windows)
    assert wanted.std() > 0.1
    torch.testing.assert_close(Generator(folded).eval()(latents, windows), wanted, atol=1e-5, rtol=0)
    own = {weight.data_ptr() for weight in unet.parameters()}
    assert all(weight.data_ptr() in own for weight in folded.parameters())
    assert len(list(folded.parameters())) < len(list(unet.parameters()))  # the time embedding is a constant


def test_the_decoders_of_the_windows_used_last_stay_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(musetalk_cuda, "RECORDED_WINDOWS", 2)
    faces = CudaFaces(make_unet(), make_tiny(), "graphs", 2)
    latents, window = noise(1, 8, 32, 32), noise(50, WIDTH)
    held = [faces.hold(latents, crop) for crop in (CROP, OTHER)]
    assert list(faces._decoders) == [CROP, OTHER]  # and no longer the whole face
    recorded = len(made)
    whole = faces.hold(latents)
    assert len(made) == recorded + 1 and list(faces._decoders) == [OTHER, WHOLE_FACE]
    cut = [faces.start([(avatar, 0, window)])()[0] for avatar in (whole, held[0], held[1])]
    assert len(made) == recorded + 3
    for avatar, face in zip(held, cut[1:], strict=True):
        assert np.abs(avatar.window.cut(cut[0][None])[0].astype(int) - face).max() <= 1
