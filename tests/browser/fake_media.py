"""Synthetic media: the embedded presenter idles; in a speaking session it moves a painted mouth and hums."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from deployments.common.paths import builtin_avatars
from models.media.emsg import event_box
from tests.browser.fake_state import STAGES, FakeSession

FPS, RATE, FRAGMENT_FRAMES = 25, 24_000, 4
FRAME_SAMPLES = RATE // FPS
IDLE_FRAMES = 60
MOUTH = (256, 326)  # x, y of its centre in the presenter's 512 px frames


def read_frames(path: Path, side: int, limit: int = 10_000) -> tuple[list[Any], Any]:
    """RGB frames of `side` px and mono audio at RATE of a square video."""
    frames, sound = [], []
    resampler = av.AudioResampler("flt", "mono", RATE)
    with av.open(str(path)) as container:
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                if len(frames) < limit:
                    frames.append(frame.to_ndarray(format="rgb24", width=side, height=side))
            else:
                sound += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    return frames, np.concatenate(sound) if sound else np.zeros(0, np.float32)


class Film:
    """Square frames of `side` px and audio for idle and for speech."""

    def __init__(self, speech: Path | None = None, side: int = 512) -> None:
        source = builtin_avatars() / "presenter" / "frames.mp4"
        self.side = side
        self.idle, _ = read_frames(source, side, IDLE_FRAMES)
        self.speech, self.sound = read_frames(speech, side) if speech else ([], np.zeros(0, np.float32))

    def frame(self, number: int, speaking: int | None) -> Any:
        """Frame `number` of a viewer. `speaking`: frames since the speech began."""
        turn = number % (2 * len(self.idle) - 2)
        frame = self.idle[turn if turn < len(self.idle) else 2 * len(self.idle) - 2 - turn]
        if speaking is None:
            return frame
        if self.speech:
            return self.speech[speaking % len(self.speech)]
        frame = frame.copy()
        centre, axes = ([px * self.side // 512 for px in pair] for pair in (MOUTH, (24, 4 + 5 * (speaking // 2 % 4))))
        cv2.ellipse(frame, centre, axes, 0, 0, 360, (70, 20, 25), -1)
        return frame

    def samples(self, number: int, speaking: int | None) -> Any:
        if speaking is None:
            return np.zeros(FRAME_SAMPLES, np.float32)
        if len(self.sound):
            begin = (speaking % max(len(self.speech), 1)) * FRAME_SAMPLES
            part = self.sound[begin : begin + FRAME_SAMPLES]
            return np.pad(part, (0, FRAME_SAMPLES - len(part)))
        times = (np.arange(FRAME_SAMPLES) + number * FRAME_SAMPLES) / RATE
        return (0.2 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)


class Sink(io.RawIOBase):
    """Collects what a muxer writes. Not seekable, like a stream."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


class Viewer:
    """One viewer's endless fragmented MP4, from time 0."""

    def __init__(self, film: Film, session: FakeSession) -> None:
        self._film, self._session, self._number = film, session, 0
        self._sink = Sink()
        options = {"movflags": "empty_moov+default_base_moof", "frag_duration": "120000"}
        self._out = av.open(self._sink, "w", format="mp4", options=options)  # type: ignore[call-overload]
        self._video = self._out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency"})
        self._video.width, self._video.height, self._video.pix_fmt = film.side, film.side, "yuv420p"
        self._video.gop_size = 25
        self._caption: dict[str, Any] | None = None  # the current caption
        self._made: dict[str, Any] = {}  # the last `making` event
        self._caption_count = 0
        self._audio = self._out.add_stream("aac", rate=RATE, layout="mono")

    def step(self) -> bytes:
        """The next FRAGMENT_FRAMES frames as bytes, with their events."""
        events = b""
        for _ in range(FRAGMENT_FRAMES):
            now_s = time.monotonic()
            speaking = round((now_s - self._session.began_s) * FPS) if self._session.speaks else None
            events += self._caption_events(speaking)
            frame = av.VideoFrame.from_ndarray(self._film.frame(self._number, speaking), format="rgb24")
            frame.pts = self._number
            self._out.mux(self._video.encode(frame))
            sound = av.AudioFrame.from_ndarray(self._film.samples(self._number, speaking)[None], "fltp", "mono")
            sound.sample_rate, sound.pts = RATE, self._number * FRAME_SAMPLES
            self._out.mux(self._audio.encode(sound))
            self._number += 1
        if speaking is not None:
            events += self._making_event(speaking)
        return events + self._sink.take()

    def _making_event(self, speaking: int) -> bytes:
        """The `making` event: speech is made twice as fast as shown."""
        length = round((self._session.until_s - self._session.began_s) * FPS)
        frames = min(length, 8 + 2 * speaking)
        if frames == self._made.get("frames"):
            return b""
        stages = {name: {"calls": 1, "busy_ms": ms * frames / length} for name, ms in STAGES.items()}
        self._made = {"frames": frames, "shown_frames": speaking, "duration_s": frames / FPS, "ttff_ms": 493.0}
        self._made |= {"spoken_chars": 0, "stages": stages}
        return event_box("making", self._made, 1000 + self._number, self._number / FPS)

    def _caption_events(self, speaking: int | None) -> bytes:
        """The caption event that begins or ends with the next frame."""
        now_s, session, last = self._number / FPS, self._session, self._caption
        events = b""
        if last is not None and (speaking is None or session.began_s != last["began_s"]):
            if last["end_s"] > now_s + 1.5 / FPS:
                events += self._box(last | {"end_s": now_s, "cut": True})
            self._caption = None
        if speaking is not None and self._caption is None:
            self._caption_count += 1
            start_s = now_s - speaking / FPS
            times = {"start_s": max(0.0, start_s), "end_s": start_s + session.until_s - session.began_s}
            about = {"id": self._caption_count, "text": session.caption, "words": [], "cut": False}
            self._caption = {**about, **times, "began_s": session.began_s}
            events += self._box(self._caption)
        return events

    def _box(self, caption: dict[str, Any]) -> bytes:
        return event_box("caption", caption, caption["id"], caption["start_s"], caption["end_s"] - caption["start_s"])

    def close(self) -> None:
        self._out.close()
