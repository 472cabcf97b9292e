"""A WarmTalk avatar as the face of a LiveKit agent: it speaks the agent's audio with matching lips.

`WarmTalkVideo` is a `livekit.agents.voice.avatar.VideoGenerator` (livekit-agents 1.8): LiveKit's `AvatarRunner` pushes
the agent's speech into it and publishes the video and audio frames that it yields.
Needs `pip install warmtalk livekit-agents av numpy`.

    client = AsyncClient("http://127.0.0.1:8000")
    video = await WarmTalkVideo.open(client, avatar_id="presenter")
    runner = AvatarRunner(room, audio_recv=DataStreamAudioReceiver(room), video_gen=video, options=video.options)
    await runner.start()
"""

from __future__ import annotations

import asyncio
import io
import queue
import wave
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import av
import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from warmtalk import AsyncClient, ServerError

RATE_HZ = 24_000
PART_S = 4.0  # a long segment is sent in parts, so that the avatar starts before the agent has finished
SILENCE = 1e-3  # idle audio is quieter
BEHIND_S = 0.5  # delay of this viewer behind the live stream of the server


class WarmTalkVideo(VideoGenerator):
    """One session, watched live: idle motion, and speech after `push_audio`."""

    def __init__(self, client: AsyncClient, session_id: str, options: AvatarOptions) -> None:
        self.options = options
        self._client = client
        self._session_id = session_id
        self._pushed: list[rtc.AudioFrame] = []
        self._parts: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()  # a WAV file, and whether it ends its segment
        self._events: asyncio.Queue[AudioSegmentEnd] = asyncio.Queue()
        self._speaking = self._sounding = False
        self._speaker = asyncio.create_task(self._speak())

    @classmethod
    async def open(
        cls, client: AsyncClient, avatar_id: str = "presenter", session_id: str | None = None
    ) -> WarmTalkVideo:
        """Open a session with the avatar. Raises warmtalk.ServerError."""
        session = await client.open_session(session_id, avatar_id)
        avatar = next(avatar for avatar in await client.avatars() if avatar.avatar_id == session.avatar_id)
        options = AvatarOptions(avatar.width, avatar.height, avatar.fps, RATE_HZ, 1)
        return cls(client, session.session_id, options)

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        ends = isinstance(frame, AudioSegmentEnd)
        if isinstance(frame, rtc.AudioFrame):
            self._pushed.append(frame)
        if self._pushed and (ends or sum(part.duration for part in self._pushed) > PART_S):
            await self._parts.put((wav(self._pushed), ends))
            self._pushed = []
        elif ends:
            await self._parts.put((b"", True))

    async def clear_buffer(self) -> None:
        """The user interrupted: drop all pushed audio and stop the current utterance."""
        self._pushed = []
        self._speaking = self._sounding = False
        while not self._parts.empty():
            self._parts.get_nowait()
        await self._client.interrupt(self._session_id)

    async def aclose(self) -> None:
        self._speaker.cancel()
        await asyncio.gather(self._speaker, return_exceptions=True)

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Video frames without end; audio frames from the first sound of a segment to its last."""
        async with aclosing(self._client.live(self._session_id)) as live:
            async for frame in decoded(live):
                while not self._events.empty():
                    self._sounding = False
                    yield self._events.get_nowait()
                if isinstance(frame, av.VideoFrame):
                    yield picture(frame)
                    continue
                samples = frame.to_ndarray().mean(axis=0)
                self._sounding |= self._speaking and float(np.abs(samples).max()) > SILENCE
                if self._sounding:
                    yield rtc.AudioFrame((samples * 32767).astype(np.int16).tobytes(), frame.rate, 1, len(samples))

    async def _speak(self) -> None:
        """Speak the parts in order. For a watched session, the call returns when the last frame was shown."""
        while True:
            data, ends = await self._parts.get()
            self._speaking = True
            try:
                if data:
                    await self._client.speak_audio(data, session_id=self._session_id)
            except ServerError as error:
                print(f"A part could not be spoken: {error}")
            if ends and self._speaking:  # false after an interruption
                await asyncio.sleep(BEHIND_S)
                self._speaking = False
                await self._events.put(AudioSegmentEnd())


def wav(frames: list[rtc.AudioFrame]) -> bytes:
    """16-bit frames as the bytes of a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((frames[0].num_channels, 2, frames[0].sample_rate, 0, "NONE", ""))
        for frame in frames:
            out.writeframes(bytes(frame.data))
    return file.getvalue()


def picture(frame: av.VideoFrame) -> rtc.VideoFrame:
    planes = frame.reformat(format="yuv420p").to_ndarray().tobytes()
    return rtc.VideoFrame(frame.width, frame.height, rtc.VideoBufferType.I420, planes)


async def decoded(parts: Any) -> AsyncIterator[av.VideoFrame | av.AudioFrame]:
    """Decoded frames of a fragmented MP4 stream. A thread decodes, because the demuxer blocks on input."""
    pipe = Pipe()
    frames: asyncio.Queue[Any] = asyncio.Queue(8)
    loop = asyncio.get_running_loop()

    def decode() -> None:
        try:
            with av.open(pipe, format="mp4") as container:
                for frame in container.decode(*container.streams):
                    asyncio.run_coroutine_threadsafe(frames.put(frame), loop).result()
        finally:
            asyncio.run_coroutine_threadsafe(frames.put(None), loop)

    async def feed() -> None:
        try:
            async for part in parts:
                pipe.feed(part)
        finally:
            pipe.feed(b"")

    tasks = [asyncio.create_task(feed()), asyncio.create_task(asyncio.to_thread(decode))]
    try:
        while (frame := await frames.get()) is not None:
            yield frame
    finally:
        tasks[0].cancel()
        while not tasks[1].done():
            while not frames.empty():
                frames.get_nowait()
            await asyncio.sleep(0.01)


class Pipe(io.RawIOBase):
    """A file that a thread reads while an event loop feeds it; an empty part marks the end."""

    def __init__(self) -> None:
        self._parts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._ended = False

    def feed(self, part: bytes) -> None:
        self._parts.put(part)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        if not self._rest and not self._ended:
            self._rest = self._parts.get()
            self._ended = not self._rest  # the demuxer may read again after the end
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
