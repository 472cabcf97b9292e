"""The directory of sessions, without Ray and with a clock of the test."""

from collections import Counter

import pytest

from deployments.stitch.ownership import directory as module
from deployments.stitch.ownership.directory import Claim, Load, Report, SessionDirectory, SessionUse

SPEAKING, WATCHED, USED = SessionUse(speaking=True, watched=True), SessionUse(watched=True), SessionUse()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(clock: Clock) -> SessionDirectory:
    return SessionDirectory(clock)


def listed(count: int) -> dict[str, str]:
    return {f"r{number}": f"info of r{number}" for number in range(count)}


def report(directory, replica: str, load: Load | None = None, draining: bool = False, **sessions: SessionUse):
    return directory.report(Report(replica, load or Load(), sessions, draining))


# --- placement


def test_sixteen_sessions_that_start_at_once_are_spread_evenly_over_six_replicas(directory):
    directory.update(listed(6))
    counts = Counter(directory.route(f"s{number}", listed(6)).replica for number in range(16))
    assert sorted(counts.values()) == [2, 2, 3, 3, 3, 3]


def test_they_are_spread_evenly_when_the_replicas_report_in_between(directory, clock):
    """A session is load while it is assigned, then while it starts, then while it is rendered."""
    counts: Counter[str] = Counter()
    for number in range(16):
        counts[directory.route(f"s{number}", listed(6)).replica] += 1
        clock.now_s += 0.1
        for replica in listed(6):
            mine = {s: SPEAKING for s in (f"s{k}" for k in range(number + 1)) if owner(directory, s) == replica}
            report(directory, replica, Load(utterances=len(mine), starting=len(mine)), **mine)
    assert sorted(counts.values()) == [2, 2, 3, 3, 3, 3]


def owner(directory, session: str) -> str:
    return directory.route(session, listed(6)).replica


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Load(busy=0.9, utterances=2), Load(busy=0.4, utterances=4)),  # fewer utterances, but they cost more
        (Load(busy=0.9, utterances=2), Load(threads=4, busy=0.3, utterances=5)),
        (Load(busy=0.5, backlog_s=3.0, utterances=1), Load(busy=0.6, utterances=3)),
        (Load(utterances=3, starting=3), Load(watched=10, sessions=10)),  # who is silent counts less
        (Load(watched=8, sessions=8), Load(busy=0.3, utterances=1, watched=1)),  # but it may speak soon
        (Load(watched=5, sessions=5), Load(watched=4, sessions=4)),
        (Load(sessions=5), Load(sessions=4)),
    ],
)
def test_a_new_session_goes_to_the_replica_with_the_most_room(directory, one, two):
    report(directory, "r0", one)
    report(directory, "r1", two)
    assert directory.route("new", listed(2)).replica == "r1"
    report(directory, "r0", two)
    report(directory, "r1", one)
    assert directory.route("newer", listed(2)).replica == "r0"


def test_an_assignment_that_is_never_reported_counts_for_a_while(directory, clock):
    assert directory.route("a", listed(2)).replica == "r0"
    clock.now_s += module.UNREPORTED_S + 1
    report(directory, "r0")
    report(directory, "r1")
    assert directory.route("b", listed(2)).replica == "r0"


# --- who owns a session


def test_a_session_stays_when_replicas_come_and_go(directory, clock):
    first = {f"s{number}": directory.route(f"s{number}", listed(2)).replica for number in range(8)}
    for count in (6, 2, 4):
        directory.update(listed(count))
        clock.now_s += 20
        for replica in listed(count):
            report(directory, replica)
        assert {session: directory.route(session, listed(count)).replica for session in first} == first


def test_a_router_that_does_not_know_the_owner_yet_gets_its_info(directory):
    directory.update(listed(2))
    directory.route("a", listed(1))
    taken = directory.route("b", listed(2))
    assert (taken.replica, taken.info) == ("r1", "info of r1")
    assert directory.route("b", listed(1)) == taken  # that router has an older list


def test_a_draining_owner_keeps_a_session_until_it_releases_it(directory, clock):
    directory.update(listed(2))
    for session in ("a", "b"):
        directory.route(session, {"r1": "info of r1"})
    directory.update(listed(1))
    assert not report(directory, "r1", a=SPEAKING, b=WATCHED).draining  # perhaps a new user_config is being applied
    clock.now_s += module.CONFIRM_S
    assert report(directory, "r1", a=SPEAKING, b=WATCHED).draining
    assert directory.route("a", listed(1)).replica == "r1" and directory.route("a", listed(1)).info == "info of r1"
    assert directory.claim("a", "r0") == Claim("r1")  # another replica is told whose it is
    assert directory.route("new", listed(2)).replica == "r0"
    directory.release_all_but("r1", ["a"], ["b"])
    assert [directory.route(session, listed(1)).replica for session in ("a", "b")] == ["r1", "r0"]
    assert directory.claim("b", "r0") == Claim("r0", moved=True, watched=True)
    directory.release("r1", "a", watched=False)
    assert directory.route("a", listed(1)).replica == "r0"
    assert directory.claim("a", "r0") == Claim("r0", moved=True, watched=False)
    clock.now_s += module.MOVED_S
    assert directory.claim("a", "r0") == Claim("r0")


def test_the_last_replica_keeps_its_sessions(directory, clock):
    """While Serve replaces the only replica, there is nobody who could take them."""
    directory.update(listed(1))
    directory.route("a", listed(1))
    directory.update({})
    clock.now_s += module.CONFIRM_S
    assert not report(directory, "r0", a=SPEAKING).draining and directory.route("a", {}).replica == "r0"
    directory.update({"r1": None})
    assert report(directory, "r0", a=SPEAKING).draining


def test_a_replica_that_returns_to_the_list_goes_on(directory, clock):
    directory.update(listed(2))
    directory.update(listed(1))
    clock.now_s += module.CONFIRM_S + 1
    assert report(directory, "r1").draining
    directory.update(listed(2))
    assert not report(directory, "r1").draining


def test_the_sessions_of_a_dead_replica_go_to_another_and_its_viewers_are_expected_there(directory):
    directory.route("a", {"r1": None})
    report(directory, "r1", a=SPEAKING)
    route = directory.route("a", listed(2), dead=["r1"])
    assert route.replica == "r0" and directory.claim("a", "r0") == Claim("r0", moved=True, watched=True)
    assert directory.route("b", {"r1": None}, dead=["r1"]).replica == ""  # nobody is left


def test_a_replica_that_left_the_list_and_is_silent_is_gone(directory, clock):
    directory.update(listed(2))
    directory.route("a", {"r1": None})
    directory.update(listed(1))
    clock.now_s += module.SILENT_S - 0.1
    assert directory.route("a", listed(1)).replica == "r1"
    clock.now_s += 0.2
    assert directory.route("a", listed(1)).replica == "r0"


def test_a_listed_replica_that_is_silent_keeps_its_sessions(directory, clock):
    directory.update(listed(2))
    directory.route("a", {"r1": None})
    clock.now_s += 10 * module.SILENT_S
    assert directory.route("a", listed(2)).replica == "r1"


# --- a new directory


def test_a_new_directory_learns_the_owners_from_their_reports(directory, clock):
    assert directory.unheard(listed(2))
    report(directory, "r1", a=WATCHED, b=USED)
    assert directory.unheard(listed(2))
    report(directory, "r0")
    assert not directory.unheard(listed(2))
    assert [directory.route(session, listed(2)).replica for session in ("a", "b", "c")] == ["r1", "r1", "r0"]


def test_it_does_not_wait_for_a_silent_replica_for_ever(directory, clock):
    clock.now_s += module.GATHER_S
    assert not directory.unheard(listed(2))


def test_a_draining_replica_tells_a_new_directory_that_it_drains(directory):
    directory.update(listed(1))
    assert report(directory, "r1", draining=True, a=SPEAKING).draining
    assert directory.route("a", listed(1)).replica == "r1" and directory.route("b", listed(1)).replica == "r0"


def test_of_two_owners_the_one_that_speaks_keeps_the_session(directory):
    report(directory, "r0", a=WATCHED)
    assert report(directory, "r1", a=WATCHED).lost == ("a",)
    assert report(directory, "r1", a=SPEAKING).lost == ()
    assert report(directory, "r0", a=SPEAKING).lost == ("a",) and owner(directory, "a") == "r1"


def test_a_late_report_of_a_draining_owner_takes_no_session_back(directory, clock):
    """It still has utterances of that session which wait there, while the new owner has not reported any yet."""
    directory.update(listed(2))
    directory.route("a", {"r1": None})
    directory.update(listed(1))
    clock.now_s += module.CONFIRM_S
    report(directory, "r1", a=SPEAKING)
    directory.release("r1", "a", watched=True)
    assert directory.route("a", listed(1)).replica == "r0" and directory.claim("a", "r0").watched
    assert report(directory, "r1", a=SPEAKING).lost == ("a",)
    assert report(directory, "r0", a=WATCHED).lost == () and directory.route("a", listed(1)).replica == "r0"


def test_an_owner_that_no_router_has_listed_is_gone_when_it_is_silent(directory, clock):
    report(directory, "r1", a=SPEAKING)
    assert directory.route("a", listed(1)).replica == "r1"
    clock.now_s += module.SILENT_S
    assert directory.route("a", listed(1)).replica == "r0"


def test_with_another_request_router_every_claim_is_granted(directory):
    """Nobody asks the directory where a session is, so it must not refuse one."""
    report(directory, "r0", a=WATCHED)
    assert directory.claim("a", "r1").owner == "r1"


# --- bounds


def test_sessions_that_nobody_uses_are_forgotten(directory, clock):
    for session in ("a", "b"):
        directory.route(session, listed(1))
    clock.now_s += module.FORGET_S - 1
    report(directory, "r0", a=WATCHED)
    clock.now_s += 2
    assert len(directory) == 1


def test_the_number_of_sessions_is_bounded(directory, monkeypatch):
    monkeypatch.setattr(module, "MAX_SESSIONS", 10)
    small = SessionDirectory()
    for number in range(50):
        small.route(f"s{number}", listed(2))
    assert len(small) == 10


def test_replicas_that_are_gone_are_forgotten(directory, clock):
    for number in range(100):
        directory.update({f"r{number}": None})
        report(directory, f"r{number}")
        clock.now_s += 60
    assert len(directory._replicas) < 15
