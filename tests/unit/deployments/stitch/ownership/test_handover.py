"""Sessions that move between replicas: while they are watched, speak, wait, or are still being written."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from deployments.common.speech_call import SpeechCall
from deployments.common.text_stream import speak_text_stream
from deployments.ingress.commands import interrupt_session
from deployments.stitch.ownership.directory import SILENT_S, SessionDirectory
from models.errors import InterruptedSpeech
from tests.support.cluster import CONFIRM_S, cluster
from tests.support.stitch import Method, Watcher, assert_continuous, summary_of
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["cluster", "event_loop_policy", "virtual_time"]

LONG = "x" * 40  # four seconds
HANDED_OVER_S = CONFIRM_S + 1.2  # after the list has changed, until an idle session has moved


async def two_replicas(cluster, *sessions: str, **config):
    """Sessions that r0 owns, and another replica."""
    old = await cluster.add("r0", **config)
    for session_id in sessions:
        await old.create(session_id)
        assert cluster.owner(session_id) == "r0"
    return old, await cluster.add("r1", **config)


def frames_at(times: np.ndarray) -> np.ndarray:
    return np.round(np.diff(times) * 25)


async def test_a_watched_session_that_is_silent_moves_at_once_and_its_viewers_notice_nothing(cluster):
    old, new = await two_replicas(cluster, "alice")
    viewer = await cluster.hubs[0].view("alice")
    watcher, arrivals = Watcher(viewer), []
    push = viewer.push
    viewer.push = lambda fragment: (arrivals.append(time.monotonic()), push(fragment))
    await asyncio.sleep(1.0)
    zero_s = viewer.hub._clock.zero_s
    cluster.list("r1")
    await asyncio.sleep(HANDED_OVER_S)
    assert cluster.owner("alice") == "r1" and viewer.hub._clock.zero_s == pytest.approx(zero_s, abs=2e-3)
    assert (old._live.watched(), new._live.watched()) == ([], ["alice"])
    await asyncio.sleep(1.0)
    times, edges, _ = watcher.seen()
    assert_continuous(edges)  # the position and the clock of the timeline go on
    assert np.diff(arrivals).max() < 0.25 and (frames_at(times) == 1).all()
    assert viewer.ending is None


async def test_viewers_of_a_session_that_speaks_move_when_it_is_silent(cluster):
    old, new = await two_replicas(cluster, "alice")
    watcher = Watcher(await cluster.hubs[0].view("alice"))
    await asyncio.sleep(0.5)
    said = asyncio.create_task(cluster.speak("alice", LONG))
    await asyncio.sleep(1.0)
    cluster.list("r1")
    await asyncio.sleep(HANDED_OVER_S)
    assert old._live.watched() == ["alice"] and not said.done()
    summary = await said
    assert summary["live"]["shown_frames"] == 103 and not summary["interrupted"]
    await asyncio.sleep(0.3)
    assert (old._live.watched(), new._live.watched()) == ([], ["alice"])
    summary = await cluster.speak("alice", "xx")
    assert cluster.routed[-1] == ("speak", "r1") and summary["live"]["shown_frames"] > 0  # not mute
    await asyncio.sleep(0.5)
    _, edges, mouths = watcher.seen()
    assert_continuous(edges, summary)
    assert (mouths > 240).sum() == 103 + summary["live"]["shown_frames"]  # every frame of both replicas was seen


async def test_the_viewers_of_two_ingress_replicas_move(cluster):
    _, new = await two_replicas(cluster, "alice")
    cluster.hubs.append(cluster.ingress())
    watchers = [Watcher(await hubs.view("alice")) for hubs in cluster.hubs]
    cluster.list("r1")
    await asyncio.sleep(HANDED_OVER_S)
    summary = await cluster.speak("alice", "x" * 10)
    await asyncio.sleep(0.5)
    assert len(new._live.broadcast_of("alice")._listeners) == 2
    for watcher in watchers:
        _, edges, mouths = watcher.seen()
        assert_continuous(edges, summary)
        assert (mouths > 240).sum() == summary["live"]["shown_frames"] == 28


async def test_queued_utterances_move_in_their_order_and_none_runs_beside_the_old_one(cluster):
    _, _ = await two_replicas(cluster, "alice")
    texts = ["a" * 20, "b" * 5, "c" * 5, "d" * 5]
    said = []
    for text in texts:
        said.append(asyncio.create_task(cluster.speak("alice", text)))
        await asyncio.sleep(0.01)
    cluster.replicas["r0"]._handles[0].delay_s = 0.1  # the first one takes a while
    cluster.list("r1")
    await asyncio.sleep(HANDED_OVER_S)
    said.append(asyncio.create_task(cluster.speak("alice", "e" * 5)))
    summaries = await asyncio.gather(*said)
    facts = await cluster.replicas["r1"].session("alice")
    assert [line["text"] for line in facts["utterances"]] == [*texts, "e" * 5]
    starts = [summary["start_s"] for summary in summaries]
    assert starts == sorted(starts) and facts["frames"] == sum(summary["frames"] for summary in summaries)


async def test_utterances_that_wait_at_the_old_owner_speak_at_the_new_one_after_it(cluster):
    old, new = await two_replicas(cluster, "alice")
    Watcher(await cluster.hubs[0].view("alice"))
    await asyncio.sleep(0.3)
    said = [asyncio.create_task(cluster.speak("alice", text)) for text in (LONG, "b" * 5, "c" * 5)]
    await asyncio.sleep(0.5)
    cluster.list("r1")
    first = await said[0]
    ended_s = time.monotonic()
    second, third = await asyncio.gather(*said[1:])
    assert (
        first["live"]["shown_frames"] == 103 and second["live"]["shown_frames"] == third["live"]["shown_frames"] == 15
    )
    assert [line["text"] for line in (await new.session("alice"))["utterances"]] == [LONG, "b" * 5, "c" * 5]
    assert not old._interrupts.sessions() and not old._live.watched()
    assert time.monotonic() - ended_s < 4.0


async def test_utterances_that_wait_for_a_slot_of_the_old_owner_move_before_it_is_free(cluster):
    _old, _new = await two_replicas(cluster, "alice", "ben", max_utterances=1)
    for session_id in ("alice", "ben"):
        Watcher(await cluster.hubs[0].view(session_id))
    long = asyncio.create_task(cluster.speak("alice", "x" * 50))
    await asyncio.sleep(0.5)
    waiting = asyncio.create_task(cluster.speak("ben", "x" * 10))
    cluster.list("r1")
    await waiting
    assert not long.done() and cluster.owner("ben") == "r1"
    await long


async def test_interrupt_and_text_reach_a_draining_owner(cluster):
    _old, new = await two_replicas(cluster, "alice", "ben")
    more = asyncio.Event()

    async def writer():
        yield "One sentence is here. "
        await more.wait()
        yield "Another one follows. "

    for session_id in ("alice", "ben"):
        Watcher(await cluster.hubs[0].view(session_id))
    stream = speak_text_stream(cluster, SpeakRequest("ben", deliver=False), writer())
    said = [asyncio.create_task(cluster.speak("alice", LONG)), asyncio.create_task(summary_of(stream))]
    await asyncio.sleep(0.5)
    cluster.list("r1")
    await asyncio.sleep(HANDED_OVER_S)
    assert (await cluster.handle("alice").interrupt.remote("alice"))["interrupted"] == 1
    assert (await said[0])["interrupted"]
    more.set()
    await said[1]
    assert (await new.session("ben"))["utterances"][0]["text"] == "One sentence is here. Another one follows."
    assert {replica for method, replica in cluster.routed if method in ("interrupt", "feed")} == {"r0"}


@pytest.mark.parametrize("after_s", [0.0, 0.05])
async def test_an_interrupt_between_release_and_arrival_finds_what_waited(cluster, after_s):
    old, _ = await two_replicas(cluster, "alice")
    Watcher(await cluster.hubs[0].view("alice"))
    await asyncio.sleep(0.3)

    async def late(request: SpeakRequest) -> SpeakRequest:
        await asyncio.sleep(0.1)
        return request

    first = asyncio.create_task(cluster.speak("alice", LONG))
    call = SpeechCall(cluster, SpeakRequest("alice", "b" * 40, deliver=False), on_move=late)
    waiting = asyncio.create_task(summary_of(call))
    await asyncio.sleep(0.3)
    cluster.list("r1")
    await first
    while old._interrupts.count("alice"):
        await asyncio.sleep(0.001)
    await asyncio.sleep(after_s)
    none = SimpleNamespace(interrupt=Method(answers_none))
    assert (await interrupt_session(cluster, none, "alice"))["interrupted"] == 1
    with pytest.raises(InterruptedSpeech):
        await waiting


async def answers_none(session_id: str) -> int:
    return 0


async def test_a_text_that_waits_at_the_old_owner_is_spoken_in_full_at_the_new_one(cluster):
    await two_replicas(cluster, "alice")
    more = asyncio.Event()

    async def writer():
        yield "The first part. "
        await more.wait()
        yield "The second part. "

    first = asyncio.create_task(cluster.speak("alice", LONG))
    Watcher(await cluster.hubs[0].view("alice"))
    await asyncio.sleep(0.2)
    stream = speak_text_stream(cluster, SpeakRequest("alice", deliver=False), writer())
    said = asyncio.create_task(summary_of(stream))
    await asyncio.sleep(0.2)
    cluster.list("r1")
    await first
    await asyncio.sleep(1.0)
    more.set()
    await said
    lines = (await cluster.replicas["r1"].session("alice"))["utterances"]
    assert [line["text"] for line in lines] == [LONG, "The first part. The second part."]


async def test_the_viewers_of_a_dead_owner_are_waited_for(cluster):
    """The next utterance may arrive before the hub has subscribed again; it must not be spoken unseen."""
    old, new = await two_replicas(cluster, "alice")
    watcher = Watcher(await cluster.hubs[0].view("alice"))
    await asyncio.sleep(1.0)
    cluster.dead.add("r0")
    cluster.list("r1")
    old._owner._reporting.cancel()
    broadcast = old._live._broadcasts["alice"]
    said = asyncio.create_task(cluster.speak("alice", "x" * 10))
    await asyncio.sleep(0.5)
    for listener in broadcast._listeners:
        listener.put_nowait(None)  # the stream of the hub breaks off
    await asyncio.sleep(1.0)
    assert new._admission.live_sessions() == {"alice": 25}
    summary = await said
    assert summary["live"]["shown_frames"] == 28 and cluster.routed[-2:] == [("speak", "r1"), ("live", "r1")]
    await asyncio.sleep(0.5)
    _, edges, mouths = watcher.seen()
    assert (mouths > 240).sum() == 28
    assert_continuous(edges)


async def test_without_a_directory_a_session_is_spoken_and_shown(cluster):
    await two_replicas(cluster, "alice")
    cluster.client.down = True
    watcher = Watcher(await cluster.hubs[0].view("alice"))
    await cluster.speak("alice", "x" * 10)
    await asyncio.sleep(0.5)
    assert (watcher.seen()[2] > 240).sum() == 28


async def test_a_new_directory_learns_where_sessions_are(cluster):
    await two_replicas(cluster, "alice")
    Watcher(await cluster.hubs[0].view("alice"))
    await cluster.replicas["r0"]._owner.take("silent")
    await asyncio.sleep(0.5)
    cluster.client.directory = SessionDirectory(lambda: time.monotonic())
    cluster.client.directory.update(cluster.listed)
    await asyncio.sleep(1.5)
    assert (cluster.owner("alice"), cluster.owner("silent")) == ("r0", "r0")


async def test_the_only_replica_keeps_its_sessions_until_there_is_another(cluster):
    old = await cluster.add("r0")
    await old.create("alice")
    Watcher(await cluster.hubs[0].view("alice"))
    cluster.list()
    await asyncio.sleep(2 * SILENT_S)
    await cluster.speak("alice", "x" * 5)
    assert cluster.routed[-1] == ("speak", "r0") and old._live.watched() == ["alice"]
    new = await cluster.add("r1")
    await asyncio.sleep(HANDED_OVER_S)
    assert (old._live.watched(), new._live.watched()) == ([], ["alice"])


async def test_a_drained_replica_holds_nothing(cluster):
    old, _ = await two_replicas(cluster, "alice", "ben")
    Watcher(await cluster.hubs[0].view("alice"))
    await cluster.speak("ben", "x" * 5)
    cluster.list("r1")
    await asyncio.sleep(HANDED_OVER_S)
    assert not old._live._broadcasts and not old._interrupts.sessions() and len(old._session_lock) == 0
    assert not old._owner._held and not old._sessions._open
