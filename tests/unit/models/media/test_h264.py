"""Sessions of a graphics card's encoder can be continued without the card. x264 with other settings plays the card."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from models.errors import ConfigError
from models.media import h264
from models.media.encode import MediaSpec, UtteranceEncoder, init_segment
from models.media.h264 import choose_encoder, parameter_sets, with_encoder
from models.media.mp4 import PPS, SPS, nal_units
from models.stitch.session import SessionFile

SPEC = MediaSpec(64, 64, 25)
CARD = "h264_nvenc"


class Card:
    """Opens x264 in the High profile in place of the card's encoder."""

    def __init__(self) -> None:
        self.present, self.opened, self.references, self.params = True, 0, 1, ""

    def __call__(self, spec: MediaSpec, name: str) -> object:
        if name != CARD:
            raise ValueError(name)
        if not self.present:
            raise av.FFmpegError(1, "No such device", CARD)
        self.opened += 1
        params = f"keyint=infinite:scenecut=0:bframes=0:ref={self.references}{self.params}"
        options = {"preset": "medium", "tune": "zerolatency", "forced-idr": "1", "x264-params": params}
        return h264._opened(h264.X264, spec, options)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    made = Card()
    monkeypatch.setattr(h264, "_open_hardware", made)
    monkeypatch.setattr(h264, "_refusals", {})
    for cached in (h264._card_spec, with_encoder, init_segment):
        cached.cache_clear()
    yield made
    for cached in (h264._card_spec, with_encoder, init_segment):
        cached.cache_clear()


def speak(session: SessionFile, level: int) -> None:
    frames = np.full((9, 64, 64, 3), level, np.uint8)
    for fragment in UtteranceEncoder(session.spec, session.clock).push(frames, np.zeros(9 * 960, np.float32), True):
        session.append(fragment)


def levels(data: bytes) -> list[int]:
    with av.open(io.BytesIO(data)) as file:
        return [round(float(frame.to_ndarray(format="gray").mean())) for frame in file.decode(video=0)]


def test_auto_takes_x264_and_says_why_where_there_is_no_card() -> None:
    name, reason = choose_encoder("auto")
    if name != "libx264":
        pytest.skip(f"this machine has {name}")
    assert "h264_nvenc" in reason
    with pytest.raises(ConfigError, match="h264_nvenc cannot be used.*num_gpus"):
        choose_encoder(CARD)
    assert choose_encoder("libx264")[0] == "libx264"


def test_auto_takes_a_card_that_encodes(card: Card) -> None:
    assert choose_encoder("auto")[0] == choose_encoder(CARD)[0] == CARD
    assert card.opened == 1  # probed once


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What would run on other threads."""
    started = list[Callable[[], None]]()

    class Thread:
        def __init__(self, target: Callable[..., None], args: tuple[str, ...], name: str, daemon: bool) -> None:
            self.start = lambda: started.append(lambda: target(*args))

    monkeypatch.setattr(h264.threading, "Thread", Thread)
    return started


def test_a_busy_card_is_tried_again_after_a_minute_while_nobody_waits(
    card: Card, monkeypatch: pytest.MonkeyPatch, background: list[Callable[[], None]]
) -> None:
    now = 1000.0
    monkeypatch.setattr(h264, "_now_s", lambda: now)
    card.present = False
    chosen = []
    for step_s in (0, 50, 20, 0):
        now += step_s
        chosen.append((choose_encoder("auto")[0], with_encoder(SPEC, CARD).encoder))
        card.present = True
    assert chosen == [("libx264", "libx264")] * 2 + [("libx264", CARD)] * 2 and card.opened == 1  # by with_encoder
    (probe_again,) = background
    probe_again()
    assert choose_encoder("auto")[0] == CARD


def test_a_machine_that_can_never_encode_so_is_not_tried_again(
    card: Card, monkeypatch: pytest.MonkeyPatch, background: list[Callable[[], None]]
) -> None:
    now = 1000.0
    monkeypatch.setattr(h264, "_now_s", lambda: now)
    monkeypatch.setattr(
        Card, "__call__", lambda *_: (_ for _ in ()).throw(av.FFmpegError(1, "unsupported device", CARD))
    )
    for _ in range(3):
        assert choose_encoder("auto")[0] == "libx264"
        now += 100
    assert background == []


def test_a_card_that_makes_other_keyframes_than_it_should_is_not_taken(card: Card) -> None:
    card.params = ":keyint=2"
    name, reason = choose_encoder("auto")
    assert name == "libx264" and "made 6 frames, keyframes [0, 2" in reason


def test_a_session_of_a_card_goes_on_without_it(card: Card, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = with_encoder(SPEC, CARD)
    assert spec.encoder == CARD and spec != SPEC
    session = SessionFile(tmp_path / "s", spec)
    speak(session, 60)
    made_by_card = session.size
    # 1. another replica, without the card: it reads the spec from the session's folder
    card.present = False
    init_segment.cache_clear()
    other = SessionFile(tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        speak(other, 200)
    assert "continues with libx264" in caplog.text
    # 2. a third one with the card again, and one whose driver makes other parameter sets
    card.present = True
    speak(SessionFile(tmp_path / "s"), 120)
    card.references = 4
    speak(SessionFile(tmp_path / "s"), 30)
    data = other.path.read_bytes()
    assert made_by_card < len(data) and data.startswith(init_segment(spec))
    assert levels(data) == pytest.approx([60] * 9 + [200] * 9 + [120] * 9 + [30] * 9, abs=1)
    joined = init_segment(spec) + data[made_by_card:]  # of a viewer who joins where x264 goes on
    assert levels(joined)[:9] == pytest.approx([200] * 9, abs=1)


def test_the_init_segment_has_the_parameter_sets_of_both_encoders_under_two_ids(card: Card) -> None:
    spec = with_encoder(SPEC, CARD)
    units = nal_units(parameter_sets(spec))
    assert [unit[0] & 31 for unit in units] == [SPS, PPS, SPS, PPS]
    assert [unit[1] for unit in units if unit[0] & 31 == SPS] == [100, 66]  # High of the card, Baseline of x264
    assert [unit[1] >> 7 for unit in units if unit[0] & 31 == PPS] == [1, 0]  # id 0 is coded as 1, id 1 as 010


def test_a_size_that_the_card_rejects_is_encoded_by_x264(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.present = False
    with caplog.at_level(logging.WARNING):
        assert with_encoder(SPEC, CARD) == SPEC
    assert "64×64 px use libx264" in caplog.text
