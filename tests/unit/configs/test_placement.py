"""The replicas of a config fit its GPUs, fraction by fraction."""

from __future__ import annotations

import pytest

from configs.placement import Need, check_placement, gpus_needed
from configs.serve_file import FOLDER, load_serve_config

GPUS = {"demo": 0, "gpu": 1, "node": 8, "cluster": 8}  # of the smallest installation that a config is for


def config(*stages: tuple[str, float, int, int]) -> dict:
    entries = [
        {
            "name": name,
            "ray_actor_options": {"num_gpus": gpus},
            "autoscaling_config": {"min_replicas": least, "max_replicas": most},
        }
        for name, gpus, least, most in stages
    ]
    return {"applications": [{"deployments": entries}]}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_project_fits_its_installation(path) -> None:
    loaded = load_serve_config(str(path))
    if path.stem == "cluster":  # autoscaling may ask for more nodes
        for entry in loaded["applications"][0]["deployments"]:
            entry.get("autoscaling_config", {})["max_replicas"] = 1
    assert check_placement(loaded, GPUS[path.stem]) == []


def test_shares_that_add_up_to_more_than_one_gpu_are_refused() -> None:
    shares = (("LipSync", 0.4, 2, 2), ("Enhance", 0.2, 1, 1), ("AudioFeatures", 0.1, 1, 1))
    (problem,) = check_placement(config(*shares), 1)
    assert "need 2 GPUs, not 1: LipSync 0.4, LipSync 0.4, Enhance 0.2, AudioFeatures 0.1; that is 1.1 in all" in problem
    assert check_placement(config(*shares), 2) == []


def test_shares_that_add_up_but_cannot_be_divided_are_refused() -> None:
    (problem,) = check_placement(config(("LipSync", 0.6, 3, 3)), 2)
    assert "need 3 GPUs, not 2" in problem and "no division among the GPUs has room for all" in problem


def test_replicas_that_autoscaling_may_start_must_fit_too() -> None:
    (problem,) = check_placement(config(("LipSync", 0.5, 1, 3)), 1)
    assert problem.startswith("All replicas together need 2 GPUs") and "Lower max_replicas" in problem


def test_more_than_one_gpu_must_be_whole() -> None:
    assert "num_gpus is 1.5" in check_placement(config(("LipSync", 1.5, 1, 1)))[0]
    assert check_placement(config(("LipSync", 2, 1, 1)), 2) == []


def test_the_largest_shares_are_placed_first() -> None:
    assert gpus_needed([Need("a", share) for share in (0.3, 0.7, 0.5, 0.5)]) == 2
    assert gpus_needed([Need("a", 0.1)] * 10) == 1  # despite rounding
