"""Captions: timed as cues of the video, shown while their sentence is heard, split into readable parts."""

from __future__ import annotations

from typing import Any

import pytest

from models.media.emsg import event_box
from models.media.mp4 import box
from tests.browser.chromium import Tab
from tests.browser.fake_state import State

pytestmark = pytest.mark.browser

LONG = "It has many words, and none of them is long, so that it can be cut where a reader would breathe"

SYNC_S = 0.25  # a busy browser draws late; a caption that is timed wrongly is a second or more off
# Records when each caption was drawn (video clock and page clock), and the cues of the track.
NOTE = """() => {
  const video = document.querySelector('video'), caption = document.querySelector('#caption');
  window.drawn = [];
  new MutationObserver(() => {
    const text = caption.hidden ? '' : caption.innerText;
    if (text === (drawn.at(-1)?.text ?? '')) return;
    drawn.push({ text, videoS: video.currentTime, pageS: performance.now() / 1000 });
  }).observe(caption, { attributes: true, childList: true, characterData: true, subtree: true });
}"""
CUES = """() => [...document.querySelector('video').textTracks[0].cues]
  .map(({ text, startTime, endTime }) => ({ text, startS: startTime, endS: endTime }))"""

# Records when the audio became loud, on the page clock, per block of 128 samples (5 ms).
LISTEN = """async () => {
  const audio = new AudioContext(), code = `registerProcessor('ear', class extends AudioWorkletProcessor {
    process([[samples]]) {
      if (samples?.some((sample) => Math.abs(sample) > 0.01)) this.port.postMessage(currentTime);
      return true;
    }
  })`;
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  const ear = new AudioWorkletNode(audio, 'ear');
  window.loud = [];
  ear.port.onmessage = ({ data }) => loud.push(performance.now() / 1000 - (audio.currentTime - data));
  audio.createMediaStreamSource(document.querySelector('video').captureStream()).connect(ear);
  await audio.resume();
}"""


def test_each_caption_is_shown_while_its_sentence_is_heard(served: tuple[str, State], tab: Any) -> None:
    chat: Tab = tab(served[0], bypass_csp=True).open()  # the test injects its own audio script
    served[1].reply = "One is short. Two is a little longer than that. Three."
    chat.page.evaluate(LISTEN)
    chat.page.evaluate(NOTE)
    chat.send("Count!")
    chat.state("speaking")
    chat.state("live")
    chat.until("drawn.length && drawn.at(-1).text === ''")
    drawn, cues = chat.page.evaluate("drawn"), chat.page.evaluate(CUES)
    assert [cue["text"] for cue in cues] == ["One is short.", "Two is a little longer than that.", "Three."]
    shown = [one for one in drawn if one["text"]]
    assert [one["text"] for one in shown] == [cue["text"] for cue in cues]
    late_s = [one["videoS"] - cue["startS"] for one, cue in zip(shown, cues, strict=True)]
    assert all(-0.001 <= late <= SYNC_S for late in late_s), late_s
    assert drawn[-1]["videoS"] - cues[-1]["endS"] == pytest.approx(0, abs=SYNC_S)
    heard_s = chat.page.evaluate("loud[0]")
    assert shown[0]["pageS"] - heard_s == pytest.approx(0, abs=SYNC_S)


def test_a_caption_ends_at_an_interruption(chat: Tab, served: tuple[str, State]) -> None:
    served[1].reply = "This is a sentence that goes on and on, and on, for the sake of an interruption."
    chat.page.evaluate(NOTE)
    chat.send("Talk!")
    chat.until("drawn.length === 1")
    chat.page.wait_for_timeout(600)
    planned = chat.page.evaluate(CUES)[0]["endS"]
    chat.page.click("#interrupt")
    chat.until("drawn.length === 2")
    (cue,), (begun, ended) = chat.page.evaluate(CUES), chat.page.evaluate("drawn")
    assert cue["endS"] < planned - 2
    assert ended["text"] == "" and ended["videoS"] == pytest.approx(cue["endS"], abs=SYNC_S)
    assert 0.5 < cue["endS"] - begun["videoS"] < 2.0


def test_a_long_sentence_is_split_into_parts_of_two_lines(modules: Tab) -> None:
    words = LONG.split()
    parts = modules.page.evaluate(
        """async (words) => (await import('/web/stream-events.js')).parts({
          text: words.join(' '), start_s: 10, end_s: 14,
          words: words.map((text, k) => ({ text, start_s: 10 + k / 5 })) })""",
        words,
    )
    assert len(parts) == 2 and " ".join(part["text"] for part in parts) == " ".join(words)
    assert max(len(part["text"]) for part in parts) <= 84 and min(len(part["text"]) for part in parts) > 30
    first = len(parts[0]["text"].split())
    assert (parts[0]["start"], parts[0]["end"]) == (10, pytest.approx(10 + first / 5))
    assert (parts[1]["start"], parts[1]["end"]) == (pytest.approx(10 + first / 5), 14)
    guessed = modules.page.evaluate(
        "async (text) => (await import('/web/stream-events.js')).parts({ text, start_s: 10, end_s: 14 })",
        " ".join(words),
    )
    share = (len(guessed[0]["text"]) + 1) / len(" ".join(words))
    assert guessed[1]["start"] == pytest.approx(10 + 4 * share) and guessed[1]["end"] == 14


def test_no_part_consists_of_a_single_leftover_word(modules: Tab) -> None:
    words = [w for k in range(12) for w in ("so", "that", "nobody", "is", "misunderstood", "afterwards,", "a", "word")]
    texts = [" ".join(words[:count]) for count in range(1, len(words))]
    found = modules.page.evaluate(
        """async (texts) => {
          const { parts } = await import('/web/stream-events.js');
          return texts.map((text) => parts({ text, start_s: 0, end_s: 9 }).map((part) => part.text));
        }""",
        texts,
    )
    for text, parts in zip(texts, found, strict=True):
        assert " ".join(parts) == text and len(parts) == -(-len(text) // 80)
        sizes = [len(part) for part in parts]
        assert max(sizes) <= 90 and min(sizes) >= max(sizes) - 2 * len("misunderstood"), parts


def test_events_are_parsed_whatever_the_sizes_of_the_parts(modules: Tab) -> None:
    caption = event_box("caption", {"text": "Größe 👋"}, 1, 0.5, 1.0)
    data = box(b"moof", b"emsg") + caption + box(b"mdat", bytes(16)) + event_box("ended", {"reason": "closed"}, 2, 1.5)
    found = modules.page.evaluate(
        """async (bytes) => {
          const { EventReader } = await import('/web/stream-events.js'), data = Uint8Array.from(bytes);
          return [1, 5, 64, data.length].map((size) => {
            const reader = new EventReader(), found = [];
            for (let at = 0; at < data.length; at += size) found.push(...reader.push(data.subarray(at, at + size)));
            return found;
          });
        }""",
        list(data),
    )
    expected = [
        {"kind": "caption", "message": {"text": "Größe 👋"}},
        {"kind": "ended", "message": {"reason": "closed"}},
    ]
    assert found == [expected] * 4


def test_captions_can_be_turned_off(chat: Tab, served: tuple[str, State]) -> None:
    chat.page.click("#captions-toggle")
    chat.send("Hello.")
    chat.state("speaking")
    chat.until("document.querySelector('video').textTracks[0].activeCues.length")
    assert not chat.page.is_visible("#caption")
    chat.page.click("#captions-toggle")
    chat.until("document.querySelector('#caption').checkVisibility()")
    assert chat.page.inner_text("#caption") in served[1].reply
