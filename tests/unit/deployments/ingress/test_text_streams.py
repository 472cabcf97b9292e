"""Texts that are still being written, through the routes: pauses, silent writers, unreadable parts. In virtual time."""

import asyncio
import json

import pytest

from deployments.common.messages import SoundPart, SpeakEvent
from tests.support.ingress import SUMMARY, Handle, VirtualSocket, finish_background, make_replica, send_partly
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]

WRITER_TIMEOUT_S = 60.0
SPEECH_S = 5.0  # per part


class Stitch(Handle):
    """Speaks each part of a text stream in SPEECH_S, then gives a summary. heard: (seconds, part)."""

    def __init__(self, **answers) -> None:
        super().__init__(session={}, **answers)
        self.parts: asyncio.Queue[str | None] = asyncio.Queue()
        self.heard: list[tuple[float, str]] = []
        self.summaries = 0
        self.cancelled = False
        self._began_s = asyncio.get_running_loop().time()

    def _call(self, name: str, arguments: tuple):
        self.calls.append((name, arguments))
        if name == "speak":
            self.parts, self.cancelled = asyncio.Queue(), False
            return self
        if name != "feed":
            return super()._call(name, arguments)
        _, _, parts, last = arguments
        for part in [*parts, None] if last else parts:
            self.parts.put_nowait(part)
        return asyncio.sleep(0)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.cancelled or self.summaries == sum(name == "speak" for name, _ in self.calls):
            raise StopAsyncIteration
        part = await self.parts.get()
        if part is None:
            self.summaries += 1
            return SpeakEvent(summary=SUMMARY)
        self.heard.append((round(asyncio.get_running_loop().time() - self._began_s, 2), part))
        await asyncio.sleep(SPEECH_S)
        return SpeakEvent(b"")

    def cancel(self) -> None:
        self.cancelled = True


def now_s() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def serve(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    return lambda stitch, **config: make_replica(monkeypatch, stitch, config=config)


async def test_a_finished_sentence_is_spoken_half_a_second_after_its_full_stop(serve):
    stitch = Stitch()
    serve(stitch)
    status, _ = await send_partly("/sessions/alice/say", b"This is one. ", repeat_s=20.0, repeats=2)
    assert status == 200
    assert stitch.heard == [(0.5, "This is one."), (20.5, "This is one."), (40.0, "This is one.")]  # the text ends


async def test_the_pause_is_configurable(serve):
    stitch = Stitch()
    serve(stitch, sentence_pause_ms=2000)
    await send_partly("/sessions/alice/say", b"This is one.", repeat_s=20.0, repeats=2)
    assert [at_s for at_s, _ in stitch.heard] == [2.0, 22.0, 40.0]


@pytest.mark.parametrize("timeout_s", [WRITER_TIMEOUT_S, 10.0])
async def test_a_silent_writer_gets_an_error_at_once_and_what_is_held_is_spoken(serve, timeout_s):
    stitch = Stitch()
    replica = serve(stitch, writer_timeout_s=timeout_s)
    began_s = now_s()
    status, body = await send_partly("/sessions/alice/say", b"This is one. And this is not")
    assert now_s() - began_s == pytest.approx(timeout_s, abs=0.1)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (408, "idle")
    assert error["message"] == f"No further text arrived for {timeout_s:g} s, so the text ended there."
    await finish_background(replica)
    assert stitch.heard == [(0.0, "This is one."), (timeout_s, "And this is not")]
    assert stitch.summaries == 1 and not replica._background


async def test_a_text_may_arrive_at_any_rate(serve):
    serve(Stitch())
    status, _ = await send_partly("/sessions/alice/say", b"a ", repeat_s=WRITER_TIMEOUT_S - 1, repeats=12)
    assert status == 200


async def test_a_writer_that_sends_nothing_at_all_gets_the_same_error(serve):
    stitch = Stitch()
    serve(stitch)
    status, body = await send_partly("/sessions/alice/say", b" ")
    assert (status, json.loads(body)["error"]["code"]) == (408, "idle")


async def test_white_space_keeps_a_text_open_and_delays_no_sentence(serve):
    stitch = Stitch()
    serve(stitch)

    async def send(parts: list[tuple[float, bytes]]) -> int:
        """The status of a body whose parts arrive after these pauses."""
        sent: list[dict] = []

        async def receive() -> dict:
            pause_s, data = parts.pop(0)
            await asyncio.sleep(pause_s)
            return {"type": "http.request", "body": data, "more_body": bool(parts)}

        async def answer(message: dict) -> None:
            sent.append(message)

        path = "/sessions/alice/say"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "server": ("here", 80), "client": None}
        from deployments.ingress.app import api

        await api(scope, receive, answer)
        return int(sent[0]["status"])

    spaces = [(0.2, b" ")] * 5 + [(WRITER_TIMEOUT_S - 1, b"\n")] * 3
    assert await send([(0.0, b"This is one."), *spaces, (1.0, b"Two."), (0.0, b"")]) == 200
    assert stitch.heard[0] == (0.5, "This is one.") and [part for _, part in stitch.heard] == ["This is one.", "Two."]


async def test_a_websocket_gets_the_error_at_once_and_later_text_is_another_text(serve):
    stitch = Stitch()
    socket = VirtualSocket(serve(stitch))
    socket.send(type="text", text="This is one. And this is not")
    await asyncio.sleep(WRITER_TIMEOUT_S + 0.1)
    assert [kind for _, kind in socket.events][-2:] == ["started", "failed"]
    assert socket.events[-1][0] == pytest.approx(WRITER_TIMEOUT_S, abs=0.05)
    error = json.loads(socket.sent[-1]["text"])["error"]
    assert error["code"] == "idle" and "60 s" in error["message"]
    await asyncio.sleep(2 * SPEECH_S)
    assert [part for _, part in stitch.heard] == ["This is one.", "And this is not"]
    assert "done" not in {kind for _, kind in socket.events}  # `failed` has ended the command
    socket.send(type="text", text="Later.", last=True)
    await asyncio.sleep(2 * SPEECH_S)
    assert stitch.heard[-1][1] == "Later." and [kind for _, kind in socket.events][-2:] == ["started", "done"]
    await socket.leave()


async def test_speech_of_a_silent_writer_ends_with_its_connection(serve):
    stitch = Stitch()
    socket = VirtualSocket(serve(stitch))
    socket.send(type="text", text=" ".join(f"Sentence number {k}." for k in range(30)))
    await asyncio.sleep(WRITER_TIMEOUT_S + 1)
    assert socket.events[-1][1] == "failed" and not stitch.cancelled
    await socket.leave()
    assert stitch.cancelled


async def test_warnings_of_a_sound_are_a_header(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    warning = 'Skipped "你好": it is written in Chinese script, which the voice cannot read.'
    make_replica(monkeypatch, tts=Handle(encoded=[SoundPart(b"ID3", (warning,)), SoundPart(b"more")]))
    from httpx import ASGITransport, AsyncClient

    from deployments.ingress.app import api

    async with AsyncClient(transport=ASGITransport(api), base_url="http://localhost") as client:
        answer = await client.post("/v1/audio/speech", json={"input": "Hello. 你好"})
    assert answer.content == b"ID3more" and json.loads(answer.headers["x-warmtalk-warnings"]) == [warning]
