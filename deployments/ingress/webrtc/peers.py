"""Playback over WebRTC: an offer in, an answer out, then pictures and sound below 300 ms behind.

Belongs to the ingress; aiortc is in the extra `[webrtc]`. Knows nothing of HTTP.
"""

# no `from __future__ import annotations`: part of what serve.ingress looks at

import asyncio
import contextlib
import importlib.util
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from configs.schema import IngressConfig
from deployments.ingress.live.hub import Viewer
from deployments.ingress.webrtc.tracks import Feed
from models.errors import BusyError, InputError, NotConfiguredError, NotFoundError

LOST_STATES = ("failed", "closed", "disconnected")
CONNECT_S = 20.0  # a client that has not come by then has gone
VIDEO_CODECS = ("video/H264", "video/VP8", "video/rtx")  # as they are liked: H.264 is passed on, VP8 coded for a viewer
# Browsers hide their addresses as names that multicast DNS alone knows, and wait seconds for; such a client is found by
# its own first packet. So may others be: that no more candidates come must not end a connection before it.
UNHEEDED = re.compile(r"^a=(?:candidate:\S+ \d+ \S+ \d+ \S+\.local\.? .*|end-of-candidates[ \t]*)(?:\r?\n|\Z)", re.M)
CODEC_REMEDY = "Offer to receive H.264 with packetization-mode 1, or VP8; or use live.mp4."


class Peers:
    """The WebRTC connections of an ingress replica."""

    def __init__(self, config: Callable[[], IngressConfig]) -> None:
        self._config = config
        self._peers: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}  # whether it is over, what serves it
        self._answering = 0

    def __len__(self) -> int:
        return len(self._peers)

    def check(self) -> None:
        """Raises NotConfiguredError where this server does not offer WebRTC."""
        remedy = "Use live.mp4; on the server, {}."
        if importlib.util.find_spec("aiortc") is None:
            raise NotConfiguredError("WebRTC is not installed here.", remedy.format("pip install 'warmtalk[webrtc]'"))
        if not self._config().max_webrtc_viewers:
            raise NotConfiguredError(
                "WebRTC is switched off here.", remedy.format("raise max_webrtc_viewers of Ingress")
            )

    async def offer(self, sdp: str, view: Callable[[], Awaitable[Viewer]]) -> tuple[str, str]:
        """(id, SDP answer) for a client's offer to receive, which holds all of its candidates.

        Raises InputError, NotConfiguredError, BusyError, and what `view` raises.
        """
        self.check()
        if "video" not in (kinds := re.findall(r"^m=(audio|video) ", sdp, re.MULTILINE)):
            raise InputError("The body is no SDP offer with video.", CODEC_REMEDY)
        if len(self._peers) + self._answering >= self._config().max_webrtc_viewers:
            raise BusyError("As many WebRTC viewers watch as this server allows.", "Use live.mp4, or try again later.")
        self._answering += 1
        try:
            viewer = await view()
            try:
                connection, feed = await self._answered(sdp, kinds, viewer)
            except BaseException:
                viewer.close()
                raise
        finally:
            self._answering -= 1
        peer_id, over = uuid.uuid4().hex, asyncio.Event()
        self._peers[peer_id] = (over, asyncio.create_task(self._serve(peer_id, connection, feed, over)))
        return peer_id, str(connection.localDescription.sdp)

    async def end(self, peer_id: str) -> None:
        """Raises NotFoundError."""
        if peer_id not in self._peers:
            raise NotFoundError("There is no such connection.", "It may have ended by itself.")
        over, task = self._peers[peer_id]
        over.set()  # and no cancellation: a task that has not begun yet would leave everything as it is
        await asyncio.wait({task})

    async def stop(self) -> None:
        for peer_id in list(self._peers):
            with contextlib.suppress(NotFoundError):
                await self.end(peer_id)

    async def _answered(self, sdp: str, kinds: list[str], viewer: Viewer) -> tuple[Any, Feed]:
        """A connection that has its answer, and what is to be sent over it. Raises InputError."""
        from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

        servers = [RTCIceServer(s.urls, s.username, s.credential) for s in self._config().ice_servers]
        connection = RTCPeerConnection(RTCConfiguration(servers))  # an empty list: aiortc would ask a public server
        feed = Feed(viewer)
        connection.on("datachannel", lambda channel: setattr(feed, "channel", channel))
        try:
            for kind in dict.fromkeys(kinds):  # before the offer is read: what is preferred is chosen from it
                transceiver = connection.addTransceiver(feed.track(kind), direction="sendonly")
                if kind == "video":
                    known = RTCRtpSender.getCapabilities("video").codecs
                    liked = sorted((c for c in known if c.mimeType in VIDEO_CODECS), key=_liking)
                    transceiver.setCodecPreferences(liked)
            try:
                await connection.setRemoteDescription(RTCSessionDescription(UNHEEDED.sub("", sdp), "offer"))
                answer = await connection.createAnswer()
            except Exception as error:  # whatever aiortc finds wrong with a text of somebody else's
                why = str(error).rstrip(".") or "it is not SDP"
                raise InputError(f"The offer cannot be answered: {why}.", CODEC_REMEDY) from error
            codec = video_codec(answer.sdp)
            if codec not in ("H264", "VP8"):
                raise InputError("The offer has no video codec that is sent here.", CODEC_REMEDY)
            feed.passing = codec == "H264"
            await connection.setLocalDescription(answer)
        except BaseException:
            await connection.close()
            raise
        return connection, feed

    async def _serve(self, peer_id: str, connection: Any, feed: Feed, over: asyncio.Event) -> None:
        """Feed the connection until it is lost, ended, or the session ends."""
        met = asyncio.Event()

        def changed() -> None:
            if connection.connectionState == "connected":
                met.set()
            elif connection.connectionState in LOST_STATES:
                over.set()

        connection.on("connectionstatechange", changed)
        tasks = [asyncio.create_task(ends) for ends in (_fed(feed, met), over.wait(), _missed(met))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            feed.viewer.close()
            self._peers.pop(peer_id, None)
            await connection.close()


async def _fed(feed: Feed, met: asyncio.Event) -> None:
    await met.wait()
    await feed.run()


async def _missed(met: asyncio.Event) -> None:
    """Returns when a connection has not come about in time; else never."""
    try:
        await asyncio.wait_for(met.wait(), CONNECT_S)
    except TimeoutError:
        return
    await asyncio.Event().wait()


def _liking(codec: Any) -> int:
    return VIDEO_CODECS.index(codec.mimeType)


def video_codec(sdp: str) -> str:
    """The first codec of a description's video, as `rtpmap` names it; "" where video is refused, or there is none."""
    section = re.search(r"^m=video (\d+) \S+ (\d+)(.*?)(?=^m=|\Z)", sdp, re.MULTILINE | re.DOTALL)
    if section is None or section[1] == "0":
        return ""
    name = re.search(rf"^a=rtpmap:{section[2]} ([^/\s]+)", section[0], re.MULTILINE)
    return name[1] if name else ""
