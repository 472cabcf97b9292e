"""`warmtalk profile`: options that exclude each other, a stage alone, and the files that are written."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from models.errors import ConfigError, InputError
from warmtalk.cli.app import app
from warmtalk.cli.profile import command, page
from warmtalk.cli.profile.graph import Options
from warmtalk.cli.profile.statistics import Measure

CEILINGS = {"device": "cpu", "dtype": "float32", "flop_s": 1e12, "bytes_s": 1e11, "launch_s": 1e-6}


def profile() -> dict:
    speed = {str(n): Measure.of([n / (0.01 + 0.005 * n)]).to_dict() for n in (1, 4, 16)}
    memory = {"rss_mb": 400.0, "gpu_mb": 0.0, "gpu_reserved_mb": 0.0, "gpu_peak_mb": 0.0}
    parts = {part: {"p50": 1.0, "p95": 2.0, "p99": 3.0} for part in ("queue_ms", "transfer_ms", "compute_ms")}
    network = {"gflop": 3.0, "mb": 1.0, "frames": 8}
    row = {**parts, "speed": speed, "memory": memory, "start_s": 1.0, "batch_size": 16, "calls": 2, "frames": 16}
    stages = {"LipSync": {**row, "network": network, "ceilings": CEILINGS, "config": {"threads": 2}}}
    return command.judged({"format": 1, "config": "demo", "mode": "graph", "stages": stages})


def test_a_profile_has_the_names_that_plan_reads() -> None:
    found = profile()
    row = found["stages"]["LipSync"]
    assert row["frames_per_s"]["16"] == pytest.approx(16 / 0.09, abs=0.1)
    assert (row["call_s"]["fixed_s"], row["call_s"]["frame_s"]) == pytest.approx((0.01, 0.005), abs=1e-5)
    assert row["roofline"]["bound"] == "compute" and row["roofline"]["share"] == pytest.approx(0.533, abs=1e-3)
    assert found["device"]["tflops"] == {"float32": 1.0} and found["device"]["bandwidth_gb_s"] == 100.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alone"], "--alone profiles one stage"),
        (["--alone", "--stage", "LipSync", "--address", "auto"], "--alone needs no graph"),
        (["--alone", "--stage", "LipSync", "--trace", "t.json"], "A trace follows one utterance"),
        (["--alone", "--stage", "Stitch"], "Stitch cannot run alone"),
        (["--stage", "Nothing"], "has no stage 'Nothing'"),
        (["--batch", "1,x"], "--batch is '1,x'"),
        (["--batch", "0"], "--batch is '0'"),
        (["--apply"], "--apply needs a number of sessions"),
        (["--for-sessions", "2", "--apply", "-o", "my.json"], "is no .yaml file"),
        (["--for-sessions", "2", "--apply", "-o", "configs/demo.yaml"], "is the config itself"),
        (["--config", "nothing"], "no config file 'nothing'"),
        (["--baseline", "nothing.json"], "cannot be read"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["profile", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 1 and message in " ".join(done.output.split())


def test_a_baseline_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"stages": {}}')
    with pytest.raises(InputError, match="is no profile of this version"):
        command.read_profile(tmp_path / "old.json")
    with pytest.raises(ConfigError):
        command.loaded_config("nothing")


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows() -> None:
    found = profile()
    found["config"] = "<script>alert(1)</script>.yaml"
    html = page.render(found)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\((?!#)|@import""", html)
    assert html.count("<svg") == 3 and "Roofline" in html and "compute" in html


def test_files_are_written_and_compared_and_the_suggestions_applied(tmp_path: Path) -> None:
    found, output = profile(), Console(width=200, record=True, quiet=False)
    old = json.loads(json.dumps(found))
    old["stages"]["LipSync"]["speed"]["16"] = Measure.of([50.0]).to_dict()
    (tmp_path / "old.json").write_text(json.dumps(old))
    files = command.Files(
        tmp_path / "a/new.json", tmp_path / "p.html", None, tmp_path / "old.json", tmp_path / "my.yaml"
    )
    command.show(found, {}, command.Request(for_sessions=12), files, output)
    shown = " ".join(output.export_text().split())
    assert "better" in shown and "+ autoscaling_config: {min_replicas: 1, max_replicas: 3," in shown
    written = command.read_profile(tmp_path / "a/new.json")
    assert [suggestion["key"] for suggestion in written["suggestions"]] == ["autoscaling_config.max_replicas"]
    config = command.loaded_config(str(tmp_path / "my.yaml"))
    lipsync = next(entry for entry in config["applications"][0]["deployments"] if entry["name"] == "LipSync")
    assert lipsync["autoscaling_config"]["max_replicas"] == 3  # 300 frames/s; 0.75 · 178 each
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


def test_a_stage_is_profiled_alone_on_the_cpu_default(tmp_path: Path) -> None:
    request = command.Request("demo", Options(sizes=(1, 2), stage="Enhance"), alone=True)
    found, trace = command.run(request, nullcontext(), lambda step: None)
    (row,) = found["stages"].values()
    assert found["mode"] == "alone" and not trace
    assert row["frames_per_s"].keys() == {"1", "2"} and min(row["frames_per_s"].values()) > 0
    assert row["network"]["gflop"] == pytest.approx(2.75, abs=0.1) and row["ceilings"]["flop_s"] > 0
    assert row["roofline"]["bound"] in ("compute", "memory", "launch/overhead") and row["memory"]["rss_mb"] > 50
