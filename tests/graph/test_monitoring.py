"""What an operator sees of the running graph: a real scrape for dashboard and alerts, /admin/state, and request ids."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployments.common.metrics import METRICS
from tests.graph.requests import speak, wait_until
from tests.support.paths import ROOT

pytestmark = pytest.mark.ray

RARE = {  # metrics of what need not have happened yet; METRICS says when each is exported
    *("warmtalk_errors_total", "warmtalk_retries_total", "warmtalk_refused_total", "warmtalk_handovers_total"),
    *("warmtalk_out_of_memory_total", "warmtalk_batch_limit", "warmtalk_reduced_frames_total"),
    *("warmtalk_held_frames_total", "warmtalk_late_fragments_total", "warmtalk_cache_misses_total"),
    *("warmtalk_cache_hits_total", "warmtalk_sessions", "warmtalk_sessions_used_ratio", "warmtalk_disk_free_ratio"),
}
ELSEWHERE = {  # series of Ray that need a GPU, or autoscaling of every stage
    *("ray_node_gpus_utilization", "ray_node_gram_available", "ray_node_gram_used"),
    "ray_serve_autoscaling_target_replicas",
}


def asked_series() -> set[str]:
    """The names in the queries of the dashboard and the alert rules."""
    panels = json.loads((ROOT / "cluster" / "grafana" / "warmtalk.json").read_text())["panels"]
    rules = yaml.safe_load((ROOT / "cluster" / "alerts.yml").read_text())["groups"][0]["rules"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return set(re.findall(r"\bray_\w+", " ".join([*queries, *(rule["expr"] for rule in rules)])))


def scraped(url: str) -> dict[str, set[str]]:
    """The labels of each series."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(httpx.get(url, timeout=30).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def metric_of(series: str) -> str:
    """`ray_warmtalk_ttff_ms_bucket` → `warmtalk_ttff_ms`."""
    name = series.removeprefix("ray_")
    return name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name)


def test_a_scrape_has_the_series_of_the_dashboard_and_the_alerts_with_their_labels(graph, client):
    import ray

    speak(client, session_id="scraped", enhance=True)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    needed = {name for name in asked_series() - ELSEWHERE if metric_of(name) not in RARE}
    assert {name for name in needed if name.startswith("ray_serve_")}

    def complete() -> dict[str, set[str]] | None:
        now = scraped(url)
        return now if needed <= now.keys() else None

    found = wait_until(complete, f"the series {sorted(needed)}", every_s=1.0)
    for series, labels in found.items():
        if series.startswith("ray_warmtalk_"):
            assert labels >= {*METRICS[metric_of(series)].tags, "deployment", "replica", "application"}, series


def test_the_state_shows_each_stage_with_a_replica_and_what_it_has_done(graph, client):
    speak(client, session_id="shown")
    stages = client.get("/admin/state").raise_for_status().json()["stages"]
    running = {name: stage["states"].get("RUNNING") for name, stage in stages.items() if stage["target"]}
    assert {"Ingress", "TTS", "AudioFeatures", "LipSync", "Stitch", "Avatars", "Chat"} <= running.keys()
    assert all(running.values())
    replicas = stages["LipSync"]["replicas"]
    assert sum(replica["recent"]["frames"] for replica in replicas) > 0
    assert all(replica["batches"] > 0 and replica["start_s"] > 0 for replica in replicas)


def test_an_id_of_a_request_is_in_its_response_and_in_the_logs_of_every_stage(graph, client):
    import ray

    headers, body = {"X-Request-ID": "traced-by-test"}, {"text": "Hello.", "session_id": "traced", "stream": False}
    answer = client.post("/speak", json=body, headers=headers)
    assert answer.headers.get_list("x-request-id") == ["traced-by-test"] == [answer.json()["request_id"]]
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"

    def stages() -> set[str]:
        files = logs.glob("replica_*.log")
        return {file.name.split("_")[2] for file in files if "traced-by-test" in file.read_text(errors="replace")}

    wanted = {"Ingress", "TTS", "AudioFeatures", "LipSync", "Stitch"}
    wait_until(lambda: wanted <= stages(), f"log lines of {wanted}")
