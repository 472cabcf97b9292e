"""Chat jobs across replicas: restarts, two replicas that claim a job, full disks, expiry."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.chat import deployment as module
from deployments.chat.deployment import Chat
from deployments.chat.store import JobStore
from deployments.common.messages import ChatRequest, SpeechOptions
from models.errors import DiskFullError, NotFoundError
from tests.support import chat as chat_material
from tests.support.chat import Stitch, answered, finished, stage
from tests.support.llm_server import LLMServer, streamed

home, llm = chat_material.home, chat_material.llm  # fixtures


async def kill(chat: Chat) -> None:
    """Stop a replica as a kill would: cancel its tasks, keep its files."""
    assert chat._maintenance is not None
    for task in [chat._maintenance, *(running.task for running in chat._running.values())]:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(module, "LEASE_S", 0.6)


async def test_a_finished_job_can_be_read_after_a_restart() -> None:
    chat = await stage()
    job = await answered(chat)
    await kill(chat)
    assert await (await stage()).status(job["job_id"]) == job


def test_the_search_for_abandoned_jobs_reads_finished_jobs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica searches every two seconds, and jobs are kept for a day."""
    store, read, count = JobStore(tmp_path, 3600.0), JobStore.read, 0
    now_s = [100.0]
    monkeypatch.setattr("deployments.chat.store.time.monotonic", lambda: now_s[0])

    def reading(self: JobStore, job_id: str) -> Any:
        nonlocal count
        count += 1
        return read(self, job_id)

    monkeypatch.setattr(JobStore, "read", reading)
    done = [store.new("alice", "Hello.", status="done") for _ in range(50)]
    for job in done:
        store.write(job)
    assert (list(store.abandoned(6.0)), count) == ([], 0), "they have not been watched for long"
    now_s[0] += 6.0
    assert (list(store.abandoned(6.0)), count) == ([], 50)
    assert (list(store.abandoned(6.0)), count) == ([], 50)
    store.write(other := store.new("alice", "Still there?", status="thinking"))
    for _ in range(3):
        assert list(store.abandoned(6.0)) == []
        now_s[0] += 5.9
        store.write(other)  # its replica lives
    now_s[0] += 6.0
    assert list(store.abandoned(6.0)) == []
    now_s[0] += 6.0
    assert [job.job_id for job in store.abandoned(6.0)] == [other.job_id] and count == 51
    (tmp_path / f"{done[0].job_id}.json").unlink()
    list(store.abandoned(6.0))
    assert len(store._finished) == 49


async def test_a_job_that_was_not_spoken_yet_is_resumed(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Hm", " hm.", pause_s=0.3), streamed("Yes.")]
    first = await stage(llm)
    job_id = (await first.start(ChatRequest("Hello?")))["job_id"]
    await asyncio.sleep(0.1)
    await kill(first)
    stitch = Stitch()
    job = await finished(await stage(llm, stitch), job_id)
    assert (job["status"], job["reply"], stitch.texts()) == ("done", "Yes.", ["Yes."])


async def test_a_resumed_job_keeps_its_speech_options(llm: LLMServer, tmp_path: Path) -> None:
    """They are in the job's file on the same level as the other fields."""
    given = {"avatar_id": "ann", "enhance": True, "strength": 0.4, "voice": "nova", "speed": 1.5}
    store = JobStore(tmp_path / "jobs", 60.0)
    store.write(job := store.new("alice", "Hello.", options=SpeechOptions(**given)))
    (path,) = store.root.glob("*.json")
    values = json.loads(path.read_bytes())
    assert values.items() >= given.items() and "options" not in values
    path.write_text(json.dumps({**values, "unknown": 1}))  # of another version
    assert store.read(job.job_id) == job and not job.public().keys() & given.keys()
    llm.answers += [streamed("Hello there.")]
    chat = await stage(llm, stitch := Stitch())
    chat._jobs.write(job)
    await chat._resume(chat._jobs.read(job.job_id))
    await finished(chat, job.job_id)
    asked = stitch.calls[-1].request
    assert asked.speech_options() == given


async def test_a_job_that_was_being_spoken_fails(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("One. ", "Two. ", *["More. "] * 50, pause_s=0.05)]
    stitch = Stitch()
    first = await stage(llm, stitch)
    job_id = (await first.start(ChatRequest("Talk")))["job_id"]
    while len(stitch.spoken) < 2:
        await asyncio.sleep(0.01)
    await kill(first)
    job = await finished(await stage(llm), job_id)
    assert job["status"] == "failed" and job["error"]["code"] == "stage_failed"
    assert job["error"]["message"].startswith("The server stopped while it gave this answer. The part that was")


async def test_a_job_of_a_running_replica_is_not_resumed_by_another(llm: LLMServer) -> None:
    llm.answers[:] = [streamed("Well.")]
    stitch, idle = Stitch(), Stitch()
    stitch.pause_s = 0.3
    chat = await stage(llm, stitch)
    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    other = await stage(llm, idle)
    await finished(chat, job_id)
    assert idle.calls == [] and (await other.status(job_id))["status"] == "done"


def test_only_one_of_two_replicas_claims_a_job(tmp_path: Path) -> None:
    stores = [JobStore(tmp_path, 3600) for _ in range(2)]
    job = stores[0].new("alice", "Hi")
    stores[0].write(job)
    os.utime(tmp_path / f"{job.job_id}.json", (0, 0))  # by a wall clock that was wrong
    assert [list(store.abandoned(1.0)) for store in stores] == [[], []]
    taken = [list(store.abandoned(0.0)) for store in stores]
    assert [len(jobs) for jobs in taken] == [1, 0] and taken[0][0].attempt == 1


async def test_a_job_that_crashes_its_replica_fails_after_some_attempts(home: Path) -> None:
    store = JobStore(home / "results/chat/jobs", 3600)
    job = store.new("alice", "Hi", attempt=module.MAX_ATTEMPTS - 1)
    store.write(job)
    assert (await finished(await stage(), job.job_id))["status"] == "failed"


def test_old_jobs_expire_and_damaged_ones_are_reported(tmp_path: Path) -> None:
    store = JobStore(tmp_path, keep_s=60)
    old, young, torn = (store.new("a", "Hi", status="done") for _ in range(3))
    for job in (old, young, torn):
        store.write(job)
    os.utime(tmp_path / f"{old.job_id}.json", (time.time() - 61,) * 2)
    (tmp_path / f"{torn.job_id}.json").write_text("{")
    assert store.expire() == 0, "the server has not run for keep_s"
    (tmp_path / ".clock").write_text(f"[[{time.time() - 100}, {time.time()}, 0]]")
    assert store.expire() == 1
    assert store.read(young.job_id) == young
    with pytest.raises(NotFoundError):
        store.read(old.job_id)
    with pytest.raises(Exception, match="damaged"):
        store.read(torn.job_id)


async def test_a_full_disk_does_not_stop_an_answer(llm: LLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.answers[:] = [streamed("Yes.")]
    stitch = Stitch()
    chat = await stage(llm, stitch)

    def full(*given: Any) -> None:
        raise DiskFullError("The disk is full.", "Free space.")

    job_id = (await chat.start(ChatRequest("Hi")))["job_id"]
    monkeypatch.setattr(chat._jobs, "write", full)
    monkeypatch.setattr(chat._conversations, "add", full)
    for _ in range(100):
        if stitch.texts():
            break
        await asyncio.sleep(0.01)
    job = await finished(chat, job_id)
    assert (stitch.texts(), job["status"], job["error"]) == (["Yes."], "done", None)
    monkeypatch.undo()  # there is room again
    while chat._unsaved:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.8)  # longer than the lease
    assert JobStore(chat._jobs.root, 60.0).read(job_id).status == "done" and stitch.texts() == ["Yes."], "not repeated"


async def test_a_job_that_cannot_be_stored_is_refused_and_not_begun(
    llm: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stitch = Stitch()
    chat = await stage(llm, stitch)

    def full(path: Path, *given: Any, **options: Any) -> None:
        raise DiskFullError(f"The disk is full: {path} cannot be written.", "Free space.")

    with monkeypatch.context() as disk:
        disk.setattr("deployments.chat.store.replace_file", full)
        with pytest.raises(DiskFullError, match=r"jobs/\w+\.json cannot be written"):
            await chat.start(ChatRequest("Hi"))
    assert chat._running == chat._unsaved == {} and stitch.calls == [] and list(chat._jobs.root.glob("*.json")) == []
    llm.answers[:] = [streamed("Yes.")]
    assert (await answered(chat))["status"] == "done", "there is room again"
