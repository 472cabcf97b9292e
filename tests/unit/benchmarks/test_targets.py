"""The tables and searches of benchmarks/targets.py and benchmarks/concurrency.py; the measurements need a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import concurrency
from benchmarks.concurrency import Setup, most_watched
from benchmarks.target_table import BY_KEY, Results, missed, table
from benchmarks.viewers import lateness_s
from configs.serve_file import deployment_of, load_serve_config


def test_the_table_compares_each_figure_with_its_target_and_says_why_one_is_missing() -> None:
    rows = BY_KEY["lipsync-cropped"], BY_KEY["ttff"], BY_KEY["two-gpus"]
    results = Results({"lipsync-cropped": 825.0, "ttff": 150.0}, {"two-gpus": "this machine has 1 GPUs"}, {"ttff": 900})
    lines = table(rows, results).splitlines()[2:]
    assert [line.split("|")[2:6] for line in lines] == [
        [" ≥ 750 frames/s ", " 825 ", " 1.10 ok ", "  "],
        [" ≤ 120 ms ", " 150 ", " 1.25 MISSED ", " 900 "],
        [" ≥ 1.8 × ", " this machine has 1 GPUs ", " ", " "],
    ]
    assert missed(rows, results) == ["ttff"]


@pytest.mark.parametrize(
    ("capacity", "found", "tried"), [(21, 20, [8, 16, 24, 20]), (19, 16, [8, 16, 24, 20]), (99, 24, [8, 16, 24])]
)
async def test_the_largest_number_of_sessions_is_narrowed_after_the_first_failure(
    monkeypatch: pytest.MonkeyPatch, capacity: int, found: int, tried: list[int]
) -> None:
    async def watch(url: str, count: int, *_: Any) -> dict[str, Any]:
        return {"sessions": count, "keep_up": count if count <= capacity else capacity}

    monkeypatch.setattr(concurrency, "watch", watch)
    monkeypatch.setattr(concurrency, "watched_row", str)
    most, results = await most_watched("", [8, 16, 24], 1.0, False)
    assert most == found and [result["sessions"] for result in results] == tried


def test_frames_are_late_for_a_player_that_started_with_the_first_one() -> None:
    came_s = [10.0, 10.0, 10.05, 10.3]  # due at 10, 10.04, 10.08 and 10.12
    np.testing.assert_allclose(lateness_s(came_s), [0.0, -0.04, -0.03, 0.18], atol=1e-6)


@pytest.mark.parametrize(("gpus", "share"), [(1, 0.25), (2, 0.55)])
def test_replicas_share_a_gpu_or_get_one_each(tmp_path: Path, gpus: int, share: float) -> None:
    config = load_serve_config("gpu")
    Setup(tmp_path, replicas=(("LipSync", 2), ("Ingress", 3)), lipsync={"decode": "full"}, gpus=gpus).change(config)
    lipsync = deployment_of(config, "LipSync")
    assert lipsync["ray_actor_options"]["num_gpus"] == share and lipsync["user_config"]["decode"] == "full"
    scaling = lipsync.get("autoscaling_config")
    assert (scaling is None) == (gpus == 2) and lipsync.get("num_replicas", 2) == 2
    assert scaling is None or scaling["min_replicas"] == scaling["max_replicas"] == 2
    assert deployment_of(config, "Ingress")["num_replicas"] == 3
