"""The machine's Chromium, driven by Playwright. Tests are skipped if there is none that plays H.264."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.paths import ROOT

SHOTS = ROOT / "out" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",  # containers run as root
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",  # a fake microphone that beeps
    "--disable-dev-shm-usage",
)
DESKTOP = {
    "viewport": {"width": 1280, "height": 800},
    "reduced_motion": "reduce",
}  # animations cost half of the GPU time
MOUTH = (222 / 512, 300 / 512, 68 / 512, 52 / 512)  # x, y, width, height as shares of the presenter's frame
LIVE = "document.querySelector('#screen').dataset.state === 'live' && document.querySelector('video').currentTime > 0.5"

# samples the mouth's pixels and the audio power; motion is the difference of successive samples
WATCH = """
async ([seconds, [x, y, w, h]]) => {
  const video = document.querySelector('video'), { videoWidth: across, videoHeight: down } = video;
  const [width, height] = [Math.round(w * across), Math.round(h * down)], canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const audio = new AudioContext(), analyser = audio.createAnalyser(), samples = new Float32Array(2048);
  analyser.fftSize = 2048;
  audio.createMediaStreamSource(video.captureStream()).connect(analyser);
  await audio.resume();
  const began = video.currentTime, beganMs = performance.now(), differences = [], powers = [];
  let before = null;
  for (const end = performance.now() + 1000 * seconds; performance.now() < end; ) {
    await new Promise((resolve) => setTimeout(resolve, 80));
    context.drawImage(video, x * across, y * down, width, height, 0, 0, width, height);
    const now = context.getImageData(0, 0, width, height).data;
    if (before) differences.push(now.reduce((sum, value, k) => sum + Math.abs(value - before[k]), 0) / now.length);
    before = now;
    analyser.getFloatTimeDomainData(samples);
    powers.push(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
  }
  const played = video.currentTime - began, passed = (performance.now() - beganMs) / 1000;
  await audio.close();
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return { played, passed, motion: mean(differences), loudness: Math.sqrt(mean(powers)) };
}
"""


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Shared:
    """One Chromium shared by all tests of a process."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self._browser: Any = None
        self._context: Any = None

    def get(self) -> Any:
        """Skips the test if there is no Chromium or it does not play H.264."""
        if self._browser is None:
            sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: see the extra [dev]")
            path = find_chromium()
            if path is None:
                pytest.skip("no Chromium was found: apt-get install chromium (Debian), or name it in $CHROMIUM")
            with contextlib.ExitStack() as starting:
                playwright = starting.enter_context(sync_api.sync_playwright())
                browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
                starting.callback(browser.close)
                page = browser.new_page()
                if not page.evaluate("MediaSource.isTypeSupported('video/mp4; codecs=\"avc1.42E01E, mp4a.40.2\"')"):
                    pytest.skip(f"{path} does not play H.264 with AAC: use Debian's chromium, or Chrome")
                page.close()
                self._browser, self._running = browser, starting.pop_all()
        return self._browser

    def context(self) -> Any:
        """The context of all pages without options of their own.

        An empty page of the tests' host stays open in it: the next page uses its renderer process, and loads with half
        of the CPU time.
        """
        if self._context is None:
            self._context = self.get().new_context(**DESKTOP)
            page = self._context.new_page()
            page.route("**/*", lambda route: route.fulfill(body="", content_type="text/html"))
            page.goto("http://127.0.0.1/")
        return self._context

    def clear(self, tabs: list[Tab]) -> None:
        """Close a test's pages and delete what they stored, so that the next test finds a context as new."""
        for tab in tabs:
            tab.page.close()
        if self._context is not None and tabs:
            storage = self._context.new_cdp_session(self._context.pages[0])
            for origin in {"/".join(tab.url.split("/")[:3]) for tab in tabs}:
                storage.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
            storage.detach()
            self._context.clear_cookies()
            self._context.set_offline(False)

    def stop(self) -> None:
        """Stop Playwright's event loop, so that asyncio tests can run in this thread."""
        self._browser = self._context = None
        self._running.close()


SHARED = Shared()


@pytest.fixture
def chromium() -> Any:
    return SHARED.get()


class Tab:
    """A chat page, its console errors, and helpers for tests."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.page_errors: list[str] = []
        page.on("pageerror", lambda error: self.page_errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.page_errors.append(message.text))
        page.set_default_timeout(20_000)

    def open(self, query: str = "", live: bool = True) -> Tab:
        self.page.goto(self.url + query)
        if live:
            self.until(LIVE)
        return self

    def until(self, expression: str, timeout_s: float = 30.0) -> float:
        """Wait until a JavaScript expression is true. Returns the seconds it took."""
        began_s = time.monotonic()
        while not self.page.evaluate(expression):
            if time.monotonic() - began_s > timeout_s:
                raise AssertionError(f"not after {timeout_s:g} s: {expression}; {self.page_errors}")
            self.page.wait_for_timeout(50)
        return time.monotonic() - began_s

    def until_served(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Wait until the server has received what the page sent."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, f"the server has not received it; {self.page_errors}"
            self.page.wait_for_timeout(20)

    def watch(self, seconds: float) -> dict[str, float]:
        """Measure playback progress, elapsed time, mouth motion and loudness."""
        seen: dict[str, float] = self.page.evaluate(WATCH, [seconds, MOUTH])
        return seen

    def heard(self, within_s: float, above: float) -> None:
        """Wait until sound begins; fail if it does not begin in time."""
        end_s = time.monotonic() + within_s
        while (loudness := self.watch(0.3)["loudness"]) <= above:
            assert time.monotonic() < end_s, f"only {loudness:.4f} after {within_s:g} s"

    def silent(self, within_s: float, seconds: float, below: float) -> None:
        """Wait until sound ends and stays silent."""
        end_s = time.monotonic() + within_s
        while (loudness := self.watch(0.3)["loudness"]) >= below:
            assert time.monotonic() < end_s, f"still {loudness:.4f} after {within_s:g} s"
        assert self.watch(seconds)["loudness"] < below

    def send(self, text: str) -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def state(self, name: str, timeout_s: float = 30.0) -> float:
        """Wait for the state of the pill: live, thinking, speaking or offline."""
        return self.until(f"document.querySelector('#pill').dataset.state === '{name}'", timeout_s)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_inner_texts()
        return found

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """Opens pages: tab(url); tab(url, **options) in a context of its own; tab(url, context=other.page.context)."""
    contexts, tabs = [], []

    def make(url: str, context: Any = None, **options: Any) -> Tab:
        if options:
            context = chromium.new_context(**{**DESKTOP, **options})
            contexts.append(context)
        made = Tab((context or SHARED.context()).new_page(), url)
        if made.page.context not in contexts:
            tabs.append(made)
        return made

    yield make
    for context in contexts:
        context.close()
    SHARED.clear(tabs)
