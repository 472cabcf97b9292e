"""Sessions over HTTP: opened, interrupted, closed, reset, and spoken into while a text is being written."""

from ray.exceptions import RayTaskError

from deployments.common.messages import SpeakEvent
from models import errors
from tests.support.ingress import SUMMARY, Handle, error_of


def test_a_session_is_opened_with_or_without_an_id(serve):
    stitch = Handle(create={"session_id": "alice"})
    client = serve(stitch)
    assert client.post("/sessions", json={"session_id": "alice", "avatar_id": "ann"}).status_code == 201
    assert client.post("/sessions").status_code == 201
    (_, named), (_, unnamed) = stitch.calls
    assert named == ("alice", "ann") and len(unnamed[0]) == 32 and unnamed[1] is None
    assert error_of(client.post("/sessions", json={"session_id": "../etc"}))["code"] == "bad_id"
    assert error_of(client.post("/sessions", json={"avatar_id": "../etc"}))["code"] == "bad_id"
    assert error_of(client.post("/sessions", json={"colour": "red"}))["code"] == "bad_input"


def test_an_unknown_session_cannot_be_watched_or_interrupted(serve):
    missing = errors.SessionNotFound("There is no session 'nobody'.", "Open it.")
    stitch = Handle(live=[missing], interrupt_nowait=missing)
    client = serve(stitch, chat=Handle(interrupt=0))
    for answer in (client.get("/sessions/nobody/live.mp4"), client.post("/sessions/nobody/interrupt")):
        assert (answer.status_code, error_of(answer)["code"]) == (404, "session_not_found")
    assert error_of(client.get("/sessions/A/live.mp4"))["code"] == "bad_id"
    assert stitch.streams[0].cancelled


def test_a_chat_answer_can_be_interrupted_before_its_session_exists(serve):
    stitch = Handle(
        interrupt_nowait=errors.SessionNotFound("There is none.", "Open it."),
        interrupt={"session_id": "new", "interrupted": 0},
    )
    chat = Handle(interrupt=1)
    answer = serve(stitch, chat=chat).post("/sessions/new/interrupt")
    assert (answer.status_code, chat.calls) == (200, [("interrupt", ("new",))])
    assert [name for name, _ in stitch.calls] == ["interrupt_nowait", "interrupt"]


def test_an_interruption_that_stitch_cannot_take_is_an_error(serve):
    busy = RayTaskError("interrupt_nowait", "…", errors.BusyError("All replicas are busy.", "Wait."))
    stitch, chat = Handle(interrupt_nowait=busy), Handle(interrupt=1)
    answer = serve(stitch, chat=chat).post("/sessions/alice/interrupt")
    assert (answer.status_code, error_of(answer)["code"]) == (429, "busy") and chat.calls == []


def test_an_interruption_stops_speech_first_then_chat_then_new_speech(serve):
    order = []
    stitch = Handle(interrupt_nowait=2, interrupt={"session_id": "alice", "interrupted": 1})
    chat = Handle(interrupt=1)
    stitch.calls = chat.calls = order
    answer = serve(stitch, chat=chat).post("/sessions/alice/interrupt")
    assert answer.json() == {"session_id": "alice", "interrupted": 3}
    assert order == [("interrupt_nowait", ("alice",)), ("interrupt", ("alice",)), ("interrupt", ("alice",))]
    assert error_of(serve(stitch, chat=chat).post("/sessions/A/interrupt"))["code"] == "bad_id"


def test_a_session_is_closed(serve):
    stitch = Handle(close={"session_id": "alice", "closed": True})
    assert serve(stitch).post("/sessions/alice/close").json() == {"session_id": "alice", "closed": True}
    gone = Handle(close=errors.SessionNotFound("There is none.", "Open it."))
    assert serve(gone).post("/sessions/alice/close").status_code == 404


def test_reset_and_delete_also_delete_the_conversation(serve):
    chat = Handle(forget=None)
    client = serve(Handle(reset={"reset": True}, remove={"removed": True}), chat=chat)
    client.get("/reset?session_id=alice")
    client.delete("/sessions/bob")
    assert chat.calls == [("forget", ("alice",)), ("forget", ("bob",))]


def test_a_text_that_is_being_written_is_spoken_sentence_by_sentence(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)], feed=None)
    written = "Hello there. It is é fine".encode()
    body = (written[k : k + 3] for k in range(0, len(written), 3))  # splits the bytes of a letter
    answer = serve(stitch).post("/sessions/alice/say?voice=nova", content=body)
    assert answer.json() == SUMMARY
    assert [a[2:] for name, a in stitch.calls if name == "feed"] == [
        (["Hello there."], False),
        (["It is é fine"], False),
        ([], True),
    ]
    (request,) = next(arguments for name, arguments in stitch.calls if name == "speak")
    assert (request.session_id, request.voice, request.text) == ("alice", "nova", "") and request.text_stream_key
