"""A recording in parts: on disk, complete with its last part, limited by itself and together with all others."""

import errno

import pytest

from configs.schema import IngressConfig
from deployments.ingress.uploads import Uploads, discard
from deployments.ingress.websocket import audio_upload as module
from deployments.ingress.websocket.audio_upload import AudioUpload
from models.errors import BusyError, DiskFullError, InputError
from tests.support.uploads import left_uploads


@pytest.fixture
def uploads(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 150)
    assert AudioUpload.held_bytes == 0
    yield Uploads(IngressConfig())
    assert AudioUpload.held_bytes == 0, "released bytes are still counted"
    assert left_uploads() == []


async def whole(upload: AudioUpload, data: bytes, **options) -> bytes:
    """The recording after its last part."""
    path = await upload.add(data, True, **options)
    content = path.read_bytes()
    discard(path)
    return content


async def test_the_parts_are_joined_with_the_last_one_and_the_next_recording_is_another(uploads):
    upload = AudioUpload(uploads)
    assert await upload.add(b"ab", False) is None and AudioUpload.held_bytes == 2
    assert await whole(upload, b"c") == b"abc"
    assert await whole(upload, b"d") == b"d" and await whole(upload, b"") == b""


async def test_raw_samples_get_a_header(uploads):
    upload = AudioUpload(uploads)
    await upload.add(b"\1\2\3", False, 8000)
    data = await whole(upload, b"\4", pcm_hz=16_000)
    assert data[:4] + data[8:12] == b"RIFFWAVE" and data[-4:] == b"\1\2\3\4"
    assert int.from_bytes(data[24:28], "little") == 16_000 and int.from_bytes(data[4:8], "little") == len(data) - 8


async def test_a_recording_that_is_too_long_is_refused_once_and_its_rest_is_dropped(uploads):
    upload = AudioUpload(uploads)
    await upload.add(b"a" * 60, False)
    with pytest.raises(InputError, match="exceeds 0 MB"):
        await upload.add(b"b" * 60, False)
    assert left_uploads() == []
    assert await upload.add(b"c", False) is None and await upload.add(b"d", True) is None
    assert await whole(upload, b"new") == b"new"


async def test_a_refused_last_part_does_not_affect_the_next_recording(uploads):
    upload = AudioUpload(uploads)
    with pytest.raises(InputError):
        await upload.add(b"a" * 101, True)
    assert await whole(upload, b"new") == b"new"


async def test_all_recordings_together_hold_no_more_than_the_limit_of_the_process(uploads):
    one, two = AudioUpload(uploads), AudioUpload(uploads)
    await one.add(b"a" * 90, False)
    with pytest.raises(BusyError):
        await two.add(b"b" * 90, False)
    assert await two.add(b"b", True) is None  # the end of a refused recording
    one.clear()  # its connection ended
    assert left_uploads() == []
    assert await whole(two, b"b" * 90) == b"b" * 90


async def test_a_full_disk_ends_the_recording_and_not_the_next_one(uploads, monkeypatch):
    upload = AudioUpload(uploads)
    await upload.add(b"a", False)

    def full(path, data):
        raise DiskFullError("The disk is full.", "")

    with monkeypatch.context() as disk:
        disk.setattr("deployments.ingress.uploads._append", full)
        with pytest.raises(DiskFullError):
            await upload.add(b"b", False)
    assert left_uploads() == [] and await upload.add(b"c", True) is None
    with monkeypatch.context() as disk:
        disk.setattr(module, "write_wav", lambda *given: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Quota")))
        with pytest.raises(DiskFullError, match="cannot be written"):
            await upload.add(b"d", True, 8000)
    assert await whole(upload, b"new") == b"new"
