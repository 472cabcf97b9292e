"""The base class of stages: applying configs, its compute thread, and what it measures."""

import asyncio
import threading
import time

import pytest

from configs.schema import LipSyncConfig
from deployments.common.stage import Stage
from deployments.common.worker import Worker, WorkerPool
from deployments.tts import TTS
from models.errors import ConfigError


class Recorder(Stage[LipSyncConfig]):
    """Records the configs that it applies. A config with the device `broken` fails half-way."""

    stage = "LipSync"

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[tuple[LipSyncConfig, set[str] | None]] = []
        self.engine = ""
        self.threads: set[str] = set()

    def apply(self, config: LipSyncConfig, changed: set[str] | None) -> None:
        self.applied.append((config, changed))
        self.threads.add(threading.current_thread().name)
        if changed is None or changed & {"engine", "device"}:
            self.engine = config.device
        if config.device == "broken":
            raise ConfigError("No such device.", "Use cpu.")


async def test_the_first_config_is_applied_in_full():
    stage = Recorder()
    await stage.reconfigure({"batch_size": 4})
    assert [changed for _, changed in stage.applied] == [None]
    assert stage.config.batch_size == 4


async def test_a_later_config_names_the_changed_keys():
    stage = Recorder()
    await stage.reconfigure({"batch_size": 4})
    await stage.reconfigure({"batch_size": 2, "batch_wait_ms": 5.0})
    assert stage.applied[-1][1] == {"batch_size", "batch_wait_ms"}
    assert (stage.config.batch_size, stage.config.batch_wait_ms) == (2, 5.0)


async def test_the_same_config_changes_nothing():
    stage = Recorder()
    await stage.reconfigure({"batch_size": 4})
    await stage.reconfigure({"batch_size": 4})
    assert len(stage.applied) == 1


async def test_an_omitted_key_returns_to_its_default():
    stage = Recorder()
    await stage.reconfigure({"batch_size": 4})
    await stage.reconfigure({})
    assert stage.applied[-1][1] == {"batch_size"}
    assert stage.config.batch_size == LipSyncConfig().batch_size


async def test_configs_are_applied_on_the_compute_thread():
    stage = Recorder()
    await stage.reconfigure({})
    assert all(name.startswith("LipSync") for name in stage.threads)


async def test_a_misspelt_key_is_refused_before_anything_is_applied():
    stage = Recorder()
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        await stage.reconfigure({"batch_sise": 4})
    assert stage.applied == []


async def test_after_a_failed_config_the_next_one_is_applied_in_full():
    stage = Recorder()
    await stage.reconfigure({"device": "cpu"})
    with pytest.raises(ConfigError, match="No such device"):
        await stage.reconfigure({"device": "broken"})
    assert (stage.config.device, stage.engine) == ("cpu", "broken")
    await stage.reconfigure({"device": "cpu"})
    assert (stage.applied[-1][1], stage.engine) == (None, "cpu")


async def test_concurrent_first_calls_apply_the_defaults_once():
    stage = Recorder()
    await asyncio.gather(*(stage.ready() for _ in range(5)))
    assert [changed for _, changed in stage.applied] == [None]


async def test_a_call_during_a_config_change_does_not_undo_it():
    stage = Recorder()
    await asyncio.gather(stage.reconfigure({"batch_size": 4}), stage.ready())
    assert stage.config.batch_size == 4


async def test_the_worker_runs_calls_in_order_and_measures_their_wait():
    worker, order, gate = Worker("test"), [], threading.Event()
    first = asyncio.create_task(worker.run(lambda: (gate.wait(5), order.append(1))))
    second = asyncio.create_task(worker.run(order.append, 2))
    await asyncio.sleep(0)  # both are submitted
    submitted_s = time.perf_counter()
    await asyncio.sleep(0.02)
    waited_s = time.perf_counter() - submitted_s
    gate.set()
    await first
    assert (await second).queue_s >= waited_s
    assert order == [1, 2]


async def test_a_call_that_is_cancelled_while_it_waits_never_runs():
    worker, order, gate = Worker("test"), [], threading.Event()
    first = asyncio.create_task(worker.run(gate.wait, 5))
    second = asyncio.create_task(worker.run(order.append, 2))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.sleep(0.01)
    gate.set()
    await first
    await worker.run(order.append, 3)
    assert order == [3]


class Voice:
    """A voice that records how often it was loaded."""

    loads: list[dict] = []  # noqa: RUF012

    @classmethod
    def load(cls, **options) -> "Voice":
        cls.loads.append(options)
        return cls()


async def test_an_engine_is_loaded_again_for_its_options_but_not_for_other_settings():
    Voice.loads.clear()
    stage, engine = TTS(), f"{__name__}:Voice"
    await stage.reconfigure({"engine": engine, "options": {"threads": 1}})
    voice = stage.engine
    await stage.reconfigure({"engine": engine, "options": {"threads": 1}, "speed": 1.2, "max_chars": 100})
    assert (stage.engine, stage.config.speed, Voice.loads) == (voice, 1.2, [{"threads": 1}])
    await stage.reconfigure({"engine": engine, "options": {"threads": 2}})
    assert stage.engine is not voice and Voice.loads == [{"threads": 1}, {"threads": 2}]


async def test_stats_report_the_stage_its_process_and_its_config():
    stage = Recorder()
    await stage.reconfigure({"batch_size": 4})
    stats = await stage.stats()
    assert stats["stage"] == "LipSync" and stats["pid"] > 0 and stats["rss_mb"] > 10
    assert stats["config"]["batch_size"] == 4 and stats["start_s"] > 0


async def test_stats_have_percentiles_of_the_latest_calls_and_of_the_transfers_to_other_stages():
    stage = Recorder()
    await stage.reconfigure({})
    for k in range(1, 101):
        stage.meter.record_call(4, time.time(), k / 1e3, 2 * k / 1e3)
    stage.meter.record_transfer("Enhance", 0.003)
    stats = await stage.stats()
    recent = stats["recent"]
    assert (recent["calls"], recent["frames"]) == (100, 400)
    assert recent["queue_ms"]["p50"] == pytest.approx(50.5) and recent["compute_ms"]["p99"] == pytest.approx(198.02)
    assert stats["transfer"]["Enhance"]["transfer_ms"]["p95"] == 3.0


def test_a_job_gets_the_worker_with_the_fewest_jobs():
    first, second = Worker("first"), Worker("second")
    workers = WorkerPool([first, second])
    with workers.least_busy() as a:
        with workers.least_busy() as b, workers.least_busy() as c:
            assert (a, b, c) == (first, second, first)
        with workers.least_busy() as d:
            assert d is second
    with workers.least_busy() as e:
        assert e is first


async def test_two_workers_run_in_parallel_and_calls_of_one_in_order():
    workers, meet, done = WorkerPool([Worker("a"), Worker("b")]), threading.Barrier(2, timeout=30), []
    with workers.least_busy() as a, workers.least_busy() as b:
        calls = [worker.run(meet.wait) for worker in (a, b)]  # each waits for the other
        assert len(await asyncio.gather(*calls)) == 2
        await asyncio.gather(a.run(time.sleep, 0.01), *(a.run(done.append, k) for k in range(20)))
    assert done == list(range(20))


@pytest.mark.parametrize(
    ("resources", "config", "limits"),
    [
        ({"CPU": 1.0, "GPU": 0.3}, {}, [0.3]),
        ({"CPU": 1.0, "GPU": 0.3}, {"limit_gpu_memory": False}, [1.0]),
        ({"CPU": 1.0}, {}, []),
        (None, {}, []),  # not in Ray
    ],
)
async def test_the_gpu_memory_is_limited_to_the_share_of_the_replica(monkeypatch, resources, config, limits):
    given: list[float] = []
    monkeypatch.setattr("deployments.common.stage.replica_resources", lambda: resources)
    monkeypatch.setattr("deployments.common.stage.limit_gpu_memory", given.append)
    stage = Recorder()
    await stage.reconfigure(config)
    await stage.reconfigure({**config, "batch_size": 3})  # it is not set again
    assert given == limits
    await stage.reconfigure({"limit_gpu_memory": not config.get("limit_gpu_memory", True)})
    assert len(given) == 2 * len(limits)
