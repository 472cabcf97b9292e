"""Recorded sessions in real players: hls.js, Chromium and FFmpeg's library, over the ingress's routes.

Every frame shows its number and every utterance has a pitch (recorded.py), so what a player shows and sounds is known.
"""

from __future__ import annotations

import hashlib
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from models.stitch.session import SessionFile
from tests.browser.recorded import BLOCK, FPS, FRAMES, LEAD_FRAMES, RATE, SPEC, pitch_hz, recorded_server, say

pytestmark = pytest.mark.browser

HLS = Path(__file__).parent / "vendor" / "hls.light.min.js"
UTTERANCES = 200
LONG_FRAMES = UTTERANCES * FRAMES

HELPERS = f"""
window.video = document.querySelector('video');
const context = new OffscreenCanvas(64, 64).getContext('2d', {{ willReadFrequently: true }});
window.shown = () => {{
  context.drawImage(video, 0, 0);
  const {{ data }} = context.getImageData(0, 0, 64, 64);
  const middle = (block) => block * {BLOCK} + {BLOCK} / 2;
  const bit = (k) => data[4 * (64 * middle(Math.floor(k / 4)) + middle(k % 4))] > 128;
  return Array.from({{ length: 16 }}, (_, k) => bit(k) << k).reduce((sum, value) => sum + value, 0);
}};
window.happens = (target, name) => new Promise((resolve, reject) => {{
  target.addEventListener(name, resolve, {{ once: true }});
  video.addEventListener('error', () => reject(new Error(video.error.message)), {{ once: true }});
}});
window.load = async (src) => {{
  video.src = src;
  await happens(video, 'loadeddata');
  return video.duration;
}};
window.seek = async (frame) => {{
  const painted = new Promise((resolve) => video.requestVideoFrameCallback(resolve)); // `seeked` may come before it
  video.currentTime = (frame + 0.5) / {FPS};
  await happens(video, 'seeked');
  await Promise.race([painted, new Promise((resolve) => setTimeout(resolve, 2000))]);
  return shown();
}};
window.decoded = () => video.getVideoPlaybackQuality().totalVideoFrames;
"""

# play from a frame; returns the strongest pitch in windows of 85 ms
LISTEN = """
async ([frame, seconds]) => {
  const audio = window.audio ??= new AudioContext({ sampleRate: 48000 });
  if (!window.analyser) {
    window.analyser = audio.createAnalyser();
    analyser.fftSize = 4096;
    analyser.smoothingTimeConstant = 0;
    audio.createMediaElementSource(video).connect(analyser).connect(audio.destination);
  }
  await audio.resume();
  await seek(frame);
  const pitches = [], bins = new Float32Array(analyser.frequencyBinCount);
  await video.play();
  for (const end = video.currentTime + seconds; video.currentTime < end && !video.ended; ) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    analyser.getFloatFrequencyData(bins);
    const best = bins.reduce((at, value, k) => (value > bins[at] ? k : at), 0);
    if (bins[best] > -50) pitches.push((best * audio.sampleRate) / analyser.fftSize);
  }
  video.pause();
  return pitches;
}
"""

# decode the whole file in Chromium; returns where each tone begins, seconds
ONSETS = """
async ([src, rate, from, step]) => {
  const bytes = await (await fetch(src)).arrayBuffer();
  const sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  const samples = sound.getChannelData(0), onsets = [];
  for (let at = 0; at + step * rate <= samples.length + rate * 0.1; at += step * rate) {
    let k = Math.round(at);
    while (k < samples.length && Math.abs(samples[k]) < 0.1) k++;
    onsets.push(k / rate);
  }
  return { onsets, seconds: sound.duration };
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with recorded_server(tmp_path_factory.mktemp("home")) as running:
        yield running


def session(server: tuple[str, Path], name: str, utterances: int) -> SessionFile:
    """Does not sync the disk, which would take most of the time."""
    made = SessionFile(server[1] / name, SPEC, sync="never")
    for _ in range(utterances):
        say(made)
    return made


@pytest.fixture(scope="module")
def long(server: tuple[str, Path]) -> SessionFile:
    made = session(server, "long", UTTERANCES)
    made.finish()
    return made


@pytest.fixture
def player(server: tuple[str, Path], tab: Callable[..., Any]) -> Any:
    """A page with only a `<video>` element and the helpers above."""
    opened = tab(f"{server[0]}/player")
    body = "<!doctype html><title>player</title><video muted playsinline></video>"
    opened.page.route("**/player", lambda route: route.fulfill(body=body, content_type="text/html"))
    opened.open(live=False).page.evaluate(HELPERS)
    return opened


def seeks(player: Any, frames: list[int]) -> list[int]:
    return [player.page.evaluate("seek", frame) for frame in frames]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), answer.headers


# --- the files


@pytest.mark.parametrize("name", ["video.mp4", "download.mp4"])
def test_a_session_of_200_utterances_plays_and_seeks_in_chromium(server, long, player, name):
    assert player.page.evaluate("load", f"{server[0]}/sessions/long/{name}") == pytest.approx(LONG_FRAMES / FPS)
    places = [LONG_FRAMES - 1, 0, 1200, LONG_FRAMES - 5, 1199, 3, 2111, LONG_FRAMES - 2]
    assert seeks(player, places) == places
    player.page.evaluate(f"seek({LONG_FRAMES - 25}).then(() => video.play())")
    player.until("video.ended", 10)
    assert player.page.evaluate("shown()") == LONG_FRAMES - 1 and player.page_errors == []


@pytest.mark.parametrize("name", ["video.mp4", "download.mp4"])
def test_after_a_seek_the_sound_matches_the_position(server, long, player, name):
    player.page.evaluate("load", f"{server[0]}/sessions/long/{name}")
    player.page.evaluate("video.muted = false")
    for utterance in (196, 2, 120):
        heard = player.page.evaluate(LISTEN, [utterance * FRAMES, (FRAMES - 1) / FPS])
        assert np.median(heard) == pytest.approx(pitch_hz(utterance), abs=15), (utterance, heard)


def test_after_200_utterances_audio_and_video_are_in_sync_within_a_frame(server, long, player):
    url = f"{server[0]}/sessions/long/video.mp4"
    player.page.evaluate("load", url)
    found = player.page.evaluate(ONSETS, [url, RATE, 0, FRAMES / FPS])
    spoken = [k * FRAMES + LEAD_FRAMES for k in range(UTTERANCES)]
    assert seeks(player, spoken[-3:]) == spoken[-3:]  # the frame at the tone is the one shown
    apart = np.array(found["onsets"][:UTTERANCES]) - np.array(spoken) / FPS
    assert np.abs(apart).max() < 0.5 / FPS and abs(apart[-10:].mean() - apart[:10].mean()) < 0.002


@pytest.mark.parametrize("name", ["video.mp4", "download.mp4", "index.m3u8"])
def test_pyav_decodes_the_file_over_http_and_seeks(server, long, name):
    with av.open(f"{server[0]}/sessions/long/{name}") as file:
        frames = [frame.to_ndarray(format="gray") for frame in file.decode(video=0)]
    assert [number(frame) for frame in frames] == list(range(LONG_FRAMES))
    with av.open(f"{server[0]}/sessions/long/{name}") as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
        assert samples / RATE == pytest.approx(LONG_FRAMES / FPS, abs=1024 / RATE)
        for wanted in (LONG_FRAMES - 5, 1203):
            file.seek(int(wanted / FPS * av.time_base))
            frame = next(frame for frame in file.decode(video=0) if frame.time >= wanted / FPS - 1e-3)
            assert number(frame.to_ndarray(format="gray")) == wanted


def number(frame: Any) -> int:
    bits = frame[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].ravel() > 128
    return int(sum(1 << k for k in range(16) if bits[k]))


# --- HLS


def hls(player: Any, server: tuple[str, Path], name: str) -> None:
    """Play a session's playlist with hls.js; its errors are in `errors`."""
    player.page.add_script_tag(path=HLS)
    player.page.evaluate(
        """(src) => {
          Object.assign(window, { errors: [], levels: [], fragments: 0 });
          const hls = (window.hls = new Hls({ enableWorker: false }));
          hls.on(Hls.Events.ERROR, (_, { details, fatal, error }) => errors.push([details, fatal, String(error)]));
          hls.on(Hls.Events.LEVEL_UPDATED, (_, { details }) => levels.push([details.live, details.totalduration]));
          hls.on(Hls.Events.FRAG_BUFFERED, () => fragments++);
          hls.loadSource(src);
          hls.attachMedia(video);
        }""",
        f"{server[0]}/sessions/{name}/index.m3u8",
    )


def player_errors(player: Any) -> list[Any]:
    """Errors of hls.js, except requests aborted by a seek."""
    return [error for error in player.page.evaluate("errors") if error[1] or error[0] != "aborted"]


def test_the_vendored_hls_js_has_the_documented_version():
    note = (HLS.parent / "README.md").read_text()
    assert hashlib.sha256(HLS.read_bytes()).hexdigest() in note
    assert re.search(r"hls\.js (\d+\.\d+\.\d+)", note).group(1) in HLS.read_text()


def test_hls_js_plays_a_closed_session_from_start_to_end_and_seeks(server, player):
    made = session(server, "closed", 8)
    made.finish()
    hls(player, server, "closed")
    player.until("video.readyState >= 2")
    assert player.page.evaluate("hls.levels[0].details.live") is False
    assert player.page.evaluate("video.duration") == pytest.approx(8 * FRAMES / FPS, abs=0.05)
    assert player.page.evaluate("video.currentTime") == pytest.approx(0, abs=0.05)
    places = [80, 5, 41, 8 * FRAMES - 1, 0]
    assert seeks(player, places) == places
    before = player.page.evaluate("decoded()")
    player.page.evaluate("() => { video.playbackRate = 2; return video.play(); }")
    player.until("video.ended", 15)
    assert player.page.evaluate("decoded()") - before > 0.7 * 8 * FRAMES  # a loaded machine drops frames
    assert player.page.evaluate("shown()") == 8 * FRAMES - 1
    assert player_errors(player) == []


def test_hls_js_follows_a_growing_session_until_it_is_closed(server, player):
    made = session(server, "growing", 4)
    hls(player, server, "growing")
    player.until("video.readyState >= 2")
    player.page.evaluate("() => { video.currentTime = 0; return video.play(); }")
    assert player.page.evaluate("hls.levels[0].details.live") is True

    def grow() -> None:
        for _ in range(2):
            say(made)
            say(made, seconds=2.4)

    writer = threading.Thread(target=grow)
    writer.start()
    whole = 4 * FRAMES + 2 * (FRAMES + 60)
    player.until(f"video.currentTime > {4 * FRAMES / FPS + 0.5}", 20)  # into media that did not exist at the start
    writer.join()
    made.finish()
    player.page.evaluate("video.playbackRate = 2")
    player.until("hls.levels[0].details.live === false", 20)
    player.until("video.ended", 20)
    assert made.frames == whole and player.page.evaluate("shown()") == whole - 1
    assert player.page.evaluate("video.duration") == pytest.approx(whole / FPS, abs=0.05)
    assert player_errors(player) == []
    playlist = get(f"{server[0]}/sessions/growing/index.m3u8")[0].decode()
    assert player.page.evaluate("fragments") == playlist.count("#EXTINF")


def test_hls_js_waits_for_an_empty_session(server, player):
    made = session(server, "empty", 0)
    hls(player, server, "empty")
    player.page.wait_for_timeout(500)
    say(made, seconds=2.4)
    player.until("video.readyState >= 2", 20)
    assert {(name, fatal) for name, fatal, _ in player.page.evaluate("errors")} == {("levelEmptyError", False)}


def test_ranges_of_a_reset_session_are_refused(server):
    made = session(server, "reset", 2)
    playlist = get(f"{server[0]}/sessions/reset/index.m3u8")[0].decode()
    address = f"{server[0]}/sessions/reset/{playlist.splitlines()[-1]}"
    assert get(address)[0] == made.path.read_bytes()
    made.reset()
    say(made)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(address)
    again = get(f"{server[0]}/sessions/reset/index.m3u8")[0].decode()
    assert get(f"{server[0]}/sessions/reset/{again.splitlines()[-1]}")[0] == made.path.read_bytes()
