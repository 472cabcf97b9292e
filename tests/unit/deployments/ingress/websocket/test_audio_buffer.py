"""A recording in parts: complete with its last part, limited by itself and together with all others."""

import pytest

from deployments.ingress.websocket import audio_buffer as module
from deployments.ingress.websocket.audio_buffer import AudioBuffer
from models.errors import BusyError, InputError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 150)
    assert AudioBuffer.held_bytes == 0
    yield
    assert AudioBuffer.held_bytes == 0, "released bytes are still counted"


def test_the_parts_are_joined_with_the_last_one_and_the_next_recording_is_another():
    buffer = AudioBuffer()
    assert buffer.add(b"ab", last=False) is None and AudioBuffer.held_bytes == 2
    assert buffer.add(b"c", last=True) == b"abc"
    assert buffer.add(b"d", last=True) == b"d" and buffer.add(b"", last=True) == b""


def test_a_recording_that_is_too_long_is_refused_once_and_its_rest_is_dropped():
    buffer = AudioBuffer()
    buffer.add(b"a" * 60, last=False)
    with pytest.raises(InputError, match="exceeds 0 MB"):
        buffer.add(b"b" * 60, last=False)
    assert buffer.add(b"c", last=False) is None and buffer.add(b"d", last=True) is None
    assert buffer.add(b"new", last=True) == b"new"


def test_a_refused_last_part_does_not_affect_the_next_recording():
    buffer = AudioBuffer()
    with pytest.raises(InputError):
        buffer.add(b"a" * 101, last=True)
    assert buffer.add(b"new", last=True) == b"new"


def test_all_buffers_together_hold_no_more_than_the_limit_of_the_process():
    one, two = AudioBuffer(), AudioBuffer()
    one.add(b"a" * 90, last=False)
    with pytest.raises(BusyError):
        two.add(b"b" * 90, last=False)
    assert two.add(b"b", last=True) is None  # the end of a refused recording
    one.clear()  # its connection ended
    assert two.add(b"b" * 90, last=True) == b"b" * 90
