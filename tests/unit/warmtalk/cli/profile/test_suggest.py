"""Suggestions for a number of sessions, and the config that they are merged into."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.serve_file import FOLDER, deployment_of, load_serve_config
from models.errors import ConfigError
from warmtalk.cli.profile import patch
from warmtalk.cli.profile.statistics import Measure
from warmtalk.cli.profile.suggest import Suggestion, cores_needed, suggest


def row(speeds: dict[int, float], batch_size: int = 8, gpu_mb: float = 0.0) -> dict:
    measured = {str(n): Measure.of([rate]).to_dict() for n, rate in speeds.items()}
    part = {"p50": 20.0}
    load = {"queue_ms": part, "transfer_ms": part, "compute_ms": {"p50": 80.0}}
    memory = {"rss_mb": 1.0, "gpu_mb": gpu_mb}
    return {
        "speed": measured,
        "batch_size": batch_size,
        "memory": memory,
        "under_load": load,
        "calls": 10,
        "frames": 80,
    }


def values(profile: dict, config: str, sessions: int) -> dict[str, object]:
    found = suggest(profile, load_serve_config(config), sessions)
    assert all(suggestion.reason for suggestion in found)
    return {f"{suggestion.stage}.{suggestion.key}": suggestion.value for suggestion in found}


def test_replicas_leave_a_quarter_of_the_speed_and_calls_fit_their_sessions() -> None:
    profile = {"stages": {"TTS": row({160: 100.0}, 0), "LipSync": row({1: 40.0, 4: 60.0, 8: 100.0})}}
    found = values(profile, "demo", sessions=12)  # 300 frames/s; 75 of a replica
    assert found["LipSync.autoscaling_config.max_replicas"] == found["TTS.autoscaling_config.max_replicas"] == 4
    assert found["LipSync.autoscaling_config.target_ongoing_requests"] == 1  # 75 frames/s in calls of 8, 0.1 s each
    assert "LipSync.max_ongoing_requests" not in found  # 256 are allowed
    assert not {key for key in values(profile, "demo", sessions=3) if "replicas" in key}


def test_the_batch_is_the_smallest_that_is_almost_as_fast() -> None:
    more = {"stages": {"LipSync": row({1: 50.0, 8: 100.0, 16: 150.0, 64: 152.0})}}
    assert values(more, "demo", 1)["LipSync.user_config.batch_size"] == 16
    less = {"stages": {"LipSync": row({1: 50.0, 4: 100.0, 8: 101.0})}}
    assert values(less, "demo", 1)["LipSync.user_config.batch_size"] == 4
    good = {"stages": {"LipSync": row({1: 50.0, 4: 80.0, 8: 101.0})}}
    assert "LipSync.user_config.batch_size" not in values(good, "demo", 1)


def test_cores_are_counted_where_no_gpu_computes() -> None:
    stages = {"LipSync": {**row({8: 100.0}), "config": {"threads": 2}}, "TTS": row({140: 1000.0}, 0)}
    assert cores_needed({"stages": stages}, load_serve_config("demo"), 8) == pytest.approx(200 / 100 * 2 + 200 / 1000)
    assert cores_needed({"stages": stages}, load_serve_config("gpu"), 8) == pytest.approx(200 / 1000)


def test_the_share_of_a_gpu_covers_what_torch_reserves() -> None:
    profile = {"stages": {"LipSync": row({32: 2000.0}, 32, gpu_mb=50_000)}, "device": {"gpu_memory_mb": 80_000}}
    assert values(profile, "gpu", 1)["LipSync.ray_actor_options.num_gpus"] == 0.75


CHANGES = [
    Suggestion("TTS", "autoscaling_config.max_replicas", 1, 2, ""),
    Suggestion("LipSync", "user_config.batch_size", 8, 12, ""),
    Suggestion("LipSync", "autoscaling_config.max_replicas", 1, 3, ""),
    Suggestion("Stitch", "max_ongoing_requests", 1000, 2048, ""),
]


@pytest.mark.parametrize("name", ["demo", "gpu", "node", "cluster"])
def test_the_patched_config_differs_in_the_suggested_keys_alone_and_keeps_its_comments(name, tmp_path) -> None:
    source, output = FOLDER / f"{name}.yaml", tmp_path / "my.yaml"
    shown = patch.write_patched(source, CHANGES, output)
    expected, found = load_serve_config(name), load_serve_config(str(output))  # and Serve accepts it
    for change in CHANGES:
        section = deployment_of(expected, change.stage)
        *folders, key = change.key.split(".")
        for folder in folders:
            section[folder] = dict(section[folder])
            section = section[folder]
        section[key] = change.value
    assert found == expected
    comments = [line.partition("#")[2] for line in source.read_text().splitlines() if "#" in line]
    text = output.read_text()
    assert sum(comment in text for comment in comments) >= len(comments) - 1
    assert "batch_size: 12" in shown and shown.startswith(f"--- {source}")


def test_a_patch_that_does_not_fit_the_gpus_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    change = Suggestion("LipSync", "ray_actor_options.num_gpus", 0.5, 0.8, "")
    with pytest.raises(ConfigError, match="need 2 GPUs, not 1: .*LipSync 0.8"):
        patch.write_patched(FOLDER / "gpu.yaml", [change], tmp_path / "my.yaml", gpus=1)
    assert not list(tmp_path.iterdir())


def test_a_stage_without_a_section_gets_one() -> None:
    text = "applications:\n- name: warmtalk\n  deployments:\n  - {name: TTS}  # the voice\n"
    made = patch.patched(text, [Suggestion("LipSync", "user_config.batch_size", 8, 16, "")])
    assert "# the voice" in made
    assert yaml.safe_load(made)["applications"][0]["deployments"][1] == {
        "name": "LipSync",
        "user_config": {"batch_size": 16},
    }
