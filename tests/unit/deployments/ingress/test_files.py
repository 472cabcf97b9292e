"""The files of a session over HTTP: ranges of a growing video, captions, a playlist, a download."""

from pathlib import Path

import pytest

from deployments.ingress.responses import file_range
from models.errors import SessionNotFound
from models.live.cues import Cue
from models.stitch.session import SessionFile
from models.stitch.sidecar import sidecar_path
from tests.support.ingress import Answers, Handle, error_of
from tests.support.live import SPEC, fragments, levels, shown


@pytest.fixture
def growing_file(tmp_path) -> Path:
    """A file whose first 1000 bytes are whole fragments; then comes half a fragment."""
    path = tmp_path / "video.mp4"
    path.write_bytes(bytes(k % 251 for k in range(1000)) + b"HALF" * 10)
    return path


def ranged(path: Path, wanted: str, **options):
    return file_range(path.open("rb"), 1000, "tag", {"range": wanted} if wanted else {}, **options)


async def body_of(answer) -> bytes:
    return b"".join([part async for part in answer.body_iterator]) if hasattr(answer, "body_iterator") else answer.body


@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=100-199", 100, 200),
        ("bytes=999-999", 999, 1000),
        ("bytes=900-", 900, 1000),
        ("bytes=900-5000", 900, 1000),  # the end of the whole fragments, not of the file
        ("bytes=-100", 900, 1000),
        ("bytes=-5000", 0, 1000),
        (" bytes=0-0 ", 0, 1),
    ],
)
async def test_a_range_ends_with_the_last_whole_fragment(growing_file, wanted, begin, end):
    answer = ranged(growing_file, wanted)
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/1000"
    assert answer.headers["content-length"] == str(end - begin)
    assert await body_of(answer) == growing_file.read_bytes()[begin:end]


@pytest.mark.parametrize("wanted", ["", "bytes=-", "bytes=0-1,5-6", "frames=0-9", "bytes=a-b", f"bytes={'9' * 5000}-"])
async def test_without_a_single_valid_range_the_whole_file_is_sent(growing_file, wanted):
    answer = ranged(growing_file, wanted)
    assert (answer.status_code, answer.headers["content-length"]) == (200, "1000")
    assert answer.headers["accept-ranges"] == "bytes"
    assert await body_of(answer) == growing_file.read_bytes()[:1000]


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-1010", "bytes=-0", "bytes=200-100"])
def test_a_range_after_the_end_is_416_with_the_length(growing_file, wanted):
    answer = ranged(growing_file, wanted)
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1000")


def session_of(path: Path, generation: str = "first", **options) -> Handle:
    facts = {"video_path": str(path), "size": 1000, "video_tag": f"{generation}-{path.stat().st_ino:x}"}
    return Handle(session={**facts, **options})


def test_a_sessions_video_has_the_size_that_stitch_reports(serve, growing_file):
    client = serve(session_of(growing_file))
    assert client.get("/sessions/alice/video.mp4").content == growing_file.read_bytes()[:1000]
    part = client.get("/sessions/alice/video.mp4", headers={"Range": "bytes=990-"})
    assert (part.status_code, part.content) == (206, growing_file.read_bytes()[990:1000])


def test_a_sidecar_is_sent_up_to_its_last_whole_line(serve, growing_file):
    client = serve(session_of(growing_file))
    assert client.get("/sessions/alice/sidecar.jsonl").content == b""
    sidecar_path(growing_file).write_bytes(b'{"type":"video"}\n{"type":"fra')
    answer = client.get("/sessions/alice/sidecar.jsonl")
    assert (answer.status_code, answer.content) == (200, b'{"type":"video"}\n')


def test_ranges_of_a_growing_video_have_one_tag_and_fit_together(serve, growing_file):
    first = serve(session_of(growing_file, size=600)).get("/sessions/alice/video.mp4", headers={"Range": "bytes=0-499"})
    wanted = {"Range": "bytes=500-", "If-Range": first.headers["etag"]}
    second = serve(session_of(growing_file)).get("/sessions/alice/video.mp4", headers=wanted)
    assert second.status_code == 206 and second.headers["etag"] == first.headers["etag"]
    assert first.content + second.content == growing_file.read_bytes()[:1000]


def test_a_conditional_range_of_a_video_that_was_reset_is_the_whole_new_video(serve, growing_file):
    before = serve(session_of(growing_file)).get("/sessions/alice/video.mp4").headers["etag"]
    after = serve(session_of(growing_file, "second"))
    for known in (before, "W/" + before, "Mon, 23 Nov 2026 04:00:00 GMT"):
        answer = after.get("/sessions/alice/video.mp4", headers={"Range": "bytes=500-", "If-Range": known})
        assert (answer.status_code, len(answer.content)) == (200, 1000), known
        assert answer.headers["etag"] != before


def test_if_none_match_does_not_hide_what_was_appended(serve, growing_file):
    client = serve(session_of(growing_file))
    tag = client.get("/sessions/alice/video.mp4").headers["etag"]
    again = client.get("/sessions/alice/video.mp4", headers={"If-None-Match": tag})
    assert (again.status_code, len(again.content)) == (200, 1000)


def test_head_has_the_headers_of_get(serve, growing_file):
    client = serve(session_of(growing_file))
    for wanted in ({}, {"Range": "bytes=100-199"}, {"Range": "bytes=2000-"}):
        get, head = (client.request(m, "/sessions/alice/video.mp4", headers=wanted) for m in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("etag", "content-length", "content-range", "accept-ranges", "content-type"):
            assert head.headers.get(name) == get.headers.get(name), name


def test_a_video_that_is_reset_while_it_is_opened_is_opened_again(serve, growing_file, tmp_path):
    stale = {"video_path": str(growing_file), "size": 700, "video_tag": "first-0"}  # another file's tag
    fresh = session_of(growing_file, "second").answers["session"]
    stitch = Handle(session=Answers([stale, fresh]))
    answer = serve(stitch).get("/sessions/alice/video.mp4")
    assert (len(answer.content), answer.headers["etag"]) == (1000, f'"{fresh["video_tag"]}"')
    answer = serve(Handle(session=stale)).get("/sessions/alice/video.mp4")
    assert (answer.status_code, error_of(answer)["code"]) == (429, "busy")


@pytest.fixture
def alice(tmp_path) -> SessionFile:
    """The session `alice` with 30 frames."""
    session = SessionFile(tmp_path / "results" / "sessions" / "alice", SPEC)
    session.start_utterance("Words.")
    session.add_sentence(Cue(1, "Words.", 0.1, 1.0))
    for fragment in fragments(levels(30)):
        session.append(fragment)
    session.end_utterance()
    return session


def facts(session: SessionFile) -> dict:
    return {"video_path": str(session.path), "video_tag": session.video_tag, "size": session.size}


def test_a_session_has_captions_a_playlist_and_a_download(serve, alice):
    client = serve(Handle(session=facts(alice)))
    vtt = client.get("/sessions/alice/captions.vtt")
    assert vtt.headers["content-type"].startswith("text/vtt") and "00:00:00.100 --> 00:00:01.000\nWords." in vtt.text
    playlist = client.get("/sessions/alice/index.m3u8")
    assert playlist.headers["content-type"] == "application/vnd.apple.mpegurl" and "#EXTINF:1.20000," in playlist.text
    assert vtt.headers["cache-control"] == playlist.headers["cache-control"] == "no-cache"  # they grow
    whole = client.get("/sessions/alice/download.mp4")
    assert whole.headers["content-disposition"] == 'attachment; filename="alice.mp4"'
    assert len(whole.content) == int(whole.headers["content-length"]) and whole.content[4:8] == b"ftyp"
    assert shown(whole.content)[1] == pytest.approx([20 + 4 * k for k in range(30)], abs=2)


def test_players_can_check_with_head_that_a_stream_exists(serve, alice):
    client = serve(Handle(session=facts(alice)))
    for name in ("live.mp4", "index.m3u8", "captions.vtt"):
        answer = client.head(f"/sessions/alice/{name}")
        assert (answer.status_code, answer.content) == (200, b""), name
    kinds = {"live.mp4": "video/mp4", "index.m3u8": "application/vnd.apple.mpegurl"}
    assert {name: client.head(f"/sessions/alice/{name}").headers["content-type"] for name in kinds} == kinds
    assert "content-length" not in client.head("/sessions/alice/live.mp4").headers, "it is endless"
    nobody = serve(Handle(session=SessionNotFound("There is none.", "Open it.")))
    assert [nobody.head(f"/sessions/alice/{name}").status_code for name in kinds] == [404, 404]


def test_frequent_requests_do_not_make_stitch_read_the_transcript(serve, alice):
    client = serve(stitch := Handle(session=facts(alice)))
    for name in ("video.mp4", "index.m3u8", "captions.vtt", "download.mp4", "sidecar.jsonl"):
        assert client.get(f"/sessions/alice/{name}").status_code == 200
    assert client.get("/sessions/alice").status_code == 200
    assert stitch.calls == [("session", ("alice", False))] * 5 + [("session", ("alice",))]


def test_a_download_supports_ranges(serve, alice):
    client = serve(Handle(session=facts(alice)))
    whole = client.get("/sessions/alice/download.mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    asked = {"Range": "bytes=100-199", "If-Range": whole.headers["etag"]}
    part = client.get("/sessions/alice/download.mp4", headers=asked)
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert client.head("/sessions/alice/download.mp4").headers["content-length"] == str(len(whole.content))
    then = client.get(f"/sessions/alice/download.mp4?size={alice.size}")
    assert (then.content, then.headers["etag"]) == (whole.content, whole.headers["etag"])
    wrong = client.get(f"/sessions/alice/download.mp4?size={alice.size - 1}")
    assert (wrong.status_code, error_of(wrong)["code"]) == (422, "bad_input")


def test_the_urls_of_a_playlist_are_404_after_a_reset(serve, alice):
    client = serve(Handle(session=facts(alice)))
    lines = client.get("/sessions/alice/index.m3u8").text.splitlines()
    named = next(line for line in lines if line.startswith("video.mp4?"))
    assert client.get(f"/sessions/alice/{named}").content == alice.path.read_bytes()
    gone = client.get("/sessions/alice/video.mp4?tag=0-1")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "not_found")
