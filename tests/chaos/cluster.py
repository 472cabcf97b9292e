"""A Ray cluster of several nodes on this machine: a head without CPUs, which has the HTTP proxy, and worker nodes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml

from tests.graph.processes import free_port
from tests.graph.requests import wait_until
from tests.support.paths import ROOT
from warmtalk.cli.local_graph import OBJECT_STORE_BYTES

CPUS = 32  # of a worker node


class Nodes:
    """Nodes share the machine's folders, as those of a cluster share a volume."""

    def __init__(self, workers: int, **head_arguments: Any) -> None:
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._patch = pytest.MonkeyPatch()
        for name, value in ray_settings().items():
            self._patch.setenv(name, value)
        settings = {"prestart_worker_first_driver": False}
        head = {"num_cpus": 0, "include_dashboard": False, "gcs_server_port": free_port(), "_system_config": settings}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | head_arguments)
        self.workers = [self._add() for _ in range(workers)]

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=CPUS, object_store_memory=OBJECT_STORE_BYTES)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ray.init. The others that LocalGraph passes are not allowed for a running cluster."""
        unset = ("include_dashboard", "object_store_memory", "_system_config")
        return {"address": self.cluster.address, **dict.fromkeys(unset)}

    def add(self) -> Any:
        """Add a worker node."""
        self.workers.append(self._add())
        return self.workers[-1]

    def lose(self, node: Any) -> None:
        """Kill all processes of a worker node."""
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_gcs(self) -> None:
        self.cluster.head_node.kill_gcs_server()

    def start_gcs(self) -> None:
        self.cluster.head_node.start_gcs_server()

    def stop(self) -> None:
        self.cluster.shutdown()
        self._patch.undo()


def ray_settings() -> dict[str, str]:
    """Ray's own settings in the head's environment, as the Kubernetes manifest has them."""
    documents = yaml.safe_load_all((ROOT / "cluster" / "rayservice.yaml").read_text())
    cluster = next(d for d in documents if d["kind"] == "RayService")["spec"]["rayClusterConfig"]
    variables = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    return {v["name"]: v["value"] for v in variables if v["name"].startswith("RAY_")}


def nodes_of_replicas() -> dict[str, list[str]]:
    """Stage → ids of the nodes of its living replicas."""
    found: dict[str, list[str]] = {}
    for stage, node, _ in _replicas():
        found.setdefault(stage, []).append(node)
    return found


def replicas_outside(node: Any) -> dict[int, str]:
    """Process id → stage of the living replicas on other nodes."""
    return {pid: stage for stage, node_id, pid in _replicas() if node_id != node.node_id}


def _replicas() -> list[tuple[str, str, int]]:
    """Stage, node and process of each living replica."""
    from ray._private.state import actors

    return [
        (actor["Name"].split("#")[1], actor["Address"]["NodeID"], actor["Pid"])
        for actor in actors().values()
        if actor["State"] == "ALIVE" and actor["Name"].startswith("SERVE_REPLICA::warmtalk#")
    ]


def wait_for_replicas(counts: dict[str, int], timeout_s: float = 90.0) -> None:
    """Wait until each stage has this number of replicas, each on a node of its own."""

    def there() -> bool:
        found = nodes_of_replicas()
        return all(len(found.get(s, [])) == n == len(set(found[s])) for s, n in counts.items())

    wait_until(there, f"replicas on nodes of their own: {counts}", timeout_s, every_s=0.2)
