"""Specification of cluster/: the manifest is what KubeRay takes, fits its own stages, and names what exists."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
CONFIG = ROOT / "configs" / "cluster.yaml"
METRICS = {  # name in the stages → kind
    "warmtalk_stage_calls_total": "counter",
    "warmtalk_stage_frames_total": "counter",
    "warmtalk_stage_queue_ms": "histogram",
    "warmtalk_stage_compute_ms": "histogram",
    "warmtalk_stage_transfer_ms": "histogram",
    "warmtalk_ttff_ms": "histogram",
    "warmtalk_rtf": "histogram",
}


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", CLUSTER / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "rayservice.yaml").read_text()))


@pytest.fixture(scope="module")
def cluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(d for d in documents if d["kind"] == "RayService")["spec"]["rayClusterConfig"]


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]


def test_the_manifest_is_the_rendered_one(render: ModuleType) -> None:
    assert (CLUSTER / "rayservice.yaml").read_text() == render.render(CONFIG.read_text()), "run cluster/render.py"


def test_the_manifest_holds_the_serve_config_as_it_is(documents: list[dict[str, Any]]) -> None:
    service = next(d for d in documents if d["kind"] == "RayService")
    assert service["spec"]["serveConfigV2"].rstrip("\n") == CONFIG.read_text().rstrip("\n")


def test_kuberay_gets_the_fields_that_it_requires(documents: list[dict[str, Any]], cluster: dict[str, Any]) -> None:
    service = next(d for d in documents if d["kind"] == "RayService")
    assert service["apiVersion"] == "ray.io/v1" and service["metadata"]["name"] == "warmtalk"
    assert container(cluster["headGroupSpec"])["name"] == "ray-head"
    for group in cluster["workerGroupSpecs"]:
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert isinstance(group["rayStartParams"], dict)
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", group["groupName"])
        assert container(group)["image"] and container(group)["resources"]["limits"]["memory"]


def test_the_head_runs_no_stage_and_has_no_gpu(cluster: dict[str, Any]) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in container(head)["resources"]["limits"]


def test_gpus_are_in_the_gpu_group_alone_and_with_the_gpu_image(cluster: dict[str, Any]) -> None:
    cpu, gpu = groups(cluster)["cpu"], groups(cluster)["gpu"]
    assert container(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container(cpu)["resources"]["limits"]
    assert container(gpu)["image"].endswith("-gpu") and container(cpu)["image"].endswith("-cpu")
    assert gpu["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_least_replicas_of_all_stages_fit_into_the_first_pods(cluster: dict[str, Any]) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    cpus = {True: 0.0, False: 0.0}
    gpus = 0.0
    for stage in config["applications"][0]["deployments"]:
        least = stage.get("num_replicas") or stage["autoscaling_config"]["min_replicas"]
        options = stage["ray_actor_options"]
        needs_gpu = options.get("num_gpus", 0) > 0
        cpus[needs_gpu] += least * options["num_cpus"]
        gpus += least * options.get("num_gpus", 0)
    cpu, gpu = groups(cluster)["cpu"], groups(cluster)["gpu"]
    assert 0 < gpus <= gpu["minReplicas"] * int(container(gpu)["resources"]["limits"]["nvidia.com/gpu"])
    assert cpus[True] <= gpu["minReplicas"] * int(container(gpu)["resources"]["limits"]["cpu"])
    assert cpus[False] <= cpu["minReplicas"] * int(container(cpu)["resources"]["limits"]["cpu"])


def test_all_pods_share_the_results(documents: list[dict[str, Any]], cluster: dict[str, Any]) -> None:
    claim = next(d for d in documents if d["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volume = next(v for v in pod["volumes"] if v.get("persistentVolumeClaim"))
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mount = next(m for m in container(group)["volumeMounts"] if m["name"] == volume["name"])
        home = next(e for e in container(group)["env"] if e["name"] == "WARMTALK_HOME")
        assert home["value"] == mount["mountPath"]


def test_workers_are_ready_when_serve_answers_and_alive_while_ray_does(cluster: dict[str, Any]) -> None:
    for group in cluster["workerGroupSpecs"]:
        ready, alive = container(group)["readinessProbe"], container(group)["livenessProbe"]
        assert "8000/-/healthz" in ready["exec"]["command"][-1] and "local_raylet" in ready["exec"]["command"][-1]
        assert "8000" not in alive["exec"]["command"][-1] and "local_raylet" in alive["exec"]["command"][-1]
        ports = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
        assert ports == {"serve": 8000, "metrics": 8080}


def test_the_versions_are_those_of_the_project(render: ModuleType, cluster: dict[str, Any]) -> None:
    import ray

    project = (ROOT / "pyproject.toml").read_text()
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f'version = "{render.TAG}"' in project
    assert cluster["rayVersion"] == render.RAY_VERSION == ray.__version__
    assert f"ARG RAY_VERSION={render.RAY_VERSION}" in dockerfile


def test_render_puts_in_the_images_that_it_is_told(render: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "out.yaml"
    assert render.main(["--image", "registry.example.com/wt", "--tag", "7", "--output", str(output)]) == 0
    text = output.read_text()
    assert "registry.example.com/wt:7-cpu" in text and "registry.example.com/wt:7-gpu" in text
    assert "$" not in text


def test_render_checks_without_writing(render: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main(["--check"]) == 0
    stale = tmp_path / "stale.yaml"
    stale.write_text("old")
    assert render.main(["--check", "--output", str(stale)]) == 1
    assert stale.read_text() == "old" and "out of date" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        render.main(["--config", str(tmp_path / "none.yaml")])


def copied() -> list[str]:
    text = (CLUSTER / "Dockerfile").read_text()
    lines = re.findall(r"^COPY (?:--\S+ )*(.+)$", text, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


@pytest.mark.parametrize("source", copied())
def test_the_dockerfile_copies_what_exists_and_is_sent(source: str) -> None:
    assert (ROOT / source).exists()
    sent = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert source.rstrip("/") in sent or (source.endswith(".py") and "*.py" in sent)


def test_the_image_holds_every_module_that_the_project_installs() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"py-modules = \[(.*?)\]", project)
    assert listed is not None
    modules = re.findall(r'"(\w+)"', listed.group(1))
    assert {f"{module}.py" for module in modules} <= set(copied())
    assert {"models/", "deployments/", "configs/"} <= set(copied())


def test_the_image_downloads_no_script() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert not re.search(r"curl|wget|\| *(ba)?sh\b", text)
    assert text.index("COPY --chown=ray:users requirements.lock") < text.index("models/"), "code changes keep the layer"


def test_prometheus_finds_pods_by_the_port_that_they_name(cluster: dict[str, Any]) -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["scrape_configs"]}
    rules = jobs["warmtalk-kubernetes"]["relabel_configs"]
    named = next(r["regex"] for r in rules if "__meta_kubernetes_pod_container_port_name" in r["source_labels"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert named in {port["name"] for port in container(group)["ports"]}
    assert jobs["warmtalk-local"]["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def exported() -> set[str]:
    """Names as Prometheus sees them: Ray prefixes `ray_`, and a histogram has three series."""
    names = set()
    for name, kind in METRICS.items():
        names |= {f"ray_{name}"} if kind == "counter" else {f"ray_{name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def test_the_dashboard_asks_for_metrics_that_are_exported_and_leaves_none_out() -> None:
    dashboard = json.loads((CLUSTER / "grafana" / "warmtalk.json").read_text())
    text = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked = set(re.findall(r"ray_warmtalk_\w+", text))
    assert asked <= exported()
    assert {name for name in METRICS if any(a.startswith(f"ray_{name}") for a in asked)} == METRICS.keys()


def test_the_stages_export_those_metrics() -> None:
    source = (ROOT / "deployments" / "stage.py").read_text()
    for name in ("warmtalk_stage_calls_total", "warmtalk_stage_frames_total"):
        assert f'Counter("{name}"' in source
    assert 'f"warmtalk_stage_{part}_ms"' in source
    assert all(f'"{part}"' in source for part in ("queue", "compute", "transfer"))


def test_no_two_panels_overlap() -> None:
    panels = json.loads((CLUSTER / "grafana" / "warmtalk.json").read_text())["panels"]
    cells = [
        (x, y)
        for p in (panel["gridPos"] for panel in panels)
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells)) and all(0 <= x < 24 for x, _ in cells)
    assert len({panel["id"] for panel in panels}) == len(panels) == 11
