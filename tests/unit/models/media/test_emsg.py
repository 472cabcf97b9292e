"""Events between the fragments of a live stream: found in data of any chunking, and ignored by players."""

import io
import struct

import av
import pytest

from models.live.timeline import ViewerTimeline, split_fragment
from models.media.emsg import SCHEME, EventReader, event_box, read_events
from tests.support.live import SPEC, fragments, levels, shown


def stream() -> tuple[bytes, bytes]:
    """A stream with events, and the same stream without them."""
    timeline, events, plain = ViewerTimeline(SPEC), b"", b""
    events += timeline.init
    plain += timeline.init
    for k, part in enumerate(split_fragment(fragments(levels(8))[0], 0, 1, True)):
        data = timeline.put(part)
        events += event_box("caption", {"text": f"Größe {k} 👋", "start_s": k * 0.16}, k, k * 0.16, 1.5) + data
        plain += data
    return events + event_box("ended", {"reason": "closed"}, 9, 0.32), plain


def test_events_are_found_in_parts_of_any_size():
    data, plain = stream()
    expected = [("caption", {"text": "Größe 0 👋", "start_s": 0.0}), ("ended", {"reason": "closed"})]
    for size in (1, 7, 100, len(data)):
        reader = EventReader()
        found = [event for at in range(0, len(data), size) for event in reader.push(data[at : at + size])]
        assert found == expected
    assert read_events(data) == expected and read_events(plain) == []


def test_an_event_is_a_box_as_dash_defines_it():
    box = event_box("caption", {}, 5, 1.25, 2.0)
    assert struct.unpack(">I4sI", box[:12]) == (len(box), b"emsg", 1 << 24)
    assert struct.unpack(">IQII", box[12:32]) == (1000, 1250, 2000, 5)
    assert box[32:] == SCHEME.encode() + b"\0caption\0{}"


def test_events_of_other_schemes_are_ignored():
    box = event_box("caption", {}, 5, 1.25).replace(b"urn:warmtalk", b"urn:somebody")
    assert read_events(box) == [] and EventReader().push(box) == []


def test_a_stream_that_is_not_an_mp4_is_refused():
    with pytest.raises(ValueError, match="not a fragmented MP4"):
        EventReader().push(b"\0\0\0\3html")


def test_a_player_sees_the_same_with_and_without_events():
    data, plain = stream()
    assert shown(data) == shown(plain)
    with av.open(io.BytesIO(data)) as file:
        assert [s.type for s in file.streams] == ["video", "audio"]
