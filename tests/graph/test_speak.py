"""The whole graph on a real Ray: text and recordings become video, in sessions that grow and do not mix."""

import asyncio
import concurrent.futures
import json

import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.speech.audio import decode_audio
from models.stitch.sidecar import read_sidecar
from models.tts.hibari import HibariTTS
from tests.graph.media import EMBEDDED, RATE_HZ, TONE_HZ, assert_without_gaps, clip, decode, tone, video_of, wav
from tests.graph.requests import TEXT, error_of, speak
from warmtalk.cli.profile.command import judged
from warmtalk.cli.profile.graph import Options, profile_graph
from warmtalk.cli.profile.live import profile_live
from warmtalk.cli.profile.trace import chrome_trace

pytestmark = pytest.mark.ray


KEYS = {"session_id", "avatar_id", "video_path", "video_url", "frames", "duration_s", "ttff_ms", "stages"}


def test_a_text_becomes_a_video_of_its_length(client):
    answer = speak(client, session_id="first")
    assert answer.keys() >= KEYS
    video = video_of(client, "first")
    assert video.codecs == ("h264", "aac")
    assert len(video.frames) == answer["frames"]
    assert answer["duration_s"] == pytest.approx(answer["frames"] / 25, abs=1e-3)
    assert len(video.sound) / video.rate == pytest.approx(video.duration_s, abs=0.045)  # one AAC frame is 43 ms
    assert_without_gaps(video)


def test_the_video_is_as_long_as_the_synthesised_speech(client):
    sentences = "One. Two is longer. Three? Four!"
    spoken_s = sum(speech.duration_s for speech in HibariTTS.load().speak(sentences))
    answer = speak(client, sentences, session_id="length")
    assert 0 <= answer["frames"] / 25 - spoken_s <= 0.04
    assert video_of(client, "length").duration_s == answer["frames"] / 25


def test_the_picture_is_never_black_or_still_and_the_sound_not_silent(client):
    video = video_of(client, "first")
    assert video.frames.mean(axis=(1, 2, 3)).min() > 20  # no black picture
    motion = np.abs(np.diff(video.frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    still = np.convolve(motion < 0.02, np.ones(10), "valid")
    assert still.max() < 10  # no ten frames in a row without motion
    assert np.sqrt((video.sound**2).mean()) > 0.01


def test_the_mouth_moves_while_speech_is_heard_and_more_than_in_the_source(client):
    avatar = AvatarStore(EMBEDDED / "avatars").load("presenter", latents=False)
    video = video_of(client, "first")
    shown = ping_pong(0, len(video.frames), len(avatar))
    lips = avatar.landmarks[:, 48:].reshape(-1, 2)  # px of the frame
    (left, top), (right, bottom) = lips.min(0).astype(int) - 4, lips.max(0).astype(int) + 5
    mouth = video.frames[:, top:bottom, left:right].astype(np.int16)
    source = np.stack([avatar.frames[k][top:bottom, left:right] for k in shown.tolist()]).astype(np.int16)
    own, sources = (np.abs(np.diff(part, axis=0)).mean(axis=(1, 2, 3)) for part in (mouth, source))
    sound = video.sound[: len(video.sound) // 960 * 960].reshape(-1, 960)  # one row per frame: 24 kHz, 25 fps
    heard = np.sqrt((sound[: len(own)] ** 2).mean(1)) > 0.02
    assert heard.sum() > 25
    assert own[heard].mean() > 3 * sources[: len(own)][heard].mean() + 0.5
    for k in range(len(own) - 10):
        if heard[k : k + 10].all():  # 0.4 s of speech without a pause
            assert own[k : k + 10].max() > 2.0, k


def calls_of(session_id: str, text: str, **options) -> list[dict]:
    """Every call of every stage that an utterance made."""
    from ray import serve

    handle = serve.get_deployment_handle("Stitch", "warmtalk").options(stream=True, session_id=session_id)
    events = handle.speak.remote(SpeakRequest(session_id, text, deliver=False, calls=True, **options))
    return next(event.summary for event in events if event.summary)["calls"]


def test_queue_transfer_and_compute_account_for_the_wall_time_of_each_call(client, graph):
    calls = calls_of("split-calls", "Two words.", enhance=True)
    assert {call["stage"] for call in calls} == {"TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch"}
    for call in calls:
        parts_ms = call["queue_ms"] + call["transfer_ms"] + call["compute_ms"]
        assert min(call["queue_ms"], call["transfer_ms"], call["compute_ms"]) >= 0, call
        assert abs(parts_ms - call["wall_ms"]) <= max(0.1 * call["wall_ms"], 1.0), call


def test_a_profile_measures_sessions_and_stages_and_traces_an_utterance(graph, monkeypatch):
    monkeypatch.setattr("warmtalk.cli.profile.graph.SENTENCES", ("Two words.",))
    monkeypatch.setattr("warmtalk.cli.profile.driving.DRIVE_S", 0.2)
    options = Options(repeats=1, enhance=False, sizes=(2,), sessions=(2,), stage="LipSync")
    profile = asyncio.run(profile_graph(options))
    rows = judged({"format": 1, "mode": "graph", **profile.to_dict()})["stages"]
    assert rows.keys() == {"TTS", "AudioFeatures", "LipSync", "Stitch"}
    for row in rows.values():
        assert 0 < row["compute_ms"]["p50"] <= row["compute_ms"]["p95"] <= row["compute_ms"]["p99"]
        assert row["memory"]["rss_mb"] > 50 and row["start_s"] > 0 and row["replicas"] == 1
    assert rows["LipSync"]["frames_per_s"]["2"] > 1 and not rows["TTS"]["frames_per_s"]
    assert profile.sessions["2"]["ttff_ms"]["p50"] > 0 and profile.sessions["2"]["frames_per_s"] > 1
    trace = chrome_trace(profile.trace)
    names = [event["args"]["name"].split()[0] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == ["TTS", "AudioFeatures", "LipSync", "Stitch"] and trace["otherData"]["request_id"]


def test_a_profile_of_a_running_server_reads_what_it_recorded_and_speaks_nothing(client, graph):
    speak(client, "Two words.", session_id="recorded-calls")
    before = client.get("/sessions").json()
    rows = profile_live(graph.url, 0.0)
    assert rows["LipSync"]["calls"] >= 1 and rows["LipSync"]["compute_ms"]["p50"] > 0
    assert rows["LipSync"]["transfer_ms"]["p50"] > 0 and rows["Stitch"]["memory"]["rss_mb"] > 50
    assert client.get("/sessions").json() == before


def test_the_answer_lists_the_time_of_every_stage(client):
    answer = speak(client, "Two words.", session_id="split", enhance=True)
    stages = answer["stages"]
    assert stages.keys() == {"TTS", "AudioFeatures", "LipSync", "Enhance", "Stitch"}
    assert all(row["compute_ms"] > 0 for row in stages.values())
    assert stages["LipSync"]["frames"] == stages["Enhance"]["frames"] == answer["frames"]


def test_without_enhancement_the_stage_is_not_called(client):
    assert "Enhance" not in speak(client, "Plain.", session_id="plain", enhance=False)["stages"]


def test_a_stream_plays_from_its_first_bytes_and_starts_at_zero(client):
    parts = []
    with client.stream("POST", "/speak", json={"text": TEXT, "session_id": "first", "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "video/mp4"
        parts = list(answer.iter_raw())
    assert len(parts) > 4  # it came in several parts
    video = decode(b"".join(parts))
    assert video.times[0] == pytest.approx(0.0, abs=0.045)
    head = decode(b"".join(parts[: len(parts) // 2]))
    assert len(head.frames) >= 4  # every prefix is a playable video
    np.testing.assert_array_equal(head.frames, video.frames[: len(head.frames)])


def test_a_session_grows_and_its_head_motion_goes_on(client):
    one = speak(client, "First part.", session_id="grows")
    two = speak(client, "Second part.", session_id="grows")
    video = video_of(client, "grows")
    assert len(video.frames) == one["frames"] + two["frames"]
    assert_without_gaps(video)
    facts = client.get("/sessions/grows").json()
    assert [line["text"] for line in facts["utterances"]] == ["First part.", "Second part."]
    hair = video.frames[:, :80].astype(np.int16)
    steps = np.abs(np.diff(hair, axis=0)).mean(axis=(1, 2, 3))
    assert steps[one["frames"] - 1] < 3 * np.median(steps) + 1  # no jump of the head at the join


def test_two_sessions_at_once_do_not_mix_and_share_unet_calls(client, graph):
    from ray import serve

    texts = {"alice": "Alice says a short sentence here.", "bob": "Bob talks about something else, and for longer."}
    alone = {name: speak(client, text, session_id=f"{name}-alone")["frames"] for name, text in texts.items()}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda name: speak(client, texts[name], session_id=name), texts))
    assert {answer["session_id"]: answer["frames"] for answer in both} == alone
    for name in texts:
        apart, together = video_of(client, f"{name}-alone"), video_of(client, name)
        np.testing.assert_allclose(together.sound, apart.sound, atol=1e-4)
        difference = np.abs(together.frames.astype(np.int16) - apart.frames).mean()
        assert difference < 0.5, name
    stats = serve.get_deployment_handle("LipSync", "warmtalk").stats.remote().result()
    assert stats["shared_batches"] > 0


def test_a_recording_drives_the_face(client):
    answer = client.post("/speak/audio", params={"session_id": "recorded"}, content=wav(1.5))
    assert answer.status_code == 200, answer.text
    assert answer.json()["frames"] == 38  # 1.5 s are 37.5 frames
    assert "TTS" not in answer.json()["stages"]
    sound = video_of(client, "recorded").sound
    spectrum = np.abs(np.fft.rfft(sound[4000:28000]))
    assert np.argmax(spectrum) * 24_000 / 24_000 == pytest.approx(TONE_HZ, abs=2)


def test_a_recording_may_be_compressed(client):
    """models/speech/audio.py decodes it, whose unit tests have the other formats."""
    data = tone(1.2, "opus")
    decoded_s = len(decode_audio(data)[0]) / decode_audio(data)[1]
    answer = client.post("/speak/audio", params={"session_id": "rec-opus"}, content=data)
    assert answer.status_code == 200, answer.text
    assert 0 <= answer.json()["frames"] / 25 - decoded_s <= 0.04 and decoded_s == pytest.approx(1.2, abs=0.1)
    heard = video_of(client, "rec-opus").sound[2400 : 2400 + RATE_HZ // 2]
    assert np.argmax(np.abs(np.fft.rfft(heard))) * 2 == pytest.approx(TONE_HZ, abs=4)  # bins of 2 Hz


def test_the_video_serves_ranges(client):
    whole = client.get("/sessions/first/video.mp4").content
    part = client.get("/sessions/first/video.mp4", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]


def test_ranges_stay_valid_while_a_session_grows_and_end_with_a_reset(client):
    url = "/sessions/ranged/video.mp4"
    speak(client, "One.", session_id="ranged")
    head = client.head(url)
    first = client.get(url, headers={"Range": "bytes=0-999"})
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])
    assert first.headers["content-range"].endswith("/" + head.headers["content-length"])
    wanted = {"Range": "bytes=1000-", "If-Range": head.headers["etag"]}
    speak(client, "Two.", session_id="ranged")
    grown = client.get(url, headers=wanted)
    assert grown.status_code == 206 and len(grown.content) > int(head.headers["content-length"]) - 1000
    decode(first.content + grown.content)
    client.get("/reset", params={"session_id": "ranged"})
    speak(client, "Three.", session_id="ranged")
    after = client.get(url, headers=wanted)
    assert after.status_code == 200 and after.headers["etag"] != head.headers["etag"]
    assert len(decode(after.content).frames) == client.get("/sessions/ranged").json()["frames"]


def test_reset_empties_a_session(client):
    speak(client, "Forget this.", session_id="fresh")
    assert client.get("/reset", params={"session_id": "fresh"}).json() == {"session_id": "fresh", "reset": True}
    answer = speak(client, "Start again.", session_id="fresh")
    assert len(video_of(client, "fresh").frames) == answer["frames"]


def test_the_sidecar_lists_engines_avatar_frames_and_phonemes(client, tmp_path):
    answer = speak(client, "My map.", session_id="described")
    (tmp_path / "x.sidecar.jsonl").write_bytes(client.get("/sessions/described/sidecar.jsonl").content)
    known = read_sidecar(tmp_path / "x.sidecar.jsonl", answer["frames"])
    assert known.known.all() and 0.5 < known.mouth.max() <= 1
    assert known.avatar_frames.tolist() == ping_pong(0, answer["frames"], 150).tolist()
    (said,) = known.utterances
    assert said.engines == {"TTS": "hibari", "AudioFeatures": "models/embedded/whisper", "LipSync": "openvino"}
    assert [phoneme.symbol for phoneme in known.phonemes].count("m") == 2


def test_a_deleted_session_is_gone(client):
    speak(client, "Forget me.", session_id="deleted")
    assert client.delete("/sessions/deleted").json() == {"session_id": "deleted", "removed": True}
    assert client.get("/sessions/deleted").status_code == 404
    assert "deleted" not in client.get("/sessions").json()
    assert client.delete("/sessions/deleted").json()["removed"] is False


def test_without_a_session_id_there_is_the_default_one(client):
    answer = speak(client, "Hello.")
    assert answer["session_id"] == "default"
    assert answer["video_path"].endswith("full_session.mp4")


def test_avatars_are_listed(client):
    avatars = client.get("/avatars").json()
    assert "presenter" in [facts["avatar_id"] for facts in avatars]


def test_an_uploaded_video_becomes_an_avatar_that_speaks(client):
    answer = client.post("/avatars", params={"avatar_id": "uploaded"}, content=clip(6))
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[-1]["report"]["frames"] == 6
    assert {event["step"] for event in events[:-1]} and events[0]["total"] == 6
    said = speak(client, "Hello.", session_id="with-upload", avatar_id="uploaded")
    assert (said["avatar_id"], len(video_of(client, "with-upload").frames)) == ("uploaded", said["frames"])
    again = client.post("/avatars", params={"avatar_id": "uploaded"}, content=clip(6))
    assert (again.status_code, error_of(again)["code"]) == (409, "exists")
    other = client.post("/speak", json={"text": "Hi.", "session_id": "with-upload", "avatar_id": "presenter"})
    assert (other.status_code, error_of(other)["code"]) == (422, "bad_input")


def test_a_removed_avatar_closes_its_sessions_and_keeps_their_recordings(client):
    client.post("/avatars", params={"avatar_id": "leaving"}, content=clip(4))
    said = speak(client, "Hello.", session_id="with-leaving", avatar_id="leaving")
    with client.stream("GET", "/sessions/with-leaving/live.mp4") as live:
        parts = live.iter_bytes()
        assert next(parts)
        answer = client.delete("/avatars/leaving")
        assert answer.json() == {"avatar_id": "leaving", "removed": True, "ended": ["with-leaving"]}
        assert b"closed" in b"".join(parts)  # it ends with the reason
    again = client.post("/speak", json={"text": "Hi.", "session_id": "with-leaving"})
    assert (again.status_code, error_of(again)["code"]) == (409, "session_closed")
    assert "'leaving'" in error_of(again)["message"] and "was removed" in error_of(again)["message"]
    other = client.post("/speak", json={"text": "Hi.", "session_id": "after-leaving", "avatar_id": "leaving"})
    assert (other.status_code, error_of(other)["code"]) == (404, "avatar_not_found")
    assert client.delete("/avatars/leaving").status_code == client.get("/avatars/leaving/poster.jpg").status_code == 404
    assert "leaving" not in [facts["avatar_id"] for facts in client.get("/avatars").json()]
    assert len(video_of(client, "with-leaving").frames) == said["frames"]
    kept = client.delete("/avatars/presenter")
    assert kept.status_code == 422 and "is part of WarmTalk" in error_of(kept)["message"]


def test_an_avatar_prepared_at_30_fps_speaks_at_30_fps(client):
    answer = client.post("/avatars", params={"avatar_id": "thirty", "fps": 30}, content=clip(5))
    assert json.loads(answer.text.splitlines()[-1])["report"]["frames"] == 6  # 0.2 s
    said = speak(client, "Hello there.", session_id="at-30", avatar_id="thirty")
    video = video_of(client, "at-30")
    assert len(video.frames) == said["frames"] == said["stages"]["LipSync"]["frames"]
    assert_without_gaps(video, fps=30)
    spoken_s = sum(speech.duration_s for speech in HibariTTS.load().speak("Hello there."))
    assert 0 <= said["duration_s"] - spoken_s <= 1 / 30 + 1e-3
    assert len(video.sound) / video.rate == pytest.approx(said["frames"] / 30, abs=0.045)


def test_docs_and_health(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/docs").status_code == 200
    assert "/speak" in client.get("/openapi.json").json()["paths"]
