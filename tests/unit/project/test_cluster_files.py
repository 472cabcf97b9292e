"""The files in cluster/: the manifest is valid for KubeRay, has room for its stages, and names things that exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from configs.serve_file import load_serve_config
from deployments.common.metrics import METRICS
from models.runtime.registry import find_engine
from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
CONFIG = ROOT / "configs" / "cluster.yaml"


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


def named(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]


def test_the_manifest_is_up_to_date(render: ModuleType) -> None:
    assert (CLUSTER / "rayservice.yaml").read_text() == render.render(CONFIG.read_text()), "run cluster/render.py"


def test_the_manifest_contains_the_serve_config_unchanged(documents: list[dict[str, Any]]) -> None:
    service = next(d for d in documents if d["kind"] == "RayService")
    assert service["spec"]["serveConfigV2"].rstrip("\n") == CONFIG.read_text().rstrip("\n")


def test_policies_and_routers_named_in_the_configs_can_be_imported() -> None:
    """Serve imports them by name in the controller, where a wrong name stops the whole deployment."""
    named = set()
    for name in ("demo", "gpu", "node", "cluster"):
        for stage in load_serve_config(name)["applications"][0]["deployments"]:
            policy = stage.get("autoscaling_config", {}).get("policy", {}).get("policy_function")
            router = stage.get("request_router_config", {}).get("request_router_class")
            named |= {path for path in (policy, router) if path}
    assert any(path.startswith("deployments.stitch.") for path in named)
    for path in named:
        assert callable(find_engine(path, {}))  # module:Class


def test_the_manifest_has_the_fields_kuberay_requires(documents: list[dict[str, Any]], cluster: dict[str, Any]) -> None:
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


def test_the_cluster_requires_a_token_and_survives_its_head(
    documents: list[dict[str, Any]], cluster: dict[str, Any]
) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    options, redis = cluster["gcsFaultToleranceOptions"], named(documents, "StatefulSet")["warmtalk-redis"]
    service = named(documents, "Service")["warmtalk-redis"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["selector"] == redis["spec"]["template"]["metadata"]["labels"]
    environment = redis["spec"]["template"]["spec"]["containers"][0]["env"][0]
    assert environment["valueFrom"] == options["redisPassword"]["valueFrom"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):  # KubeRay sets it, if nothing else does
        assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & {e["name"] for e in container(group)["env"]}


def test_only_port_8000_is_open_to_everybody(documents: list[dict[str, Any]], cluster: dict[str, Any]) -> None:
    policies = named(documents, "NetworkPolicy")
    own = {"podSelector": policies["warmtalk"]["spec"]["podSelector"]}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert own["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    allowed = {
        tuple(port["port"] for port in rule.get("ports", [])): rule.get("from")
        for rule in policies["warmtalk"]["spec"]["ingress"]
    }
    assert allowed.keys() == {(), (8265, 8000), (8000,), (8080,)}
    assert allowed[()] == [own] and allowed[8000,] is None and allowed[8080,] and allowed[8265, 8000]
    redis = policies["warmtalk-redis"]["spec"]
    labels = named(documents, "StatefulSet")["warmtalk-redis"]["spec"]["template"]["metadata"]["labels"]
    assert redis["podSelector"]["matchLabels"] == labels and [rule["from"] for rule in redis["ingress"]] == [[own]]
    assert all(policy["spec"]["policyTypes"] == ["Ingress"] for policy in policies.values())


def test_the_heads_service_does_not_have_the_port_of_the_ray_client(cluster: dict[str, Any]) -> None:
    """KubeRay copies the head container's ports into the Service."""
    ports = {port["name"]: port["containerPort"] for port in container(cluster["headGroupSpec"])["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "serve": 8000, "metrics": 8080}


def test_only_the_gpu_group_has_gpus_and_the_gpu_image(cluster: dict[str, Any]) -> None:
    cpu, gpu = groups(cluster)["cpu"], groups(cluster)["gpu"]
    assert container(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container(cpu)["resources"]["limits"]
    assert container(gpu)["image"].endswith("-gpu") and container(cpu)["image"].endswith("-cpu")
    assert gpu["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_minimum_replicas_of_all_stages_fit_into_the_minimum_pods(cluster: dict[str, Any]) -> None:
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


def test_all_pods_share_the_results_volume(documents: list[dict[str, Any]], cluster: dict[str, Any]) -> None:
    claim = next(d for d in documents if d["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volume = next(v for v in pod["volumes"] if v.get("persistentVolumeClaim"))
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mount = next(m for m in container(group)["volumeMounts"] if m["name"] == volume["name"])
        home = next(e for e in container(group)["env"] if e["name"] == "WARMTALK_HOME")
        assert home["value"] == mount["mountPath"]


def test_readiness_checks_serve_and_liveness_checks_ray_alone(cluster: dict[str, Any]) -> None:
    for group in cluster["workerGroupSpecs"]:
        ready, alive = container(group)["readinessProbe"], container(group)["livenessProbe"]
        assert "8000/-/healthz" in ready["exec"]["command"][-1] and "local_raylet" in ready["exec"]["command"][-1]
        assert "8000" not in alive["exec"]["command"][-1] and "local_raylet" in alive["exec"]["command"][-1]
        ports = {port["name"]: port["containerPort"] for port in container(group)["ports"]}
        assert ports == {"serve": 8000, "metrics": 8080}


def test_versions_match_the_project(render: ModuleType, cluster: dict[str, Any]) -> None:
    import ray

    project = (ROOT / "pyproject.toml").read_text()
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f'version = "{render.TAG}"' in project
    assert cluster["rayVersion"] == render.RAY_VERSION == ray.__version__
    assert f"ARG RAY_VERSION={render.RAY_VERSION}" in dockerfile


def test_render_uses_the_given_image_and_tag(render: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "out.yaml"
    assert render.main(["--image", "registry.example.com/wt", "--tag", "7", "--output", str(output)]) == 0
    text = output.read_text()
    assert "registry.example.com/wt:7-cpu" in text and "registry.example.com/wt:7-gpu" in text
    assert not re.search(r"\$[a-z_{]", text)  # `$(NAME)` is Kubernetes's


def test_render_checks_without_writing(render: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main(["--check"]) == 0
    stale = tmp_path / "stale.yaml"
    stale.write_text("old")
    assert render.main(["--check", "--output", str(stale)]) == 1
    assert stale.read_text() == "old" and "out of date" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        render.main(["--config", str(tmp_path / "none.yaml")])


def copied() -> set[str]:
    """The sources of the Dockerfile's COPY lines."""
    lines = re.findall(r"^COPY (?:--\S+ )*(.+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    return {source.rstrip("/") for line in lines for source in line.split()[:-1]}


@pytest.mark.parametrize("source", sorted(copied()))
def test_the_dockerfile_copies_files_that_exist_and_are_in_the_build_context(source: str) -> None:
    assert (ROOT / source).exists()
    sent = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert source in sent or (source.endswith(".py") and "*.py" in sent)


def own_modules(package: Path) -> set[str]:
    """Top-level modules of this repository that the files of a package import."""
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    found: set[str] = set()
    for path in [package] if package.is_file() else package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found & own


def test_the_image_has_every_module_that_the_server_and_the_command_line_import() -> None:
    needed, waiting = set(), {"graph", "warmtalk"}
    while waiting:
        module = waiting.pop()
        needed.add(module)
        path = ROOT / f"{module}.py"
        waiting |= own_modules(path if path.is_file() else ROOT / module) - needed
    files = {f"{module}.py" if (ROOT / f"{module}.py").is_file() else module for module in needed}
    assert files >= {"graph.py", "models", "deployments", "configs", "warmtalk"}
    assert files <= copied()


def test_the_image_has_the_web_page() -> None:
    from deployments.ingress.static_page import FOLDER

    assert FOLDER.relative_to(ROOT).parts[0] in copied()


def test_the_dockerfile_downloads_no_scripts_and_copies_the_code_last() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert not re.search(r"curl|wget|\| *(ba)?sh\b", text)
    assert text.index("COPY --chown=ray:users requirements.lock") < text.index("models/")


def test_prometheus_finds_pods_by_the_name_of_their_metrics_port(cluster: dict[str, Any]) -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["scrape_configs"]}
    rules = jobs["warmtalk-kubernetes"]["relabel_configs"]
    named = next(r["regex"] for r in rules if "__meta_kubernetes_pod_container_port_name" in r["source_labels"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert named in {port["name"] for port in container(group)["ports"]}
    assert jobs["warmtalk-local"]["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def series() -> dict[str, str]:
    """Name in Prometheus → metric. Ray adds the prefix, and a histogram has three series."""
    found = {}
    for name, metric in METRICS.items():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "Histogram" else ("",)
        found |= {f"ray_{name}{suffix}": name for suffix in suffixes}
    return found


def test_the_dashboard_shows_all_metrics_of_the_stages_and_no_others() -> None:
    dashboard = json.loads((CLUSTER / "grafana" / "warmtalk.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    queried = set(re.findall(r"ray_warmtalk_\w+", queries))
    assert queried <= series().keys()
    assert {series()[name] for name in queried} == METRICS.keys()


def test_the_alert_rules_use_metrics_that_exist() -> None:
    rules = yaml.safe_load((CLUSTER / "alerts.yml").read_text())["groups"][0]["rules"]
    assert set(re.findall(r"ray_warmtalk_\w+", " ".join(rule["expr"] for rule in rules))) <= series().keys()
    assert {rule["labels"]["severity"] for rule in rules} == {"page", "ticket"}
    assert all(rule["annotations"].keys() == {"summary", "remedy"} for rule in rules)
    assert yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's package prometheus, is missing")
def test_the_alert_rules_fire_for_each_fault_and_not_without() -> None:
    done = subprocess.run(["promtool", "test", "rules", CLUSTER / "alerts_test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_panels_overlap() -> None:
    panels = json.loads((CLUSTER / "grafana" / "warmtalk.json").read_text())["panels"]
    cells = [
        (x, y)
        for p in (panel["gridPos"] for panel in panels)
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells)) and all(0 <= x < 24 for x, _ in cells)
    assert len({panel["id"] for panel in panels}) == len(panels) == 22
