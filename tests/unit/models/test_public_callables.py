"""The public callables of design.md: order and defaults of their arguments; arrays and tensors give equal results.

Their numbers are tested elsewhere: test_features, test_musetalk, avatar/test_bisenet, avatar/test_track,
stitch/test_paste_region, stitch/test_musetalk_paste, stitch/test_paste, stitch/test_session, restore/test_gfpgan.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.avatar import bisenet
from models.avatar.parse import FaceParser, paste_region
from models.avatar.track import musetalk_box
from models.features import WhisperFeatures
from models.musetalk import MuseTalk
from models.restore import gfpgan as gfpgan_module
from models.restore.gfpgan import GFPGAN
from models.restore.gfpgan_net import GFPGANNet
from models.stitch.paste import musetalk_blend, musetalk_material, paste
from models.stitch.session import SessionFile
from tests.support.full_size import on_meta
from tests.support.paths import ROOT
from tests.support.random_weights import (
    BISENET_WIDTH,
    GFPGAN_CHANNELS,
    WIDTH,
    gfpgan_weights,
    make_kl,
    make_unet,
    write_state,
    write_vae,
)
from tests.unit.models.stitch.test_paste_region import face_labels

EMBEDDED = ROOT / "models" / "embedded"
BOX = (200, 100, 380, 300)
needed = inspect.Parameter.empty

SIGNATURES: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (WhisperFeatures.load, {"dir": needed, "device": "cpu", "dtype": torch.float32}),
    (WhisperFeatures.windows, {"self": needed, "samples_16khz": needed, "fps": 25}),
    (
        MuseTalk.load,
        {"unet_config": needed, "unet_weights": needed, "vae_dir": needed, "device": "cpu", "dtype": torch.float32},
    ),
    (MuseTalk.encode_reference, {"self": needed, "faces_rgb": needed}),
    (MuseTalk.predict, {"self": needed, "latents": needed, "windows": needed}),
    (MuseTalk.decode, {"self": needed, "latents": needed}),
    (FaceParser.load, {"path": needed}),
    (FaceParser.logits, {"self": needed, "face_rgb": needed}),
    (paste_region, {"labels": needed, "mode": needed, "cheek_width": 90}),
    (musetalk_box, {"landmarks68": needed, "frame_height": needed, "bbox_shift": 0, "extra_margin": 10}),
    (musetalk_material, {"frame_rgb": needed, "box": needed, "labels": needed, "mode": needed, "cheek_width": 90}),
    (musetalk_blend, {"frame_rgb": needed, "face_rgb": needed, "box": needed, "mask": needed, "crop_box": needed}),
    (GFPGAN.load, {"path": needed}),
    (GFPGAN.restore, {"self": needed}),
    (GFPGAN.net, {"self": needed, "x": needed}),
    (paste, {"frame": needed, "face": needed, "transform": needed, "mask": needed, "mode": "feather"}),
    (SessionFile.append, {"self": needed, "fragment": needed}),
    (SessionFile.recover, {"self": needed}),
]


@pytest.mark.parametrize(("function", "wanted"), SIGNATURES, ids=lambda item: getattr(item, "__qualname__", ""))
def test_arguments_have_their_order_and_all_others_have_defaults(
    function: Callable[..., Any], wanted: dict[str, Any]
) -> None:
    given = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    assert dict(list(given.items())[: len(wanted)]) == wanted
    others = list(given)[len(wanted) :]
    assert all(given[name] is not needed for name in others if (function, name) != (GFPGAN.restore, "faces"))


def forms(array: np.ndarray) -> dict[str, Any]:
    """One array in every form: from another process (read-only), with negative strides (BGR → RGB), from torch."""
    fixed = array.copy()
    fixed.flags.writeable = False
    flipped = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return {"array": array.copy(), "read-only": fixed, "flipped": flipped, "tensor": torch.tensor(array)}


def alike(call: Callable[[Any], Any], array: np.ndarray, exact: bool = True) -> Any:
    """Check that `call` returns the same for every form of `array` and changes none of them; return the result."""
    results = {}
    for name, form in forms(array).items():
        results[name] = np.asarray(call(form))
        assert np.array_equal(np.asarray(form), array), f"{name} was changed"
    for name, result in results.items():
        assert np.allclose(result, results["array"], rtol=0, atol=0 if exact else 1e-5), name
    return results["array"]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_windows_take_samples_in_any_form_and_type() -> None:
    features = WhisperFeatures.load(EMBEDDED / "whisper")
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 24_000).astype(np.float32)
    windows = alike(features.windows, samples)
    assert windows.shape == (37, 50, 384) and windows.dtype == np.float32  # floor(1.5 · 25)
    assert np.array_equal(features.windows(samples.astype(np.float64)), windows)
    assert features.windows(torch.tensor(samples), 30).shape == (45, 50, 384)


@pytest.fixture(scope="module")
def musetalk(tmp_path_factory: pytest.TempPathFactory) -> MuseTalk:
    """Narrow networks of MuseTalk's structure."""
    folder = tmp_path_factory.mktemp("musetalk")
    unet = make_unet()
    unet.save_config(folder)
    write_state(folder / "unet.pth", unet.state_dict())
    write_vae(folder / "vae", make_kl())
    return MuseTalk.load(folder / "config.json", folder / "unet.pth", folder / "vae")


def test_faces_latents_and_windows_may_be_arrays_or_tensors(musetalk: MuseTalk) -> None:
    rng = np.random.default_rng(0)
    latents = alike(musetalk.encode_reference, picture(256, 256)[None])
    assert latents.shape == (1, 8, 32, 32) and latents.dtype == np.float32
    windows = rng.standard_normal((1, 50, WIDTH)).astype(np.float32)
    face = alike(lambda z: musetalk.predict(z, windows), latents, exact=False)
    assert np.allclose(face, alike(lambda w: musetalk.predict(torch.tensor(latents), w), windows, exact=False))
    assert face.shape == (1, 4, 32, 32) and face.dtype == np.float32
    pixels = alike(musetalk.decode, face)
    assert pixels.shape == (1, 256, 256, 3) and pixels.dtype == np.uint8
    halves = musetalk.predict(latents.astype(np.float16), torch.tensor(windows).half())
    assert float((halves - torch.tensor(face)).abs().max()) < 0.01 * np.abs(face).max()
    assert np.array_equal(musetalk.decode(face.astype(np.float64)), pixels)


def test_results_record_no_gradients(musetalk: MuseTalk) -> None:
    latents = torch.zeros(1, 8, 32, 32, requires_grad=True)
    assert not musetalk.predict(latents, torch.zeros(1, 50, WIDTH)).requires_grad


def test_boxes_come_from_landmarks_of_any_type() -> None:
    points = np.random.default_rng(1).uniform(100, 300, (68, 2))
    box = musetalk_box(points, 480, -5, 10)
    assert [type(edge) for edge in box] == [int] * 4
    for landmarks in (points.astype(np.float32), points.astype(int), torch.tensor(points), points.tolist()):
        assert musetalk_box(landmarks, 480, -5, 10) == box
    assert musetalk_box(points, np.int64(480), np.int64(-5), np.int64(10)) == box
    assert musetalk_box(forms(points)["read-only"], 480, -5, 10) == box


@pytest.mark.parametrize("mode", ["raw", "neck", "jaw"])
def test_regions_masks_and_blends_take_arrays_and_tensors(mode: str) -> None:
    labels, frame, face = face_labels(), picture(480, 640), picture(200, 180, seed=1)
    assert alike(lambda form: paste_region(form, mode), labels).dtype == np.uint8
    assert np.array_equal(paste_region(labels.astype(np.uint8), mode), paste_region(labels, mode))
    mask, crop_box = musetalk_material(frame, BOX, labels, mode)
    assert crop_box == (140, 50, 440, 350) and mask.shape == (300, 300)
    alike(lambda form: musetalk_material(frame, BOX, form, mode, 90)[0], labels)
    alike(lambda form: musetalk_material(form, BOX, labels, mode, 90)[0], frame)
    whole = alike(lambda form: musetalk_blend(form, face, BOX, mask, crop_box), frame)
    assert np.array_equal(alike(lambda form: musetalk_blend(frame, form, BOX, mask, crop_box), face), whole)
    assert np.array_equal(alike(lambda form: musetalk_blend(frame, face, BOX, form, crop_box), mask), whole)
    for box in (list(BOX), np.array(BOX), torch.tensor(BOX)):
        assert musetalk_material(frame, box, labels, mode)[1] == crop_box
        assert np.array_equal(musetalk_blend(frame, face, box, mask, np.array(crop_box)), whole)
        resized = musetalk_blend(frame, picture(256, 256), box, mask, list(crop_box))
        assert resized.shape == frame.shape and not np.array_equal(resized, whole)


def test_a_face_is_pasted_back_from_arrays_and_tensors() -> None:
    frame, face, mask = picture(480, 640), picture(256, 256, seed=1), np.full((256, 256), 255, np.uint8)
    transform = np.array([[0.8, 0.1, -100], [-0.1, 0.8, -60]], np.float32)
    whole = alike(lambda form: paste(form, face, transform, mask), frame)
    assert np.array_equal(alike(lambda form: paste(frame, form, transform, mask, "feather"), face), whole)
    assert np.array_equal(alike(lambda form: paste(frame, face, form, mask), transform), whole)
    assert np.array_equal(alike(lambda form: paste(frame, face, transform, form), mask), whole)
    assert np.abs(whole.astype(int) - frame).max() > 100


def test_a_parser_scores_pictures_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(bisenet, "BiSeNet", partial(bisenet.BiSeNet, BISENET_WIDTH))
    parser = FaceParser.load(write_state(tmp_path / "79999_iter.pth", bisenet.BiSeNet().state_dict()))
    scores = alike(parser.logits, picture(90, 70))
    assert scores.shape == (19, 512, 512) and scores.dtype == np.float32
    assert paste_region(scores.argmax(0), "jaw").shape == (512, 512)


def test_gfpgan_takes_arrays_and_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = partial(GFPGANNet, GFPGAN_CHANNELS)
    monkeypatch.setattr(gfpgan_module, "GFPGANNet", narrow)
    shapes = {key: tuple(value.shape) for key, value in on_meta(narrow).items()}
    torch.save({"params_ema": gfpgan_weights(shapes)}, tmp_path / "GFPGANv1.4.pth")
    gfpgan = GFPGAN.load(str(tmp_path / "GFPGANv1.4.pth"))
    faces = picture(512, 512)[None]
    assert np.array_equal(alike(lambda form: gfpgan.restore(form, 0.0), faces), faces)
    restored = gfpgan.restore(torch.tensor(faces))
    assert restored.shape == faces.shape and restored.dtype == np.uint8
    flipped = (faces[..., ::-1].transpose(0, 3, 1, 2) / 127.5 - 1)[:, ::-1]  # BGR, seen as RGB; float64
    image = gfpgan.net(flipped)
    assert image.shape == (1, 3, 512, 512) and image.dtype == torch.float32 and not image.requires_grad
    assert float(image.abs().max()) > 1, "unclipped"
    levels = ((image.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1)
    assert np.abs(levels.numpy() - restored).max() <= 1
