"""models.weights.loading: formats, refused files, and error messages."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.errors import WeightsError
from models.weights.loading import build_module, check_keys, find_weights, fingerprint, load_state_dict, read_json


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"weight": torch.randn(3, 2), "bias": torch.randn(3)}


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_every_format_gives_the_same_tensors(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    assert all(same(load_state_dict(tmp_path / name), state) for name in ("a.safetensors", "b.pth", "c.bin"))


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "params_ema"])
def test_a_nested_state_dict_is_unwrapped(tmp_path: Path, state: dict[str, torch.Tensor], wrapper: str) -> None:
    torch.save({"epoch": 3, wrapper: state}, tmp_path / "a.pth")
    assert same(load_state_dict(tmp_path / "a.pth"), state)


class Payload:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, state: dict[str, torch.Tensor], zipped: bool
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.pth"
    torch.save({**state, "x": Payload(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="could run code"):
        load_state_dict(path)
    assert not victim.exists()


def test_a_bare_pickle_with_code_is_refused(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"x": Payload(victim)}))
    with pytest.raises(WeightsError, match="could run code"):
        load_state_dict(path)
    assert not victim.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "b.pth", "c.bin"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    state = {"weight": torch.zeros(64, 64)}
    path = tmp_path / name
    if name == "a.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "b.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=r"(?s)not a complete .*Download the file again"):
        load_state_dict(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    with pytest.raises(WeightsError, match="not a complete"):
        load_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_git_lfs_pointer_is_recognised(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3400076549\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        load_state_dict(tmp_path / name)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        load_state_dict(tmp_path / "a.pth")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth is missing"):
        load_state_dict(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        read_json(tmp_path / "config.json")
    with pytest.raises(WeightsError, match=r"none of a\.bin, b\.bin"):
        find_weights(tmp_path, ["a.bin", "b.bin"])


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="JSON"):
        read_json(tmp_path / "config.json")


def test_the_first_existing_name_is_used(tmp_path: Path) -> None:
    (tmp_path / "b.bin").touch()
    assert find_weights(tmp_path, ["a.bin", "b.bin", "c.bin"]) == tmp_path / "b.bin"


def test_wrong_keys_are_counted_and_named() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(1, 1))
    state = {"0.weight": torch.zeros(3, 5), "0.bias": torch.zeros(3), "head.bias": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        check_keys(module, state, "net.pth")
    assert "net.pth does not fit Sequential" in caught.value.message
    assert "6 missing (1.weight, 1.bias, 2.weight and 3 more)" in caught.value.message
    assert "1 unexpected (head.bias)" in caught.value.message
    assert "1 mis-shaped (0.weight (3, 5) instead of (3, 2))" in caught.value.message


def test_a_module_is_built_with_the_given_weights(state: dict[str, torch.Tensor]) -> None:
    module = build_module(lambda: nn.Linear(2, 3), state, "here", dtype=torch.bfloat16)
    assert torch.equal(module.weight, state["weight"].bfloat16())
    assert not module.training and not module.weight.requires_grad
    assert module.weight.device.type == "cpu"


def test_a_built_module_does_not_depend_on_its_file(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Weights are copied from the mapped file, which may be replaced or truncated while a server runs."""
    path = tmp_path / "a.pth"
    torch.save(state, path)
    module = build_module(lambda: nn.Linear(2, 3), load_state_dict(path), path)
    path.write_bytes(b"")
    assert torch.equal(module.weight, state["weight"])


def test_a_fingerprint_depends_on_bytes_and_order_only(tmp_path: Path) -> None:
    for name, data in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (tmp_path / name for name in "abc")
    assert fingerprint(a, b) == fingerprint(c, b)
    assert len({fingerprint(a, b), fingerprint(b, a), fingerprint(a), fingerprint(b)}) == 4
    before = fingerprint(a)
    a.write_bytes(b"one more")
    assert fingerprint(a) != before
    assert len(before) == 16 and int(before, 16) >= 0
