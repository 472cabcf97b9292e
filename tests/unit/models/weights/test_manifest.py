"""models.weights.manifest: the manual's layout, consistent data, and errors with the command to download."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from models.errors import ConfigError, WeightsError
from models.features import WEIGHT_FILES
from models.weights.loading import find_weights, load_state_dict, read_json
from models.weights.manifest import (
    BUNDLES,
    SETS,
    HubFile,
    WebFile,
    all_files,
    find_set,
    missing_error,
    remedy_for,
    select,
    selection_names,
    set_of,
)
from models.weights.vae_files import VAE_WEIGHT_FILES, vae_files

LAYOUT = {
    "musetalkV15/musetalk.json",
    "musetalkV15/unet.pth",
    "musetalk/musetalk.json",
    "musetalk/pytorch_model.bin",
    "sd-vae/config.json",
    "sd-vae/diffusion_pytorch_model.bin",
    "whisper/config.json",
    "whisper/pytorch_model.bin",
    "whisper/preprocessor_config.json",
    "face-parse-bisent/79999_iter.pth",
    "face-parse-bisent/resnet18-5c106cde.pth",
    "GFPGANv1.4.pth",
    "dwpose/dw-ll_ucoco_384.onnx",
    "syncnet/latentsync_syncnet.pt",
    "taesd/config.json",
    "taesd/diffusion_pytorch_model.safetensors",
    *(
        f"{name}/{file}"
        for name in ("whisper-tiny.en", "whisper-base")
        for file in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors")
    ),
}


def test_the_layout_is_that_of_the_manual() -> None:
    assert {file.path for file in all_files()} == LAYOUT
    assert len(all_files()) == len(LAYOUT)


def test_paths_stay_inside_the_folder() -> None:
    for file in all_files():
        path = PurePosixPath(file.path)
        assert not path.is_absolute() and ".." not in path.parts and len(path.parts) <= 2


def test_hashes_are_sha256_and_differ_where_files_differ() -> None:
    known = [file for file in all_files() if file.sha256]
    assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "") for file in known)
    twice = [sha256 for sha256, count in Counter(file.sha256 for file in known).items() if count > 1]
    assert [file.name for file in known if file.sha256 in twice] == ["musetalk.json", "musetalk.json"]
    resnet = next(file for file in known if "resnet18" in file.path)
    assert (resnet.sha256 or "").startswith("5c106cde"), "its file name contains the first digits"


def test_a_file_with_a_hash_has_a_size_and_a_commit() -> None:
    for file in all_files():
        if file.sha256:
            assert file.size_bytes is not None and file.size_bytes > 0
        if isinstance(file.source, HubFile):
            pinned = bool(re.fullmatch(r"[0-9a-f]{40}", file.source.revision))
            assert pinned or (file.source.revision == "main" and file.sha256 is None)
        else:
            assert file.source.url.startswith("https://") and file.sha256


def test_sizes_are_those_of_the_models() -> None:
    size_bytes = {file.path: file.size_bytes for file in all_files()}
    # 850 M parameters of 4 bytes; the VAE has 83,653,863 parameters, whisper-tiny 37,760,640
    assert size_bytes["musetalkV15/unet.pth"] == pytest.approx(850e6 * 4, rel=0.01)
    assert size_bytes["sd-vae/diffusion_pytorch_model.bin"] == pytest.approx(83_653_863 * 4, rel=0.001)
    assert size_bytes["whisper/pytorch_model.bin"] == pytest.approx(37_760_640 * 4, rel=0.001)


def test_each_set_names_a_stage_and_a_licence() -> None:
    assert all(entry.stage and entry.licence and entry.what for entry in SETS)
    assert len(set(selection_names())) == len(selection_names())
    assert sum(entry.size_bytes for entry in SETS) == pytest.approx(9.81e9, rel=0.001)


def test_the_loaders_find_the_manifests_file_names() -> None:
    assert {"sd-vae/" + name for name in VAE_WEIGHT_FILES} & LAYOUT
    assert {"whisper/" + name for name in WEIGHT_FILES} & LAYOUT


def test_select_accepts_sets_bundles_and_files() -> None:
    assert select() == all_files()
    assert [file.path for file in select(["sd-vae"])] == ["sd-vae/config.json", "sd-vae/diffusion_pytorch_model.bin"]
    assert [file.path for file in select(["whisper/config.json"])] == ["whisper/config.json"]
    assert {set_of(file).name for file in select(["production"])} == set(BUNDLES["production"])
    assert select(["whisper", "sd-vae"]) == select(["sd-vae, whisper"]), "must be in the manifest's order"


@pytest.mark.parametrize("name", ["musetalk15", "sd-vae/", "all", "../x"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="no weights named") as caught:
        select(["whisper", name])
    assert "production, musetalkV15, musetalk, sd-vae" in caught.value.remedy


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("weights/musetalkV15/unet.pth", "musetalkV15"),
        ("/srv/weights/GFPGANv1.4.pth", "GFPGANv1.4"),
        ("/weights/old/weights/sd-vae/config.json", "sd-vae"),
        ("weights/sd-vae", "sd-vae"),
        ("weights", None),
        ("weights/mine/unet.pth", None),
        ("models/embedded/vae/config.json", None),
        ("sd-vae/config.json", None),
    ],
)
def test_a_path_under_weights_is_known(path: str, name: str | None) -> None:
    entry = find_set(path)
    assert (entry.name if entry else None) == name
    assert remedy_for(path) == (f"Run `warmtalk fetch-weights --only {name}`." if name else "")


def test_every_file_is_found_in_its_set() -> None:
    for file in all_files():
        assert find_set(Path("weights") / file.path) is set_of(file)


def test_the_error_names_file_stage_and_command() -> None:
    error = missing_error("/srv/weights/musetalkV15/unet.pth")
    assert error.message == "/srv/weights/musetalkV15/unet.pth is missing: the UNet of MuseTalk v1.5, for LipSync."
    assert error.remedy == "Run `warmtalk fetch-weights --only musetalkV15`."
    other = missing_error("mine.pth")
    assert (other.message, other.remedy) == ("mine.pth is missing.", "Put the weights there, or correct the path.")


def test_the_loaders_raise_the_missing_error(tmp_path: Path) -> None:
    root = tmp_path / "weights"
    with pytest.raises(WeightsError, match=r"unet\.pth is missing: .* for LipSync.*--only musetalkV15`"):
        load_state_dict(root / "musetalkV15" / "unet.pth")
    with pytest.raises(WeightsError, match=r"config\.json is missing: .* for AudioFeatures.*--only whisper`"):
        read_json(root / "whisper" / "config.json")
    with pytest.raises(WeightsError, match=r"whisper contains none of .*: the Whisper .*--only whisper`"):
        find_weights(root / "whisper", WEIGHT_FILES)
    with pytest.raises(WeightsError, match=r"sd-vae contains none of .*--only sd-vae`"):
        vae_files(root / "sd-vae")


def test_a_damaged_file_of_the_manifest_has_the_command_in_its_error(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "GFPGANv1.4.pth"
    path.parent.mkdir()
    path.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(WeightsError, match=r"not a complete checkpoint.*--only GFPGANv1\.4`"):
        load_state_dict(path)
    config = tmp_path / "weights" / "whisper" / "config.json"
    config.parent.mkdir()
    config.write_text("{")
    with pytest.raises(WeightsError, match=r"not valid JSON.*--only whisper`"):
        read_json(config)


def test_only_files_missing_on_the_hub_have_plain_urls() -> None:
    hosts = {file.name: file.source.url.split("/")[2] for file in all_files() if isinstance(file.source, WebFile)}
    assert hosts == {"GFPGANv1.4.pth": "github.com", "resnet18-5c106cde.pth": "download.pytorch.org"}
