"""models.musetalk: the numbers of each method, both key names of VAEs, and errors that name keys."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from models.errors import InputError, WeightsError
from models.musetalk import MuseTalk, load_vae, position_code
from models.weights.vae_files import modern_vae_keys, vae_fingerprint
from tests.support.paths import ROOT
from tests.support.random_weights import (
    KL_SCALE,
    WIDTH,
    make_kl,
    make_taesd,
    make_tiny,
    make_unet,
    write_state,
    write_vae,
)

EMBEDDED = ROOT / "models" / "embedded"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(state: dict[str, torch.Tensor], as_convolutions: bool) -> dict[str, torch.Tensor]:
    """The VAE's keys before diffusers 0.12, with linear or 1 × 1 convolution weights."""
    old = {}
    for key, value in state.items():
        for new_name, old_name in OLD_NAMES.items():
            if ".attentions.0." in key:
                key = key.replace(f".{new_name}.", f".{old_name}.")
        is_projection = any(f".{name}.weight" in key for name in OLD_NAMES.values())
        old[key] = value[:, :, None, None] if is_projection and as_convolutions else value
    return old


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MuseTalk-format folder with random weights: `musetalk.json`, `unet.pth`, `kl/`, `tiny/`."""
    root = tmp_path_factory.mktemp("weights")
    unet = make_unet()
    (root / "musetalk.json").write_text(json.dumps({**unet.config, "_diffusers_version": "0.6.0.dev0"}))
    write_state(root / "unet.pth", unet.state_dict())
    write_vae(root / "kl", make_kl())
    write_vae(root / "tiny", make_tiny())
    return root


def load(folder: Path, vae: str = "kl", **options: object) -> MuseTalk:
    return MuseTalk.load(folder / "musetalk.json", folder / "unet.pth", folder / vae, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def musetalk(folder: Path) -> MuseTalk:
    return load(folder)


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)


# Positional encoding


def test_the_positional_encoding_is_a_sinusoid_of_base_10000() -> None:
    code = position_code(50, 384)
    assert code.shape == (50, 384)
    for position, column in [(0, 0), (1, 0), (1, 1), (7, 100), (49, 382), (49, 383)]:
        angle = position / 10_000 ** ((column // 2 * 2) / 384)
        wanted = math.cos(angle) if column % 2 else math.sin(angle)
        assert float(code[position, column]) == pytest.approx(wanted, abs=2e-6)


# Encoding


def test_reference_latents_are_masked_first_then_whole(musetalk: MuseTalk, faces: np.ndarray) -> None:
    latents = musetalk.encode_reference(faces)
    assert latents.shape == (2, 8, 32, 32) and latents.dtype == torch.float32
    black = faces.copy()
    black[:, 128:] = 0  # before normalisation: −1 after
    vae = make_kl()
    for start, images in ((0, black), (4, faces)):
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        with torch.no_grad():
            wanted = vae.encode(x).latent_dist.mean * KL_SCALE  # a normal distribution's mode
        torch.testing.assert_close(latents[:, start : start + 4], wanted, atol=1e-5, rtol=1e-4)


def test_a_tiny_vae_is_called_without_packing_its_latents(folder: Path, faces: np.ndarray) -> None:
    tiny, vae = load(folder, "tiny"), make_tiny()
    x = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        wanted = vae.encoder(x) * 1.25
        image = vae.decoder(wanted / 1.25)
    torch.testing.assert_close(tiny.encode_reference(faces)[:, 4:], wanted, atol=1e-5, rtol=1e-4)
    rounded = ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(tiny.decode(wanted).astype(int) - rounded).max() <= 1
    assert np.mean(tiny.decode(wanted) != rounded) < 1e-3


def test_encoding_does_not_depend_on_the_batch(musetalk: MuseTalk, faces: np.ndarray) -> None:
    many = np.concatenate([faces] * 10)  # 20 faces: more than one pass
    torch.testing.assert_close(
        musetalk.encode_reference(many)[18:], musetalk.encode_reference(faces), atol=1e-5, rtol=1e-4
    )


# Prediction


def test_prediction_adds_the_positional_encoding_and_uses_step_0(musetalk: MuseTalk) -> None:
    torch.manual_seed(3)
    latents, windows = torch.randn(3, 8, 32, 32), torch.randn(3, 50, WIDTH)
    with torch.no_grad():
        wanted = make_unet()(latents, torch.tensor([0]), windows + position_code(50, WIDTH)).sample
        without = make_unet()(latents, torch.tensor([0]), windows).sample
    got = musetalk.predict(latents, windows)
    assert got.shape == (3, 4, 32, 32)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert float((got - without).abs().max()) > 1e-3  # the encoding has an effect, so the line above can fail


def test_read_only_half_precision_arrays_are_accepted(musetalk: MuseTalk) -> None:
    rng = np.random.default_rng(4)
    latents, windows = (rng.standard_normal(s).astype(np.float16) for s in ((2, 8, 32, 32), (2, 50, WIDTH)))
    latents.flags.writeable = windows.flags.writeable = False
    wanted = musetalk.predict(torch.from_numpy(latents.copy()).float(), torch.from_numpy(windows.copy()).float())
    assert torch.equal(musetalk.predict(latents, windows), wanted)


# Decoding


def test_decoding_divides_by_the_scaling_factor_and_rounds(musetalk: MuseTalk) -> None:
    torch.manual_seed(5)
    latents = torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        image = make_kl().decode(latents / KL_SCALE).sample
    wanted = ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    got = musetalk.decode(latents)
    assert got.shape == (2, 256, 256, 3) and got.dtype == np.uint8
    assert np.abs(got - wanted).max() <= 0.5 + 1e-2  # rounded to nearest, not truncated


def test_generate_is_decode_of_predict(musetalk: MuseTalk) -> None:
    torch.manual_seed(6)
    latents, windows = torch.randn(2, 8, 32, 32), torch.randn(2, 50, WIDTH)
    assert np.array_equal(musetalk.generate(latents, windows), musetalk.decode(musetalk.predict(latents, windows)))


def test_the_embedded_pair_reconstructs_the_top_of_a_face_it_is_given() -> None:
    """From the latents of a grey face with a bright forehead, the part above the mask is generated again."""
    pair = MuseTalk.load(
        EMBEDDED / "musetalk" / "musetalk.json", EMBEDDED / "musetalk" / "unet.safetensors", EMBEDDED / "vae"
    )
    face = np.full((1, 256, 256, 3), 90, np.uint8)
    face[:, 20:60, 60:200] = 180
    made = pair.generate(pair.encode_reference(face), np.zeros((1, 50, 384), np.float32))[0].astype(float)
    assert abs(made[25:55, 70:190].mean() - 180) < 25
    assert abs(made[75:110].mean() - 90) < 25


# Another decoder


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderTiny]:
    """A folder of a narrow TAESD: scaling_factor 1, as in the released one; its size is tested in test_full_size."""
    vae = make_taesd()
    assert vae.config.scaling_factor == 1.0
    return write_vae(tmp_path_factory.mktemp("taesd"), vae), vae


def test_taesd_decodes_scaled_latents_unchanged(folder: Path, taesd: tuple[Path, AutoencoderTiny]) -> None:
    """Its latents are Stable Diffusion's × 0.18215: they must not be divided by the KL VAE's factor."""
    where, vae = taesd
    latents = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 4, 32, 32)).astype(np.float32))
    with torch.no_grad():
        image = vae.decode(latents).sample
        divided = vae.decode(latents / KL_SCALE).sample
    wanted = ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    got = load(folder, decoder_dir=where).decode(latents)
    assert got.shape == (2, 256, 256, 3) and np.abs(got - wanted).max() <= 0.5 + 1e-2
    assert float((divided - image).abs().mean()) > 0.01  # the factor has an effect, so the line above can fail


def test_another_decoder_does_not_change_reference_and_prediction(
    folder: Path, musetalk: MuseTalk, faces: np.ndarray, taesd: tuple[Path, AutoencoderTiny]
) -> None:
    tiny = load(folder, decoder_dir=taesd[0])
    latents = tiny.encode_reference(faces)
    assert torch.equal(latents, musetalk.encode_reference(faces))
    windows = np.zeros((2, 50, WIDTH), np.float32)
    assert torch.equal(tiny.predict(latents, windows), musetalk.predict(latents, windows))
    assert tiny.vae_fingerprint == musetalk.vae_fingerprint  # avatars stay usable


def test_the_unused_decoder_is_dropped(folder: Path, taesd: tuple[Path, AutoencoderTiny]) -> None:
    tiny = load(folder, decoder_dir=taesd[0])
    assert not [name for name, _ in tiny.vae.named_parameters() if name.startswith("decoder.")]


# Key names


@pytest.mark.parametrize("as_convolutions", [False, True])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_old_vae_keys_give_the_same_pixels(
    folder: Path, tmp_path: Path, faces: np.ndarray, as_convolutions: bool, name: str
) -> None:
    old = old_names(make_kl().state_dict(), as_convolutions)
    assert {
        "decoder.mid_block.attentions.0.query.weight",
        "encoder.mid_block.attentions.0.proj_attn.bias",
    } <= old.keys()
    write_vae(tmp_path / "vae", make_kl())
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    write_state(tmp_path / "vae" / name, old)
    image = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        new, old = (load_vae(where)(image).sample for where in (folder / "kl", tmp_path / "vae"))
    assert torch.equal(new, old)


def test_new_keys_are_not_changed() -> None:
    state = make_kl().state_dict()
    renamed = modern_vae_keys(state)
    assert renamed.keys() == state.keys() and all(renamed[key] is state[key] for key in state)


# Scale, fingerprint, dtype


def test_a_config_without_a_scaling_factor_uses_the_class_default(folder: Path, tmp_path: Path) -> None:
    assert "scaling_factor" not in json.loads((folder / "kl" / "config.json").read_text())
    assert load_vae(folder / "kl").config.scaling_factor == KL_SCALE
    write_vae(tmp_path / "tiny", make_tiny())
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    assert load_vae(tmp_path / "tiny").config.scaling_factor == 1.0


def test_the_fingerprint_changes_with_the_weights_and_the_config(folder: Path, tmp_path: Path) -> None:
    copies = [write_vae(tmp_path / name, make_kl()) for name in ("same", "weights", "config")]
    state = load_file(copies[1] / "diffusion_pytorch_model.safetensors")
    state["decoder.conv_out.bias"][0] += 1e-3
    save_file(state, copies[1] / "diffusion_pytorch_model.safetensors")
    config = json.loads((copies[2] / "config.json").read_text())
    (copies[2] / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.2}))
    prints = [vae_fingerprint(copy) for copy in copies]
    assert len(set(prints)) == 3 and all(len(value) == 16 for value in prints)
    assert load(folder).vae_fingerprint == vae_fingerprint(folder / "kl") == prints[0]


def test_bfloat16_is_close_to_float32(folder: Path, musetalk: MuseTalk, faces: np.ndarray) -> None:
    half = load(folder, dtype=torch.bfloat16)
    latents = half.encode_reference(faces)
    assert latents.dtype == torch.bfloat16
    assert float((latents.float() - musetalk.encode_reference(faces)).abs().max()) < 0.05
    wanted = musetalk.decode(latents[:, 4:])
    assert np.abs(half.decode(latents[:, 4:]).astype(int) - wanted).mean() < 3


def test_results_are_ordinary_tensors_without_gradients(musetalk: MuseTalk, faces: np.ndarray) -> None:
    latents = musetalk.encode_reference(faces)
    predicted = musetalk.predict(latents, np.zeros((2, 50, WIDTH), np.float32))
    for tensor in (latents, predicted):
        assert not tensor.requires_grad and not tensor.is_inference() and tensor.is_contiguous()


# Errors


def test_a_partial_unet_names_its_keys(folder: Path, tmp_path: Path) -> None:
    state = make_unet().state_dict()
    del state["conv_in.weight"]
    state["conv_out.bias"] = torch.zeros(7)
    state["stray.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        MuseTalk.load(folder / "musetalk.json", write_state(tmp_path / "unet.pth", state), folder / "kl")
    message = caught.value.message
    assert "1 missing (conv_in.weight)" in message
    assert "1 unexpected (stray.weight)" in message
    assert "1 mis-shaped (conv_out.bias (7,) instead of (4,))" in message


def test_a_unet_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "musetalk.json").read_text())
    (tmp_path / "sd.json").write_text(json.dumps({**config, "in_channels": 4}))
    with pytest.raises(WeightsError, match="4 channels in and 4 out, not 8 and 4"):
        MuseTalk.load(tmp_path / "sd.json", folder / "unet.pth", folder / "kl")


def test_a_vae_of_another_class_is_refused(folder: Path, tmp_path: Path) -> None:
    write_vae(tmp_path / "vae", make_kl())
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(WeightsError, match=r"VQModel.*AutoencoderKL, AutoencoderTiny"):
        MuseTalk.load(folder / "musetalk.json", folder / "unet.pth", tmp_path / "vae")


def test_inputs_of_another_shape_name_the_expected_shape(musetalk: MuseTalk, faces: np.ndarray) -> None:
    latents, windows = np.zeros((2, 8, 32, 32), np.float32), np.zeros((2, 50, WIDTH), np.float32)
    for call, wanted in (
        (lambda: musetalk.encode_reference(faces[:, :128]), "n ≥ 1, 256, 256, 3"),
        (lambda: musetalk.encode_reference(faces[:0]), "n ≥ 1, 256, 256, 3"),
        (lambda: musetalk.encode_reference(faces.astype(np.float32)), "uint8"),
        (lambda: musetalk.predict(latents[:, :4], windows), "n ≥ 1, 8, 32, 32"),
        (lambda: musetalk.predict(latents, windows[:, :40]), f"n ≥ 1, 50, {WIDTH}"),
        (lambda: musetalk.predict(latents[:1], windows), "one of each per frame"),
        (lambda: musetalk.decode(latents), "n ≥ 1, 4, 32, 32"),
    ):
        with pytest.raises(InputError, match=wanted):
            call()
