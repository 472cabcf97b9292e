"""Preparing avatars over HTTP: options, progress, the uploaded file."""

from pathlib import Path

import pytest
from ray.serve.exceptions import BackPressureError

from models import errors
from tests.support.ingress import Handle, error_of
from tests.support.uploads import left_uploads


def test_progress_is_sent_line_by_line_and_the_upload_is_deleted(serve, tmp_path):
    avatars = Handle(prepare=[{"step": "finding faces", "done": 1, "total": 2}, {"report": {"frames": 2}}])
    answer = serve(avatars=avatars).post(
        "/avatars",
        params={"avatar_id": "me", "fps": 30, "bbox_shift": -3, "geometry": "box", "subpixel_enabled": "false"},
        content=b"video",
    )
    assert [line.split('"')[1] for line in answer.text.splitlines()] == ["step", "report"]
    (_, (source, avatar_id, force, options)) = avatars.calls[0]
    chosen = {key: value for key, value in options.items() if value is not None}
    assert (avatar_id, force) == ("me", False)
    assert chosen == {"fps": 30, "bbox_shift": -3, "geometry": "box", "subpixel_enabled": False}
    assert Path(source).is_relative_to(tmp_path / "results" / "uploads") and avatars.uploads == [b"video"]
    assert left_uploads() == []


@pytest.mark.parametrize("query", [{"fps": 17}, {"bbox_shift": 99}, {"extra_margin": -1}, {"smoothing": "no"}])
def test_options_out_of_range_are_refused(serve, query):
    answer = serve().post("/avatars", params={"avatar_id": "me", **query}, content=b"video")
    assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_input")


def test_an_early_error_sets_the_status_and_a_later_one_is_the_last_line(serve):
    exists = errors.ExistsError("There is one.", "Use --force.")
    avatars = Handle(prepare=[exists])
    answer = serve(avatars=avatars).post("/avatars?avatar_id=me", content=b"video")
    assert (answer.status_code, error_of(answer)["code"], avatars.streams[0].cancelled) == (409, "exists", True)
    no_face = errors.NoFaceError("No face.", "Use another video.")
    avatars = Handle(prepare=[{"step": "finding faces", "done": 1, "total": 0}, no_face])
    answer = serve(avatars=avatars).post("/avatars?avatar_id=me", content=b"video")
    assert '{"error": {"code": "no_face", "message": "No face."' in answer.text.splitlines()[-1]
    assert left_uploads() == []


def test_the_upload_is_deleted_when_no_replica_takes_the_call(serve):
    busy = BackPressureError(num_queued_requests=9, max_queued_requests=9)
    client = serve(avatars=Handle(prepare=[busy]))
    answer = client.post("/avatars?avatar_id=me", content=b"video")
    assert (answer.status_code, error_of(answer)["code"]) == (429, "busy")
    assert left_uploads() == []


def test_the_poster_is_a_jpeg(serve):
    answer = serve(avatars=Handle(poster=b"jpeg")).get("/avatars/presenter/poster.jpg")
    assert (answer.content, answer.headers["content-type"]) == (b"jpeg", "image/jpeg")
    assert serve(avatars=Handle()).get("/avatars/..A/poster.jpg").status_code == 422
