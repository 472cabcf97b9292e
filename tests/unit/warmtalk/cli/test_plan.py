"""`warmtalk plan`: the simulation against cases with a known answer, and plans that follow from it."""

import json
import math
from dataclasses import replace

import pytest

from models.errors import ConfigError, ExistsError, InputError
from warmtalk.cli.plan import command
from warmtalk.cli.plan.planning import MEASURED, PRICES, Measured, Prices, plan, read
from warmtalk.cli.plan.report import overview_markdown
from warmtalk.cli.plan.simulation import Load, Stage, most_sessions, simulate

LIPSYNC = Stage("LipSync", "gpu", 0.0, 1 / 500, batch_frames=32)
STITCH = Stage("Stitch", "cpu", 0.0, 1 / 100)


@pytest.fixture(scope="module")
def prices() -> Prices:
    return read(PRICES, Prices)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return read(MEASURED, Measured)


@pytest.mark.parametrize(("stages", "servers", "frames_per_s"), [
    ((LIPSYNC,), {"gpu": 1}, 500),
    ((LIPSYNC,), {"gpu": 2}, 1000),
    ((LIPSYNC, STITCH), {"gpu": 1, "cpu": 3}, 300),
    ((LIPSYNC, STITCH), {"gpu": 1, "cpu": 9}, 500),
])  # fmt: skip
def test_sessions_that_never_pause_are_held_up_to_the_slowest_pools_frames_per_second(stages, servers, frames_per_s):
    most = most_sessions(Load(1, seconds=30), stages, servers, 100)
    assert frames_per_s / 25 * 0.9 <= most <= frames_per_s / 25 * 1.08


def test_calls_carry_more_frames_the_busier_the_stage_is():
    quiet, busy = (simulate(Load(count), (LIPSYNC,), {"gpu": 1}) for count in (2, 19))
    assert quiet.frames_per_call["LipSync"] < 18 < 28 < busy.frames_per_call["LipSync"] <= 32
    assert busy.busy["LipSync"] == pytest.approx(19 * 25 / 500, rel=0.1)


def test_a_session_shows_its_first_frame_after_one_small_chunk():
    outcome = simulate(Load(1), (Stage("LipSync", "gpu", 0.1, 0.001, 4),), {"gpu": 1})
    assert outcome.ttff_s == (pytest.approx(0.1 + Load(1).first_chunk_frames * 0.001, abs=0.005),)


def test_only_the_sessions_that_enhance_use_enhance():
    stages = (LIPSYNC, Stage("Enhance", "gpu", 0.0, 1 / 1000, 16))
    shares = [simulate(Load(10, enhance=share), stages, {"gpu": 1}).busy["Enhance"] for share in (0.0, 0.5, 1.0)]
    assert shares[0] == 0 and shares[1] == pytest.approx(shares[2] / 2, rel=0.1)


def test_sessions_that_pause_leave_room_for_others():
    counts = [most_sessions(Load(1, seconds=20, speaking=share), (LIPSYNC,), {"gpu": 1}, 200) for share in (1.0, 0.5)]
    assert 1.3 < counts[1] / counts[0] < 2.5


def test_no_session_keeps_up_with_a_stage_that_is_too_slow():
    slow = replace(LIPSYNC, frame_s=1 / 20)
    assert most_sessions(Load(1), (slow,), {"gpu": 1}, 100) == 0
    assert not simulate(Load(1), (slow,), {"gpu": 1}).held


def test_a_plan_holds_its_sessions_and_grows_with_them(measured, prices):
    load = Load(1, seconds=10, speaking=0.5, enhance=0.5)
    few, many = (plan(sessions, "H200", load, measured, prices) for sessions in (5, 100))
    assert many.gpus > few.gpus and many.cores > few.cores and many.cost_per_hour > few.cost_per_hour
    assert many.cost_per_session_hour < 1.2 * few.cost_per_session_hour
    stages = {stage.name: stage for stage in many.stages}
    assert stages["LipSync"].replicas == many.gpus
    assert many.cores >= sum(stage.replicas * stage.num_cpus for stage in many.stages)
    shares = sum(stages[name].num_gpus for name in ("LipSync", "Enhance", "AudioFeatures"))
    assert 0.9 < shares <= 1.0


def test_a_slower_gpu_serves_fewer_sessions_and_the_times_are_called_scaled(measured, prices):
    large, small = (plan(10, gpu, Load(1, seconds=10), measured, prices) for gpu in ("h200", "L4"))
    assert small.sessions_per_gpu < large.sessions_per_gpu / 4
    assert small.measured_on == "H200"


def test_a_profile_of_ones_own_machine_replaces_the_measured_times(measured, prices):
    profile = {"stages": {"LipSync": {"frames_per_s": {"1": 50, "16": 100, "32": 104}}, "TTS": {"frames_per_s": {}}}}
    own = measured.with_profile(profile, "L4", prices.gpus)
    assert own.gpu == "L4" and own.stages["LipSync"].ms_per_frame == pytest.approx(9.6, rel=0.1)
    assert own.stages["TTS"] == measured.stages["TTS"]
    assert 2 <= plan(2, "L4", Load(1, seconds=10), own, prices).sessions_per_gpu <= 5
    with pytest.raises(InputError, match="drove no stage"):
        measured.with_profile({"stages": {}}, "L4", prices.gpus)
    assert measured.with_profile(profile | {"device": {"gpu": "NVIDIA L40S"}}, "L4", prices.gpus).gpu == "L40S"
    with pytest.raises(InputError, match="without a GPU"):
        measured.with_profile(profile | {"device": {"gpu": "", "cores": 2}}, "L4", prices.gpus)


def test_what_cannot_work_is_said_with_the_reason(measured, prices, tmp_path):
    with pytest.raises(InputError, match=r"Unknown GPU 'B9'.*H200"):
        plan(1, "B9", Load(1), measured, prices)
    tiny = prices.model_copy(
        update={"gpus": {**prices.gpus, "small": prices.gpus["T4"].model_copy(update={"memory_gb": 2})}}
    )
    with pytest.raises(InputError, match="GB of GPU memory"):
        plan(1, "small", Load(1), measured, tiny)
    with pytest.raises(InputError, match="Unknown decoder 'half'"):
        measured.with_decoder("half")
    wrong = tmp_path / "prices.yaml"
    wrong.write_text(PRICES.read_text().replace("per_hour: 4.00", "per_hour: free"))
    with pytest.raises(ConfigError, match=r"gpus\.H200\.per_hour"):
        read(wrong, Prices)
    with pytest.raises(InputError, match="cannot be read"):
        command.plans(command.PlanRequest((1,), "H200", 0, 1, 1, "cropped"), tmp_path / "none.json")


def test_the_price_table_is_written_once_and_changes_the_cost(tmp_path):
    path = tmp_path / "mine" / "prices.yaml"
    command.write_prices(path)
    path.write_text(path.read_text().replace("per_hour: 0.70", "per_hour: 4.70"))
    with pytest.raises(ExistsError):
        command.write_prices(path)
    request = command.PlanRequest((4,), "L4", 0.0, 1.0, 1.0, "tiny")
    shipped, own = command.plans(request)[0], command.plans(request, prices_file=path)[0]
    assert own.cost_per_hour == pytest.approx(shipped.cost_per_hour + 4 * own.gpus)


def test_large_plans_say_what_changes_at_their_size(measured, prices, capsys):
    load = Load(1, seconds=4)
    plans = [plan(sessions, "H200", load, measured, prices, viewers) for sessions, viewers in ((10, 1), (10_000, 30))]
    text = overview_markdown(plans)
    assert "| 10,000 |" in text
    for word in ("nodes share", "directory", "Storage", "Ingress", "WebRTC"):
        assert any(word in note for note in plans[1].notes), word
    command.show(plans, as_json=True)
    assert [item["sessions"] for item in json.loads(capsys.readouterr().out)] == [10, 10_000]


def test_the_simulation_predicts_what_the_whole_graph_made_within_15_percent(measured, prices):
    stages = measured.on(prices.gpu("H200"), prices.gpu("H200"))
    for point in measured.points:
        load = Load(point.sessions, seconds=14, start_s=0.1, ahead_s=math.inf)  # all of it as fast as possible
        servers = {"gpu": point.gpus, "cpu": point.stitch_cores, "AudioFeatures": 4}
        outcome = simulate(load, stages, servers)
        assert outcome.frames_per_s == pytest.approx(point.frames_per_s, rel=0.15), point
