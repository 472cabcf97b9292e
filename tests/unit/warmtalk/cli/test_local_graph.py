"""Starting the graph: a bad config or port fails before Ray starts, and a failed stage gives its own message."""

import socket
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from models import errors
from models.errors import ConfigError, StageError, WarmTalkError
from warmtalk.cli import CODE, local_graph
from warmtalk.cli.local_graph import LocalGraph


@pytest.fixture
def no_ray(monkeypatch):
    """Records whether Ray would have started."""
    started = []
    monkeypatch.setattr(LocalGraph, "_start_ray", lambda self: started.append("ray"))
    return started


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def config(tmp_path, text: str) -> str:
    (tmp_path / "config.yaml").write_text(text)
    return str(tmp_path / "config.yaml")


def test_a_port_in_use_is_reported_before_ray_starts(no_ray, taken, monkeypatch):
    monkeypatch.setattr("warmtalk.cli.ports.is_warmtalk", lambda url: False)
    with pytest.raises(ConfigError, match=f"Port {taken} on 127.0.0.1 is in use") as caught:
        LocalGraph("demo", taken).start()
    assert "--port" in caught.value.remedy and no_ray == []


def test_an_unknown_config_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no config file 'dmo'.*cluster, demo, gpu"):
        LocalGraph("dmo")


def test_a_value_that_serve_refuses_is_named_before_ray_starts(no_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(local_graph, "require_free_port", lambda host, port: None)
    text = "applications: [{import_path: 'graph:build_app', deployments: [{name: TTS, num_replicas: -2}]}]"
    with pytest.raises(ConfigError, match="refuses the config file: .*num_replicas"):
        LocalGraph(config(tmp_path, text)).start()
    assert no_ray == []


def test_a_config_for_a_gpu_is_refused_where_ray_finds_none(no_ray, monkeypatch):
    monkeypatch.setattr(local_graph, "require_free_port", lambda host, port: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ConfigError, match="LipSync.* a share of a GPU, but Ray finds no GPU") as caught:
        LocalGraph("gpu").start()
    assert "--config demo" in caught.value.remedy and no_ray == ["ray"]


def test_the_default_address_is_port_8000_of_this_machine(tmp_path):
    graph = LocalGraph(config(tmp_path, "http_options:\napplications: [{import_path: 'graph:build_app'}]"))
    assert graph.url == "http://127.0.0.1:8000"
    assert LocalGraph("cluster").url == "http://127.0.0.1:8000"


def test_an_interrupted_start_stops_what_it_started(monkeypatch, no_ray):
    stopped = []
    monkeypatch.setattr(LocalGraph, "stop", lambda self: stopped.append("stopped"))
    monkeypatch.setattr(LocalGraph, "_deploy", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(local_graph, "require_free_port", lambda host, port: None)
    with pytest.raises(KeyboardInterrupt):
        LocalGraph("demo").start()
    assert stopped == ["stopped"]


@pytest.mark.parametrize("error", [RayActorError(), TimeoutError("HTTP proxies not available after 60s.")])
def test_a_serve_that_does_not_start_is_reported_in_a_sentence(monkeypatch, error):
    def fail(**options):
        raise error

    monkeypatch.setattr("ray.serve._private.api.serve_start", fail)
    with pytest.raises(StageError, match="Ray Serve did not start: .") as caught:
        LocalGraph("demo")._deploy()
    assert "try again" in caught.value.remedy


def application(message: str = "", status: str = "DEPLOY_FAILED", **deployments: str) -> SimpleNamespace:
    return SimpleNamespace(
        status=status,
        message=message,
        deployments={
            name: SimpleNamespace(status="HEALTHY" if text == "ok" else "UNHEALTHY", message=text)
            for name, text in deployments.items()
        },
    )


def test_a_failed_stage_is_reported_with_its_own_message(monkeypatch):
    trace = (
        "The deployment failed to start 3 times in a row. Error:\nray::ServeReplica:warmtalk:Avatars.initialize()\n"
        '  File "avatars.py", line 1\nmodels.errors.VideoError: The input video was not found. Check video_path.\n'
        "During handling of the above:\nRuntimeError: Traceback (most recent call last):"
    )
    failed = application("Failed to update the deployments ['Avatars'].", TTS="ok", Avatars=trace)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"warmtalk": failed}))
    with pytest.raises(StageError) as caught:
        LocalGraph("demo")._wait(lambda done, total, waiting: None)
    sentence = "The application 'warmtalk' did not start: The input video was not found. Check video_path."
    assert caught.value.message == sentence


def polls_until_failure(monkeypatch, first: str) -> int:
    """How often Serve's status was read until the start failed, if a stage first fails with `first`."""
    trying = application(status="DEPLOYING", TTS="ok", LipSync=f"A replica failed to start. Error:\n{first}")
    given_up = application("Deploying app 'warmtalk' failed:\nRuntimeError: at last")
    answers = [trying, trying, given_up]
    asked = []

    def status():
        asked.append(1)
        return SimpleNamespace(applications={"warmtalk": answers[min(len(asked), len(answers)) - 1]})

    monkeypatch.setattr("ray.serve.status", status)
    monkeypatch.setattr(local_graph.time, "sleep", lambda seconds: None)
    with pytest.raises(StageError) as caught:
        LocalGraph("demo")._wait(lambda done, total, waiting: None)
    assert ("weights/unet.pth is missing." in caught.value.message) == (len(asked) == 1)
    return len(asked)


def test_a_permanent_error_is_reported_at_once(monkeypatch):
    assert polls_until_failure(monkeypatch, "models.errors.WeightsError: weights/unet.pth is missing. Fetch it.\n") == 1


@pytest.mark.parametrize("first", ["RuntimeError: no memory", "models.errors.StageError: The server is starting."])
def test_an_error_that_may_pass_is_left_to_serves_retries(monkeypatch, first):
    assert polls_until_failure(monkeypatch, first) == 3


def test_the_permanent_errors_exist():
    assert all(issubclass(getattr(errors, name), WarmTalkError) for name in local_graph.PERMANENT_ERRORS)


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (application("Deploying app 'warmtalk' failed:\nImportError: no torch\n"), "ImportError: no torch"),
        (application("", TTS="Killed: no memory."), "Killed: no memory."),
        (application(), "Serve gives no reason"),
    ],
)
def test_other_failures_are_reported_with_their_last_line(failed, reason):
    assert local_graph._reason(failed) == reason


@pytest.mark.parametrize(("failures", "starts"), [(1, 2), (2, 2)])
def test_a_node_that_times_out_is_started_again_once(monkeypatch, failures, starts):
    import ray

    tried = []

    def init(**options):
        tried.append(options["address"])
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("WARMTALK_HOME", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    graph = LocalGraph("demo")
    if failures < starts:
        graph._start_ray()
    else:
        with pytest.raises(Exception, match="timed out during startup"):
            graph._start_ray()
    assert tried == ["local"] * starts


@pytest.mark.parametrize(
    ("name", "free_gb", "store_mb"), [("demo", 64, 600), ("gpu", 64, 4096), ("gpu", 3, 1536), ("gpu", 0.1, 600)]
)
def test_a_gpu_gets_a_larger_object_store_where_shared_memory_has_room(monkeypatch, name, free_gb, store_mb):
    free = SimpleNamespace(free=int(free_gb * 2**30))
    monkeypatch.setattr(local_graph.shutil, "disk_usage", lambda path: free)
    assert LocalGraph(name)._object_store_bytes() == store_mb * 2**20


def test_other_failures_of_ray_are_not_retried(monkeypatch):
    import ray

    tried = []

    def init(**options):
        tried.append(options)
        raise ValueError("no such option")

    monkeypatch.setattr(ray, "init", init)
    for name in ("WARMTALK_HOME", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    with pytest.raises(ValueError):
        LocalGraph("demo")._start_ray()
    assert len(tried) == 1


def test_workers_import_our_code_before_that_of_the_working_folder():
    """Ray's workers put every entry at the front of sys.path, so the last entry comes first."""
    from ray.core.generated.common_pb2 import JobConfig

    config = local_graph._job_config()
    config._py_driver_sys_path.append("/the/working/folder")
    parsed = JobConfig.FromString(config._serialize())
    assert list(parsed.py_driver_sys_path) == ["/the/working/folder", str(CODE)]
