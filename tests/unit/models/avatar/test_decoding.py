"""models.avatar.decoding: which part of a face is decoded, and how exact the cropped decoder is on generated mouths."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deployments.preparation import decoding_measure, load_avatars_config, load_model
from models.avatar import decoding
from models.avatar.decoding import MOUTHS, choose_decoder, error_of, measure_decoding, own_faces
from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import DECODER, META, AvatarStore
from models.cropped_decoder import decoder_statistics
from models.errors import ConfigError
from models.types import CroppedDecoding, CropWindow, PreparedAvatar
from models.weights.checksums import EMBEDDED
from tests.support.avatar import astronaut, fake_encoder, moved, swaying, write_clip
from tests.support.random_weights import make_kl, make_unet, write_state, write_vae

WINDOW = CropWindow((118, 256), (20, 236))
N = 4
SAMPLES = 8  # generated mouths; a quarter of what preparation takes


@pytest.fixture(scope="module", autouse=True)
def fewer_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "SAMPLES", SAMPLES)
        decoding._mouths.cache_clear()
        yield
    decoding._mouths.cache_clear()


@pytest.fixture(scope="module")
def presenter() -> PreparedAvatar:
    return AvatarStore(EMBEDDED, EMBEDDED / "avatars").load("presenter", frames=False)


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    return make_kl()


# --- the choice


@pytest.mark.parametrize(
    ("setting", "mean", "p999", "cropped", "reason"),
    [
        ("auto", 0.5, 4, True, "cropped: differs by 0.50 grey levels on average, 99.9 % of pixels by at most 4$"),
        ("auto", 0.51, 2, False, "full: the cropped one differs by 0.51 .*limits are 0.5 and 4$"),
        ("auto", 0.1, 5, False, "full: .* at most 5; the limits"),
        ("cropped", 3.0, 90, True, "cropped: differs by 3.00"),
        ("full", 0.0, 0, False, "full, as `decode` says$"),
    ],
)
def test_the_measured_error_decides_unless_the_setting_does(presenter, setting, mean, p999, cropped, reason) -> None:
    decoding = CroppedDecoding(WINDOW, np.zeros((150, 30, 2, 32), np.float32), mean, p999)
    window, why = choose_decoder(setting, replace(presenter, decoding=decoding), tiny=False)
    assert window == (WINDOW if cropped else None) and re.match(reason, why), why


def test_a_tiny_decoder_is_cropped_around_the_masks_without_statistics(presenter: PreparedAvatar) -> None:
    assert choose_decoder("auto", presenter, tiny=True) == (
        CropWindow.around(presenter.masks),
        "cropped: exact with a tiny VAE",
    )


def test_an_avatar_without_statistics_is_decoded_in_full_and_cannot_be_forced(presenter: PreparedAvatar) -> None:
    window, why = choose_decoder("auto", presenter, tiny=False)
    assert window is None and "prepare it again" in why
    with pytest.raises(ConfigError, match=r"'presenter' has no statistics.*--avatar-id presenter --force"):
        choose_decoder("cropped", presenter, tiny=False)


@pytest.mark.parametrize("tiny", [True, False])
def test_musetalks_own_paste_needs_the_whole_crop(presenter: PreparedAvatar, tiny: bool) -> None:
    boxed = replace(presenter, boxes=np.zeros((150, 4), np.int32))
    assert choose_decoder("cropped", boxed, tiny)[0] is None


# --- the measurement


def measured(vae: torch.nn.Module, predict, has_face=(True,) * N) -> CroppedDecoding:
    torch.manual_seed(4)
    latents = (torch.randn(N, 8, 32, 32) * vae.config.scaling_factor).half().numpy()
    masks = np.zeros((1, 256, 256), np.uint8)
    masks[:, 140:230, 60:200] = 255
    model = SimpleNamespace(vae=vae, predict=predict)
    return measure_decoding(
        model, latents, masks, np.zeros(N, np.int32), np.array(has_face), 25, lambda done, total: None
    )


@pytest.fixture(scope="module")
def same(vae: torch.nn.Module) -> CroppedDecoding:
    """Measured with a UNet that makes one mouth per frame, whatever is said."""
    return measured(vae, lambda latents, windows: latents[:, :4])


def test_mouths_that_do_not_move_have_no_error_and_moving_ones_have_one(
    vae: torch.nn.Module, same: CroppedDecoding
) -> None:
    assert same.mean_error <= 0.01 and same.p999_error <= 1  # rounding
    other = measured(vae, lambda latents, windows: latents[:, :4] * (1 + loudness(windows)[:, None, None, None]))
    assert other.mean_error > 0.5 and other.p999_error > 4
    assert same.window == CropWindow((136, 256), (56, 204))


def loudness(windows: np.ndarray) -> np.ndarray:
    """A number from 0 to 1 that differs between windows."""
    return np.abs(windows[:, 25]).astype(np.float32).sum(1) % 1


def test_statistics_are_those_of_mouths_generated_for_each_frame(vae: torch.nn.Module, same: CroppedDecoding) -> None:
    torch.manual_seed(4)
    own = (torch.randn(N, 8, 32, 32) * vae.config.scaling_factor).half().float()[:, :4]
    torch.testing.assert_close(torch.from_numpy(same.statistics), decoder_statistics(vae, own))


def test_mouths_are_generated_from_speech_for_frames_with_a_face(vae: torch.nn.Module) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def predict(latents: np.ndarray, windows: np.ndarray) -> np.ndarray:
        seen.append((latents, windows))
        return latents[:, 4:]

    measured(vae, predict, has_face=(False, True, False, True))
    latents, windows = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    assert windows.shape == (MOUTHS * N + SAMPLES, 50, 384)
    assert len(np.unique(windows[:, 25], axis=0)) == MOUTHS + SAMPLES  # none is measured with its own statistics
    assert len(np.unique(latents[-SAMPLES:].reshape(SAMPLES, -1), axis=0)) == 2


def test_999_of_1000_pixels_do_not_exceed_the_percentile() -> None:
    levels = np.zeros((1000, 3), np.uint8)
    levels[0], levels[1, 2] = (9, 0, 0), 200
    assert error_of(levels) == (0.07, 9.0)  # (9 + 200) / 3000
    assert error_of(levels[:0]) == (0.0, 0.0)


# --- preparation


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = [moved(astronaut(), motion) for motion in swaying(astronaut(), N)]
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", frames)


def test_preparing_with_a_kl_vae_stores_its_statistics_and_says_what_is_decoded(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    unet, paths = make_unet(384), (tmp_path / "unet.json", tmp_path / "unet.safetensors")
    paths[0].write_text(json.dumps(dict(unet.config)))
    write_state(paths[1], unet.state_dict())
    given = (*paths, write_vae(tmp_path / "vae", make_kl()))
    settings = dict(zip(("unet_config", "unet_weights", "vae_dir"), map(str, given), strict=True))
    config = load_avatars_config("demo", settings)
    model, store = load_model(config), AvatarStore(tmp_path / "avatars")
    steps: list[str] = []
    report = prepare_avatar(
        clip,
        "a",
        store,
        model.encode_reference,
        "v",
        progress=lambda step, done, total: steps.append(step),
        measure_decoding=decoding_measure(config, model),
    )
    avatar = store.load("a")
    assert avatar.decoding is not None and len(avatar.decoding.statistics) == N
    assert (avatar.decoding.window, avatar.decoding.mean_error) == (
        CropWindow.around(avatar.masks),
        store.describe("a")["decoding"]["mean_error"],
    )
    assert report.decoder == choose_decoder("auto", avatar, tiny=False)[1]
    assert "measuring the decoder" in steps
    assert store.load("a", latents=False, frames=False).decoding is None


def test_preparing_with_a_tiny_vae_measures_nothing(clip: Path, tmp_path: Path) -> None:
    config, store = load_avatars_config("demo"), AvatarStore(tmp_path)
    report = prepare_avatar(clip, "a", store, fake_encoder, "v", measure_decoding=decoding_measure(config, None))
    assert not (store.folder("a") / DECODER).exists() and "decoding" not in (store.folder("a") / META).read_text()
    assert report.decoder == "cropped: exact with a tiny VAE"


@pytest.mark.parametrize("geometry", ["similarity", "musetalk"])
def test_own_faces_are_the_crops_that_were_encoded(clip: Path, tmp_path: Path, geometry: str) -> None:
    store = AvatarStore(tmp_path)
    prepare_avatar(clip, "a", store, fake_encoder, "v", PrepareOptions(geometry=geometry))
    avatar = store.load("a")
    assert np.array_equal(fake_encoder(own_faces(avatar)).astype(np.float16), avatar.latents)
    assert np.array_equal(own_faces(avatar, [2]), own_faces(avatar)[2:3])
