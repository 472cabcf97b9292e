"""Starting the graph: what is wrong is said before Ray is started, and a failed stage speaks for itself."""

import socket
from types import SimpleNamespace

import pytest

from models import errors
from models.errors import ConfigError, StageError, WarmTalkError
from warmtalk.cli import local_graph as launch
from warmtalk.cli.local_graph import LocalGraph, require_free_port


@pytest.fixture
def no_ray(monkeypatch):
    """Records whether Ray would have been started."""
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


def test_a_port_in_use_is_named_before_anything_starts(no_ray, taken):
    with pytest.raises(ConfigError, match=f"Port {taken} on 127.0.0.1 is in use") as caught:
        LocalGraph("demo", taken).start()
    assert "--port" in caught.value.remedy and no_ray == []


@pytest.mark.parametrize("host, port", [("127.0.0.1", 99_999), ("192.0.2.1", 8000), ("127.0.0.1", "http")])
def test_a_port_that_cannot_be_had_is_not_called_in_use(host, port):
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        require_free_port(host, port)
    assert "in use" not in str(caught.value)


def test_a_free_port_is_free_and_stays_it():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    require_free_port("127.0.0.1", port)
    require_free_port("127.0.0.1", port)


def test_an_unknown_config_names_the_known_ones():
    with pytest.raises(ConfigError, match="no config file 'dmo'.*cluster, demo, gpu"):
        LocalGraph("dmo")


def test_a_value_that_serve_does_not_take_is_named_before_anything_starts(no_ray, tmp_path):
    text = "applications: [{import_path: 'graph:build_app', deployments: [{name: TTS, num_replicas: -2}]}]"
    with pytest.raises(ConfigError, match="not one of Serve: .*num_replicas"):
        LocalGraph(config(tmp_path, text)).start()
    assert no_ray == []


def test_empty_http_options_mean_serves_own(tmp_path):
    graph = LocalGraph(config(tmp_path, "http_options:\napplications: [{import_path: 'graph:build_app'}]"))
    assert graph.url == "http://127.0.0.1:8000"
    assert LocalGraph("cluster").url == "http://127.0.0.1:8000"  # it listens everywhere; here is where to ask


def test_a_start_that_breaks_off_stops_what_it_started(monkeypatch, no_ray):
    stopped = []
    monkeypatch.setattr(LocalGraph, "stop", lambda self: stopped.append("stopped"))
    monkeypatch.setattr(LocalGraph, "_deploy", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(launch, "require_free_port", lambda host, port: None)
    with pytest.raises(KeyboardInterrupt):
        LocalGraph("demo").start()
    assert stopped == ["stopped"]


def application(message: str = "", status: str = "DEPLOY_FAILED", **deployments: str) -> SimpleNamespace:
    return SimpleNamespace(
        status=status,
        message=message,
        deployments={
            name: SimpleNamespace(status="HEALTHY" if text == "ok" else "UNHEALTHY", message=text)
            for name, text in deployments.items()
        },
    )


def test_a_failed_stage_says_its_own_sentence(monkeypatch):
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


def waited(monkeypatch, first: str) -> int:
    """How often Serve was asked until the start was given up, when its first answer to a stage is `first`."""
    trying = application(status="DEPLOYING", TTS="ok", LipSync=f"A replica failed to start. Error:\n{first}")
    given_up = application("Deploying app 'warmtalk' failed:\nRuntimeError: at last")
    answers = [trying, trying, given_up]
    asked = []

    def status():
        asked.append(1)
        return SimpleNamespace(applications={"warmtalk": answers[min(len(asked), len(answers)) - 1]})

    monkeypatch.setattr("ray.serve.status", status)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    with pytest.raises(StageError) as caught:
        LocalGraph("demo")._wait(lambda done, total, waiting: None)
    assert ("weights/unet.pth is missing." in caught.value.message) == (len(asked) == 1)
    return len(asked)


def test_an_error_that_no_further_try_can_mend_is_told_at_the_first(monkeypatch):
    assert waited(monkeypatch, "models.errors.WeightsError: weights/unet.pth is missing. Fetch it.\n") == 1


@pytest.mark.parametrize("first", ["RuntimeError: no memory", "models.errors.StageError: The server is starting."])
def test_an_error_that_may_pass_is_left_to_serves_further_tries(monkeypatch, first):
    assert waited(monkeypatch, first) == 3


def test_the_lasting_errors_are_errors_of_the_tree():
    assert all(issubclass(getattr(errors, name), WarmTalkError) for name in launch.LASTING)


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (application("Deploying app 'warmtalk' failed:\nImportError: no torch\n"), "ImportError: no torch"),
        (application("", TTS="Killed: no memory."), "Killed: no memory."),
        (application(), "no reason was given"),
    ],
)
def test_other_failures_give_their_last_line(failed, reason):
    assert launch._reason(failed) == reason


@pytest.mark.parametrize(("failures", "starts"), [(1, 2), (2, 2)])
def test_a_node_that_does_not_come_up_is_started_once_more(monkeypatch, failures, starts):
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


def test_another_failure_of_ray_is_not_tried_again(monkeypatch):
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
