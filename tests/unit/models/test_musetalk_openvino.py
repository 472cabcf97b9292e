"""MuseTalk on OpenVINO: equal to the torch twin, and without torch once converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import InputError, WeightsError
from models.musetalk import MuseTalk, encode_reference
from models.musetalk_openvino import OpenVINOMuseTalk
from models.reference_encoder import ReferenceEncoder
from models.runtime.openvino_cache import has_fast_bfloat16
from tests.support.paths import ROOT
from tests.support.random_weights import WIDTH, make_kl, make_tiny, make_unet, write_state, write_vae

LATENT_TOLERANCE = 1e-3  # of the largest latent

pytestmark = pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41", reason="OpenVINO has no GroupNormalization for SSE4.1"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    unet = make_unet()
    (root / "musetalk.json").write_text(json.dumps(dict(unet.config)))
    write_state(root / "unet.safetensors", unet.state_dict())
    write_vae(root / "kl", make_kl())
    write_vae(root / "tiny", make_tiny())
    return root


def paths(folder: Path, vae: str) -> tuple[Path, Path, Path]:
    return folder / "musetalk.json", folder / "unet.safetensors", folder / vae


@pytest.fixture(scope="module")
def engine(folder: Path) -> OpenVINOMuseTalk:
    return OpenVINOMuseTalk.load(*paths(folder, "kl"), cache_dir=folder / "cache", threads=1)


@pytest.fixture(scope="module")
def twin(folder: Path) -> MuseTalk:
    return MuseTalk.load(*paths(folder, "kl"))


def inputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    latents = rng.standard_normal((count, 8, 32, 32)).astype(np.float16)
    return latents, rng.standard_normal((count, 50, WIDTH)).astype(np.float16)


def random_faces(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)


def assert_same_faces(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape and got.dtype == np.uint8
    assert got.std() > 3  # not a flat picture, so that equality means something
    assert np.abs(got.astype(int) - wanted).max() <= 1
    assert np.mean(got != wanted) < 0.01


@pytest.mark.parametrize("count", [1, 6])
def test_faces_are_within_one_grey_level_of_torchs(engine: OpenVINOMuseTalk, twin: MuseTalk, count: int) -> None:
    assert_same_faces(engine.generate(*inputs(count)), twin.generate(*inputs(count)))


def test_bfloat16_faces_are_near_float32s(engine: OpenVINOMuseTalk, folder: Path) -> None:
    fast = OpenVINOMuseTalk.load(
        *paths(folder, "kl"), cache_dir=folder / "cache", threads=1, warm=False, precision="bfloat16"
    )
    wanted = engine.generate(*inputs(4)).astype(float)
    error = np.sqrt(((fast.generate(*inputs(4)) - wanted) ** 2).mean())
    assert error < 0.05 * wanted.std() and (error > 0) >= has_fast_bfloat16()
    faces = random_faces(2)
    assert np.array_equal(fast.encode_reference(faces), engine.encode_reference(faces))


def test_a_tiny_decoder_gives_torchs_faces_too(folder: Path) -> None:
    mixed = OpenVINOMuseTalk.load(*paths(folder, "kl"), threads=1, warm=False, decoder_dir=folder / "tiny")
    twin = MuseTalk.load(*paths(folder, "kl"), decoder_dir=folder / "tiny")
    assert_same_faces(mixed.generate(*inputs(2)), twin.generate(*inputs(2)))
    assert mixed.recorded is not None  # it can be cropped
    assert mixed.vae_fingerprint == twin.vae_fingerprint == MuseTalk.load(*paths(folder, "kl")).vae_fingerprint


def test_latents_are_within_a_thousandth_of_torchs(engine: OpenVINOMuseTalk, twin: MuseTalk) -> None:
    latents, windows = inputs(3)
    got, wanted = engine.predict(latents, windows), twin.predict(latents, windows).numpy()
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() <= LATENT_TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_references_and_fingerprint_are_the_torch_twins(folder: Path, vae: str) -> None:
    engine = OpenVINOMuseTalk.load(*paths(folder, vae), cache_dir=folder / "cache", threads=1, warm=False)
    twin = MuseTalk.load(*paths(folder, vae))
    faces = random_faces(3)
    got = engine.encode_reference(faces)
    wanted = twin.encode_reference(faces).numpy()
    assert got.shape == (3, 8, 32, 32) and wanted.std() > 0.01
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())
    assert engine.vae_fingerprint == twin.vae_fingerprint


def test_only_the_rows_near_the_mask_are_encoded_twice() -> None:
    vae = make_tiny()
    encoder = ReferenceEncoder(vae).eval()
    faces = torch.from_numpy(random_faces(2))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(faces), encode_reference(vae, faces), atol=1e-6, rtol=0)
    assert [rows.stop - rows.start for rows in encoder.rows][:4] == [4, 14, 12, 17]  # of 256, and 128


def test_references_need_rgb_bytes(engine: OpenVINOMuseTalk) -> None:
    with pytest.raises(InputError, match="are float32"):
        engine.encode_reference(np.zeros((1, 256, 256, 3), np.float32))
    with pytest.raises(InputError, match=r"\(1, 128, 256, 3\)"):
        engine.encode_reference(np.zeros((1, 128, 256, 3), np.uint8))


def test_the_engine_starts_from_its_cache_without_torch(folder: Path, engine: OpenVINOMuseTalk) -> None:
    latents, windows = inputs(5)
    tiny = OpenVINOMuseTalk.load(*paths(folder, "tiny"), cache_dir=folder / "cache", threads=1, warm=False)
    references = tiny.encode_reference(random_faces(1))
    np.savez(folder / "inputs.npz", latents=latents, windows=windows, faces=random_faces(1))
    script = """
import sys, numpy as np
from models.musetalk_openvino import OpenVINOMuseTalk
*paths, cache, inputs, out = sys.argv[1:]
given = np.load(inputs)
engine = OpenVINOMuseTalk.load(*paths, cache_dir=cache, threads=1)
made = engine.generate(given["latents"], given["windows"])
tiny = OpenVINOMuseTalk.load(*paths[:2], paths[2].replace("kl", "tiny"), cache_dir=cache, threads=1, warm=False)
references = tiny.encode_reference(given["faces"])
heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
assert not heavy, heavy
assert sys.modules["openvino_telemetry"] is None  # no telemetry is sent
np.savez(out, made=made, references=references)
"""
    arguments = [*paths(folder, "kl"), folder / "cache", folder / "inputs.npz", folder / "out.npz"]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, check=True, timeout=120)
    out = np.load(folder / "out.npz")
    assert np.array_equal(out["references"], references)
    assert np.array_equal(out["made"], engine.generate(latents, windows))


def test_other_weights_have_another_fingerprint(folder: Path, engine: OpenVINOMuseTalk, tmp_path: Path) -> None:
    state = make_unet().state_dict()
    state["conv_out.bias"] += 1.0
    weights = write_state(tmp_path / "unet.safetensors", state)
    other = OpenVINOMuseTalk.load(folder / "musetalk.json", weights, folder / "kl", warm=False)
    assert other._fingerprint != engine._fingerprint


def test_wrong_files_name_their_keys(folder: Path, tmp_path: Path) -> None:
    state = make_unet().state_dict()
    del state["conv_in.weight"]
    weights = write_state(tmp_path / "unet.safetensors", state)
    with pytest.raises(WeightsError, match=r"1 missing \(conv_in\.weight\)"):
        OpenVINOMuseTalk.load(folder / "musetalk.json", weights, folder / "kl", cache_dir=tmp_path / "cache")
    with pytest.raises(WeightsError, match="missing"):
        OpenVINOMuseTalk.load(folder / "musetalk.json", tmp_path / "nowhere.pth", folder / "kl")
    assert not (tmp_path / "cache").exists()


def test_inputs_of_another_shape_name_the_expected_shape(folder: Path) -> None:
    engine = OpenVINOMuseTalk.load(*paths(folder, "kl"), warm=False)
    latents, windows = inputs(2)
    for call, wanted in (
        (lambda: engine.generate(latents[:, :4], windows), "n ≥ 1, 8, 32, 32"),
        (lambda: engine.generate(latents, windows[..., :-1]), f"n ≥ 1, 50, {WIDTH}"),
        (lambda: engine.predict(latents[:1], windows), "one of each per frame"),
        (lambda: engine.predict(latents[:0], windows[:0]), "n ≥ 1"),
        (lambda: engine.decode(latents), "n ≥ 1, 4, 32, 32"),
    ):
        with pytest.raises(InputError, match=wanted):
            call()
