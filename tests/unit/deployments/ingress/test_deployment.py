"""Speech, chat, avatars and errors over HTTP, with fake stages."""

import asyncio
import os
import time
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.testclient import TestClient

from deployments.common.errors import to_warmtalk_error
from deployments.common.messages import ChatRequest, SpeakEvent, SpeakRequest
from deployments.ingress.app import api
from models.errors import AvatarNotFound, BusyError, InputError, StageError, TextError
from tests.support.ingress import SPOKEN, SUMMARY, Handle, error_of, run_now


def test_speak_returns_the_summary(serve):
    stitch = Handle(speak=[SpeakEvent(summary=SUMMARY)])
    client = serve(stitch)
    answer = client.post("/speak", json={"text": "Hello."})
    assert (answer.status_code, answer.json()) == (200, SUMMARY)
    assert stitch.calls == [("speak", (SpeakRequest(text="Hello.", deliver=False),))]
    options = {"avatar_id": "ann", "enhance": True, "strength": 0.4, "voice": "nova", "speed": 1.5}
    assert client.post("/speak", json={"text": "Hi.", "session_id": "alice", **options}).status_code == 200
    assert stitch.calls[1] == ("speak", (SpeakRequest("alice", "Hi.", deliver=False, **options),))


def test_a_stream_is_the_fragments_and_cancels_its_call_at_the_end(serve):
    stitch = Handle(speak=SPOKEN)
    answer = serve(stitch).post("/speak", json={"text": "Hello.", "session_id": "alice", "stream": True})
    assert (answer.content, answer.headers["x-warmtalk-session"]) == (b"initonetwo", "alice")
    assert stitch.streams[0].cancelled


def test_an_error_before_the_first_fragment_sets_the_status_and_cancels_the_call(serve):
    stitch = Handle(speak=[TextError("No words.", "Send some.")])
    answer = serve(stitch).post("/speak", json={"text": "…", "stream": True})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_text")
    assert stitch.streams[0].cancelled


def test_an_utterance_without_a_summary_is_an_error(serve):
    answer = serve(Handle(speak=[])).post("/speak", json={"text": "Hello."})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "stage_failed")


def test_a_chat_message_is_passed_to_chat_which_returns_the_job(serve):
    started = {"job_id": "j1", "session_id": "alice"}
    chat = Handle(start=started, status={"status": "thinking"}, messages=({"role": "user", "content": "Hi"},))
    client = serve(chat=chat)
    options = {"avatar_id": "ann", "enhance": True, "strength": 0.4, "voice": "nova", "speed": 1.5}
    answer = client.post("/chat", json={"message": "Hi", "session_id": "alice", **options})
    assert (answer.status_code, answer.json()) == (200, started)
    (_, (request,)) = chat.calls[0]
    assert request == ChatRequest("Hi", "alice", **options)
    assert client.get("/status/j1").json() == {"status": "thinking"}
    assert client.get("/chat/alice").json() == [{"role": "user", "content": "Hi"}]


def test_a_full_chat_is_429(serve):
    answer = serve(chat=Handle(start=BusyError("Too many.", "Wait."))).post("/chat", json={"message": "Hi"})
    assert (answer.status_code, answer.headers["retry-after"], error_of(answer)["code"]) == (429, "2", "busy")


def test_voices_come_from_the_tts_engine(serve):
    voices = ({"name": "nova", "ready": True, "fetch_mb": 0.0}, {"name": "onyx", "ready": False, "fetch_mb": 7.9})
    assert serve(tts=Handle(voices=voices)).get("/voices").json() == list(voices)


def test_engines_are_listed_as_openai_models(serve):
    tts, whisper = Handle(stats={"config": {"engine": "hibari"}}), Handle(stats={"config": {"engine": "whisper"}})
    client = serve(tts=tts, recognize=whisper)
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["hibari", "whisper"]
    for model in listed["data"]:
        assert (model["object"], model["owned_by"]) == ("model", "warmtalk") and 0 <= time.time() - model[
            "created"
        ] < 60
        assert client.get(f"/v1/models/{model['id']}").json() == model
    refused = client.get("/v1/models/tts-9")
    assert refused.status_code == 404
    assert error_of(refused)["remedy"] == "Use one of hibari, whisper."
    alone = serve(tts=tts).get("/v1/models").json()
    assert [model["id"] for model in alone["data"]] == ["hibari"]


# --- removing an avatar


class Broadcast:
    """The response of a broadcast: one answer per replica."""

    def __init__(self, answers) -> None:
        self.answers = answers

    async def results_async(self, return_exceptions=False):
        assert return_exceptions
        return self.answers


class Replicas(Handle):
    """Stitch with several replicas. `broadcasts` are the calls that all of them got."""

    def __init__(self, *answers) -> None:
        super().__init__(default_avatar="presenter")
        self.broadcasts, self.replies = [], answers

    def broadcast(self, *arguments):
        self.broadcasts.append(arguments)
        return Broadcast(list(self.replies))


def test_every_stitch_replica_is_told_of_a_removed_avatar(serve):
    stitch, avatars = Replicas(["bob"], [], ["alice"]), Handle(remove=None)
    answer = serve(stitch, avatars).delete("/avatars/me")
    assert answer.json() == {"avatar_id": "me", "removed": True, "ended": ["alice", "bob"]}
    assert avatars.calls == [("remove", ("me", "presenter"))] and stitch.broadcasts == [("forget_avatar", "me")]


def test_an_avatar_is_removed_even_if_a_stitch_replica_does_not_confirm_it(serve, caplog):
    stitch = Replicas(["bob"], RuntimeError("dead"))
    assert serve(stitch, Handle(remove=None)).delete("/avatars/me").json()["ended"] == ["bob"]
    assert "a Stitch replica did not confirm it" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(AvatarNotFound("There is none.", "See."), 404), (InputError("It is built in.", "Leave it."), 422)],
)
def test_an_avatar_that_cannot_be_removed_is_an_error_and_no_replica_is_called(serve, error, status):
    stitch = Replicas([])
    answer = serve(stitch, Handle(remove=error)).delete("/avatars/me")
    assert answer.status_code == status and error_of(answer)["message"] == error.message and stitch.broadcasts == []
    assert serve(stitch, Handle()).delete("/avatars/A%20b").status_code == 422


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (AvatarNotFound("There is none.", "Prepare it."), 404, "avatar_not_found"),
        (RayTaskError("speak", "Traceback …", TextError("No words.", "Send some.")), 422, "bad_text"),
        (RayTaskError("speak", "Traceback …", KeyError("secret path /root")), 502, "stage_failed"),
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), 429, "busy"),
        (DeploymentUnavailableError(SimpleNamespace(name="Stitch", app_name="warmtalk")), 429, "busy"),
        (ValueError("secret path /root"), 502, "stage_failed"),
    ],
)
def test_every_exception_becomes_an_error_with_code_message_and_remedy(serve, raised, status, code):
    answer = serve(Handle(session=raised)).get("/sessions/alice")
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert error["remedy"] and "secret" not in answer.text and "/root" not in answer.text
    assert answer.headers.get("retry-after") == ("2" if status == 429 else None)


def test_retry_after_is_the_time_that_the_stage_expects(serve):
    busy = BusyError("The server is overloaded.", "Try again in 8 s.")
    busy.retry_after_s = 7.3
    answer = serve(Handle(session=RayTaskError("speak", "…", busy))).get("/sessions/alice")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "8")


def test_the_cause_of_a_ray_error_is_the_error():
    cause = TextError("No words.", "Send some.")
    assert to_warmtalk_error(RayTaskError("speak", "…", cause)) is cause
    assert isinstance(to_warmtalk_error(BackPressureError(num_queued_requests=1, max_queued_requests=1)), BusyError)
    assert isinstance(to_warmtalk_error(RuntimeError("bug")), StageError)


def test_unknown_paths_and_methods_are_errors_with_a_remedy(serve):
    client = serve()
    for answer, code in ((client.get("/nowhere"), "http_404"), (client.put("/speak"), "http_405")):
        error = answer.json()["error"]
        assert (error["code"], error["remedy"]) == (code, "See /docs for the available paths.")


def test_the_copy_of_the_app_that_serve_makes_follows_the_replicas_config(serve, monkeypatch):
    """serve.ingress pickles the app with its middlewares. They must not keep a copy of the settings."""
    monkeypatch.setenv("MY_KEYS", "0123456789abcdef")
    replica = serve(Handle(sessions=()), config={"max_json_kb": 1}).replica
    client = TestClient(cloudpickle.loads(cloudpickle.dumps(api)), raise_server_exceptions=False)
    assert client.get("/sessions").status_code == 200
    assert client.post("/speak", json={"text": "a" * 2000}).status_code == 413
    run_now(replica.reconfigure({"api_keys_env": "MY_KEYS"}))
    assert client.get("/sessions").status_code == 401


def test_the_health_check_calls_stitch(serve):
    assert serve(Handle(stats={})).get("/healthz").json() == {"status": "ok"}
    busy = BackPressureError(num_queued_requests=9, max_queued_requests=9)
    assert serve(Handle(stats=busy)).get("/healthz").status_code == 429


def test_the_footprint_lists_processes_and_viewers(serve):
    shown = {"pid": 7, "rss_mb": 1.5, "shared_mb": 0.5, "open_files": 2, "threads": 3, "tasks": 4}
    facts = {"stage": "Stitch", **shown, "config": {}}
    others = {name.lower(): Handle(stats=facts | {"stage": name}) for name in ("TTS", "Chat")}
    found = serve(Handle(stats=facts), **others).get("/footprint").json()
    assert found["stages"].keys() == {"Ingress", "Stitch", "Chat", "TTS"}
    assert found["stages"]["Stitch"] == shown
    here = found["stages"]["Ingress"]
    assert here["pid"] == os.getpid() and here["open_files"] > 2 and here["threads"] >= 1 and here["tasks"] >= 1
    assert (
        here["rss_mb"] > 10
        and here["rss_mb"] > here["shared_mb"]
        and found["live"] == {"hubs": 0, "viewers": 0, "dropped": 0, "late": 0}
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_stage_replica_that_goes_away_is_a_502(serve, stream):
    client = serve(Handle(speak=[asyncio.CancelledError()]))
    answer = client.post("/speak", json={"text": "Hello.", "stream": stream})
    assert answer.status_code == 502 and error_of(answer)["code"] == "stage_failed"
