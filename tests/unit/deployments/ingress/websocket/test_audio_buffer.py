"""A recording in parts: whole with its last, bounded by itself and together with all others, and never said in half."""

import pytest

from deployments.ingress.websocket import audio_buffer as module
from deployments.ingress.websocket.audio_buffer import Recording
from models.errors import BusyError, InputError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 150)
    assert Recording.held_bytes == 0
    yield
    assert Recording.held_bytes == 0, "what nobody holds any more is still counted"


def test_its_parts_are_one_with_the_last_and_the_next_is_another():
    taken = Recording()
    assert taken.add(b"ab", last=False) is None and Recording.held_bytes == 2
    assert taken.add(b"c", last=True) == b"abc"
    assert taken.add(b"d", last=True) == b"d" and taken.add(b"", last=True) == b""


def test_what_is_too_long_is_refused_once_and_its_rest_is_not_said(monkeypatch):
    taken = Recording()
    taken.add(b"a" * 60, last=False)
    with pytest.raises(InputError, match="exceeds 0 MB"):
        taken.add(b"b" * 60, last=False)
    assert taken.add(b"c", last=False) is None and taken.add(b"d", last=True) is None
    assert taken.add(b"new", last=True) == b"new"


def test_one_that_is_too_long_with_its_last_part_takes_nothing_of_the_next_along():
    taken = Recording()
    with pytest.raises(InputError):
        taken.add(b"a" * 101, last=True)
    assert taken.add(b"new", last=True) == b"new"


def test_all_sockets_together_hold_no_more_than_the_process_may():
    one, two = Recording(), Recording()
    one.add(b"a" * 90, last=False)
    with pytest.raises(BusyError):
        two.add(b"b" * 90, last=False)
    assert two.add(b"b", last=True) is None  # half of it is no recording
    one.drop()  # its socket has gone
    assert two.add(b"b" * 90, last=True) == b"b" * 90
