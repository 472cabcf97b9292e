"""The end of a replica that can serve no longer: by its own check, or by a timer that needs no Python."""

import asyncio
import logging
import subprocess
import sys
import textwrap
import time

import pytest

from deployments.common import supervision
from deployments.common.errors import ReplicaFailedError
from deployments.common.supervision import CHECK_S, STALL_LIMIT_S, Supervision
from tests.support.virtual_time import event_loop_policy, virtual_time
from tests.unit.deployments.common.test_stage import Recorder

__all__ = ["event_loop_policy", "virtual_time"]


class Process:
    """Records what would end the process."""

    def __init__(self) -> None:
        self.exits: list[int] = []
        self.timers_s: list[float] = []

    def end(self, code: int) -> None:
        self.exits.append(code)
        raise asyncio.CancelledError  # nothing runs after the real one

    def start_timer(self, seconds: float, **options) -> None:
        assert options == {"exit": True, "file": 2}
        self.timers_s.append(seconds)


@pytest.fixture
def process(monkeypatch) -> Process:
    process = Process()
    monkeypatch.setattr(supervision, "replica_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(supervision.os, "_exit", process.end)
    monkeypatch.setattr(supervision.faulthandler, "dump_traceback_later", process.start_timer)
    monkeypatch.setattr(supervision.faulthandler, "dump_traceback", lambda **options: None)
    return process


async def test_a_fault_ends_the_process_within_a_second_and_says_why(process, caplog):
    fault: list[str] = []
    supervision = Supervision("LipSync", lambda: "".join(fault))
    supervision.start()
    await asyncio.sleep(5.5)
    assert process.exits == []
    fault.append("generate has run for 9.0 s")
    with caplog.at_level(logging.ERROR, "ray.serve"):
        await asyncio.sleep(CHECK_S)
    assert process.exits == [1]
    assert "A replica of LipSync ends and will be replaced: generate has run for 9.0 s." in caplog.text


async def test_a_check_that_fails_neither_ends_the_process_nor_stops_the_checks(process, caplog):
    answers = [AttributeError("partially initialized module"), AttributeError("partially initialized module"), ""]

    def check() -> str:
        answer = answers.pop(0) if answers else "it hangs"
        if isinstance(answer, Exception):
            raise answer
        return answer

    Supervision("LipSync", check).start()
    await asyncio.sleep(2.5 * CHECK_S)
    assert (process.exits, len(process.timers_s)) == ([], 3)
    assert caplog.text.count("The state of a replica of LipSync cannot be checked") == 1
    await asyncio.sleep(CHECK_S)
    assert process.exits == [1]


async def test_the_timer_is_restarted_while_the_event_loop_runs(process):
    Supervision("TTS").start()
    await asyncio.sleep(3.5 * CHECK_S)
    assert process.timers_s == [STALL_LIMIT_S] * 4


async def test_while_an_engine_is_loaded_the_event_loop_may_be_blocked_for_longer(process):
    supervision = Supervision("TTS")
    with supervision.loading(600.0):
        await asyncio.sleep(1.5 * CHECK_S)
    await asyncio.sleep(2 * CHECK_S)
    assert process.timers_s == [600.0] * 3 + [STALL_LIMIT_S] * 2


async def test_a_second_start_changes_nothing(process):
    supervision = Supervision("TTS")
    for _ in range(3):
        supervision.start()
    await asyncio.sleep(0.5)
    assert len(process.timers_s) == 1


async def test_outside_of_ray_nothing_is_watched(monkeypatch):
    monkeypatch.setattr(supervision.os, "_exit", lambda code: pytest.fail("ended the process"))
    stage = Recorder()
    await stage.reconfigure({})
    await asyncio.sleep(5)
    assert stage._supervision._task is None


@pytest.mark.parametrize("blocks", ["ctypes.PyDLL(None).sleep(60)", "time.sleep(60)"])  # holding the GIL, or not
def test_a_process_whose_event_loop_is_blocked_ends_and_prints_where(blocks):
    code = f"""
        import asyncio, ctypes, time
        from deployments.common import supervision
        supervision.STALL_LIMIT_S = 0.2
        supervision.replica_resources = lambda: dict(CPU=1.0)
        async def main():
            watched = supervision.Supervision("TTS")
            watched._stall_limit_s = 0.2
            watched.start()
            await asyncio.sleep(0.01)
            {blocks}
        asyncio.run(main())
    """
    began_s = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1 and time.perf_counter() - began_s < 50
    assert "Timeout (0:00:00.200000)!" in ended.stderr and "in main" in ended.stderr


# --- the health check of a stage


async def test_a_replica_is_healthy_only_after_its_engine_is_loaded():
    stage = Recorder()
    await stage.check_health()
    assert [changed for _, changed in stage.applied] == [None]
    await stage.check_health()
    assert len(stage.applied) == 1


async def test_a_fault_of_any_compute_thread_fails_the_health_check(monkeypatch):
    stage = Recorder()
    await stage.check_health()
    monkeypatch.setattr(stage.worker, "fault", lambda: "the compute thread LipSync_0 has ended")
    with pytest.raises(ReplicaFailedError, match="is being replaced: the compute thread LipSync_0 has ended"):
        await stage.check_health()


async def test_the_limits_of_the_config_hold_for_the_compute_thread():
    stage = Recorder()
    await stage.reconfigure({"hung_after_s": 3.0})
    assert stage.worker.hung_after_s == 3.0 and stage.worker.loading_s > 0
    await stage.reconfigure({})
    assert stage.worker.hung_after_s == stage.config.hung_after_s > 3.0
