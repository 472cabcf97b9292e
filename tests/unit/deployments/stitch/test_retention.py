"""Which sessions have expired: each replica sees the leases of all replicas."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from deployments.stitch import deployment as module
from deployments.stitch.deployment import Stitch
from deployments.stitch.retention import LEASE_FILE, Limits, Retention
from models.errors import QuotaError
from models.stitch.disk import INDEX, META
from models.stitch.store import SessionStore
from tests.support.live import SPEC
from tests.support.stitch import Stages
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

HOUR_S = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    made = SessionStore(tmp_path)
    for name in ("old", "older", "young"):
        made.create(name, SPEC)
    for name, hours in (("old", 2), ("older", 3), ("young", 0.5)):
        set_age(tmp_path / name, hours)
    served_for(tmp_path, hours=10)
    return made


def set_age(session: Path, hours: float, names: tuple[str, ...] = (INDEX, META)) -> None:
    for name in names:
        os.utime(session / name, (time.time() - hours * HOUR_S,) * 2)


def served_for(root: Path, hours: float) -> None:
    """Write the clock of a server that has run on this folder for `hours`."""
    now_s = time.time()
    (root / ".clock").write_text(f"[[{now_s - hours * HOUR_S}, {now_s}, 0]]")


def replica(store: SessionStore, max_idle_s: float = HOUR_S) -> Retention:
    return Retention(store, Limits(max_sessions=10, max_bytes=1e9, max_idle_s=max_idle_s))


def test_idle_sessions_have_expired_the_longest_idle_first(store: SessionStore) -> None:
    assert replica(store).expired() == ["older", "old"]
    assert replica(store, 0).expired() == [] and not replica(store, 0).has_expired("old")


def test_a_session_in_use_on_another_replica_has_not_expired(store: SessionStore, tmp_path: Path) -> None:
    one, two = replica(store), replica(store)
    expired = two.expired()
    one.renew_leases(["older", "gone"])
    assert "older" in expired and not two.has_expired("older") and two.expired() == ["old"]
    assert not (tmp_path / "gone").exists() and not two.has_expired("gone")
    set_age(tmp_path / "older", 1.5, (LEASE_FILE,))  # its viewer has left since
    assert two.expired() == ["old", "older"]


def test_a_limit_shorter_than_the_lease_does_not_remove_watched_sessions(store: SessionStore) -> None:
    retention = replica(store, max_idle_s=1)
    retention.renew_leases(["old"])
    set_age(store.root / "old", 60 / HOUR_S, (LEASE_FILE,))
    assert retention.expired() == ["older", "young"]


async def test_a_session_watched_on_one_replica_is_not_removed_by_another(make_stitch, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SURVEY_S", 0.1)
    monkeypatch.setattr(module, "SURVEYS_PER_EXPIRY", 1)
    one, live, _ = await make_stitch(session_idle_hours=1)
    await one.create("unwatched")
    viewer = await live.view("alice")
    for name in ("alice", "unwatched"):
        set_age(tmp_path / "results" / "sessions" / name, 2)
    served_for(tmp_path / "results" / "sessions", hours=10)
    two = Stitch(*[Stages()] * 3)
    await two.reconfigure(one.config.model_dump())
    one._housekeeping.cancel()  # only the other replica removes sessions
    await asyncio.sleep(0.5)
    assert await two.sessions() == ["alice"]
    viewer.close()
    two._housekeeping.cancel()


@pytest.mark.parametrize("days", [1, -1, 400])
def test_a_jump_of_the_clock_expires_nothing(store: SessionStore, tmp_path: Path, days: float) -> None:
    retention = replica(store, 5 * HOUR_S)
    jump_s = days * 86_400
    now_s = time.time() - jump_s  # the time before the jump, which is now
    (tmp_path / ".clock").write_text(f"[[{now_s - 10 * HOUR_S}, {now_s}, 0]]")
    for name, hours in (("old", 2), ("older", 6), ("young", 0.5)):
        set_age(tmp_path / name, hours + days * 24)
    assert retention.expired() == ["older"] and not retention.has_expired("young")


def test_a_session_whose_creation_failed_does_not_count(store: SessionStore, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "lock").touch()
    retention = replica(store)
    retention.survey()
    assert retention.sessions == 3


def test_a_full_store_is_counted_again_after_a_second_and_not_at_each_refusal(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("deployments.stitch.retention.time.monotonic", lambda: now_s[0])
    retention = Retention(store, Limits(max_sessions=3, max_bytes=1e9, max_idle_s=0))
    with pytest.raises(QuotaError, match="3 sessions; the limit is"):
        retention.check(new=True)
    store.remove("old")  # on another replica, say
    surveys = []
    monkeypatch.setattr(Retention, "survey", lambda self, survey=Retention.survey: surveys.append(survey(self)))
    for _ in range(100):
        with pytest.raises(QuotaError):
            retention.check(new=True)
    assert surveys == []
    now_s[0] += 1.1
    retention.check(new=True)
    assert len(surveys) == 1 and retention.sessions == 2


async def test_a_session_removed_at_the_limit_makes_room_at_once(make_stitch):
    stitch, *_ = await make_stitch(max_sessions=2)  # with one session, alice
    await stitch.create("one")
    with pytest.raises(QuotaError):
        await stitch.create("two")
    await stitch.remove("one")
    assert (await stitch.create("two"))["session_id"] == "two"
