"""A WarmTalk presenter as the face of a LiveKit agent: what the agent says is said by her, with her lips.

`WarmTalkVideo` is a `livekit.agents.voice.avatar.VideoGenerator` (livekit-agents 1.8): LiveKit's `AvatarRunner` pushes
the agent's speech into it, and publishes the pictures and the sound that come out.
Needs `pip install livekit-agents av httpx`.

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
PART_S = 4.0  # of a long segment that is sent at once: the face begins before the agent has finished
SILENCE = 1e-3  # idle sound is below this
BEHIND_S = 0.5  # a viewer sees what was said so long after the server has shown it


class WarmTalkVideo(VideoGenerator):
    """One session, watched live: idle motion while nobody speaks, speech when `push_audio` has brought some."""

    def __init__(self, client: AsyncClient, session_id: str, options: AvatarOptions) -> None:
        self.options = options
        self._client = client
        self._session_id = session_id
        self._heard: list[rtc.AudioFrame] = []
        self._parts: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()  # a WAV file, and whether its segment ends
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
            self._heard.append(frame)
        if self._heard and (ends or sum(part.duration for part in self._heard) > PART_S):
            await self._parts.put((wav(self._heard), ends))
            self._heard = []
        elif ends:
            await self._parts.put((b"", True))

    async def clear_buffer(self) -> None:
        """The viewer has interrupted: say nothing more of what was pushed."""
        self._heard = []
        self._speaking = self._sounding = False
        while not self._parts.empty():
            self._parts.get_nowait()
        await self._client.interrupt(self._session_id)

    async def aclose(self) -> None:
        self._speaker.cancel()
        await asyncio.gather(self._speaker, return_exceptions=True)

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Pictures without end; sound from the first word of a segment to its last."""
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
        """Have the parts said one after another: a watched session answers when the last frame was shown."""
        while True:
            data, ends = await self._parts.get()
            self._speaking = True
            try:
                if data:
                    await self._client.speak_audio(data, session_id=self._session_id)
            except ServerError as error:
                print(f"a part was not said: {error}")
            if ends and self._speaking:  # else it was interrupted
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
    """Frames of a fragmented MP4 as its bytes come; a thread decodes, since a demuxer waits for bytes."""
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
    """Bytes from an event loop to a thread that reads them; an empty part is the end."""

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
            self._ended = not self._rest  # a demuxer asks again behind the end
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
