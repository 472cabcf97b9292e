"""The WebRTC connections of an ingress replica: answers an SDP offer, then sends pictures and sound within 300 ms.

aiortc is in the extra `[webrtc]`.
"""

# no `from __future__ import annotations`: serve.ingress pickles the objects of this module

import asyncio
import contextlib
import importlib.util
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from configs.schema import IngressConfig
from deployments.ingress.live.hub import Viewer
from deployments.ingress.webrtc import ice
from deployments.ingress.webrtc.tracks import Feed
from models.errors import BusyError, InputError, NotConfiguredError, NotFoundError

LOST_STATES = ("failed", "closed", "disconnected")
CONNECT_TIMEOUT_S = 20.0  # for the client's first packet after the answer
# In order of preference. H.264 is sent as it was encoded; VP8 is encoded again for the viewer.
VIDEO_CODECS = ("video/H264", "video/VP8", "video/rtx")
CODEC_REMEDY = "Offer to receive H.264 with packetization-mode 1, or VP8; or use live.mp4."


@dataclass(slots=True)
class _Peer:
    task: asyncio.Task[None]
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Peers:
    """Connections by id."""

    def __init__(self, config: Callable[[], IngressConfig]) -> None:
        self._config = config
        self._peers: dict[str, _Peer] = {}
        self._answering = 0

    def __len__(self) -> int:
        return len(self._peers)

    def check_available(self) -> None:
        """Raises NotConfiguredError if this server does not offer WebRTC."""
        remedy = "Use live.mp4, or on the server {}."
        if importlib.util.find_spec("aiortc") is None:
            raise NotConfiguredError("WebRTC is not installed.", remedy.format("run pip install 'warmtalk[webrtc]'"))
        if not self._config().max_webrtc_viewers:
            raise NotConfiguredError("WebRTC is switched off.", remedy.format("raise max_webrtc_viewers of Ingress"))

    async def offer(self, sdp: str, view: Callable[[], Awaitable[Viewer]]) -> tuple[str, str]:
        """Answer a client's offer to receive, which must hold all its candidates. Return (id, SDP answer).

        Raises InputError, NotConfiguredError, BusyError, and what `view` raises.
        """
        self.check_available()
        ice.check_offer(sdp)
        if "video" not in (kinds := re.findall(r"^m=(audio|video) ", sdp, re.MULTILINE)):
            raise InputError("The body is not an SDP offer with video.", CODEC_REMEDY)
        if len(self._peers) + self._answering >= self._config().max_webrtc_viewers:
            raise BusyError("The maximum number of WebRTC viewers is watching already.", "Use live.mp4, or try later.")
        self._answering += 1
        try:
            viewer = await view()
            try:
                connection, feed = await self._answer(sdp, kinds, viewer)
            except BaseException:
                viewer.close()
                raise
        finally:
            self._answering -= 1
        peer_id, over = uuid.uuid4().hex, asyncio.Event()
        self._peers[peer_id] = _Peer(asyncio.create_task(self._serve(peer_id, connection, feed, over)), over)
        return peer_id, str(connection.localDescription.sdp)

    async def end(self, peer_id: str) -> None:
        """Raises NotFoundError."""
        if peer_id not in self._peers:
            raise NotFoundError("There is no WebRTC connection with this id.", "It may have ended already.")
        peer = self._peers[peer_id]
        peer.over.set()  # not a cancellation: a task that has not started yet would close nothing
        await asyncio.wait({peer.task})

    async def stop(self) -> None:
        for peer_id in list(self._peers):
            with contextlib.suppress(NotFoundError):
                await self.end(peer_id)

    async def _answer(self, sdp: str, kinds: list[str], viewer: Viewer) -> tuple[Any, Feed]:
        """A connection with its answer, and the feed of its tracks. Raises InputError."""
        from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

        servers = [RTCIceServer(s.urls, s.username, s.credential) for s in self._config().ice_servers]
        connection = RTCPeerConnection(RTCConfiguration(servers))  # without a list, aiortc uses a public STUN server
        feed = Feed(viewer)
        connection.on("datachannel", lambda channel: setattr(feed, "channel", channel))
        try:
            for kind in dict.fromkeys(kinds):  # before the offer is applied, so that the preferences count
                transceiver = connection.addTransceiver(feed.track(kind), direction="sendonly")
                if kind == "video":
                    known = RTCRtpSender.getCapabilities("video").codecs
                    codecs = sorted((c for c in known if c.mimeType in VIDEO_CODECS), key=_codec_preference)
                    transceiver.setCodecPreferences(codecs)
            try:
                offer = RTCSessionDescription(ice.without_candidates(sdp), "offer")
                await connection.setRemoteDescription(offer)
                answer = await connection.createAnswer()
            except Exception as error:  # aiortc raises many kinds for SDP that it cannot use
                why = str(error).rstrip(".") or "it is not SDP"
                raise InputError(f"The offer cannot be answered: {why}.", CODEC_REMEDY) from error
            codec = video_codec(answer.sdp)
            if codec not in ("H264", "VP8"):
                raise InputError("The offer has no video codec that this server sends.", CODEC_REMEDY)
            feed.passthrough = codec == "H264"
            for part in ice.connections(connection):
                ice.limit_sources(part)
            await connection.setLocalDescription(answer)
            await asyncio.gather(*(ice.permit(part, ice.addresses(sdp)) for part in ice.connections(connection)))
        except BaseException:
            await connection.close()
            raise
        return connection, feed

    async def _serve(self, peer_id: str, connection: Any, feed: Feed, over: asyncio.Event) -> None:
        """Feed the connection until it is lost or ended, or the session ends."""
        connected = asyncio.Event()

        def on_state_change() -> None:
            if connection.connectionState == "connected":
                connected.set()
            elif connection.connectionState in LOST_STATES:
                over.set()

        connection.on("connectionstatechange", on_state_change)
        tasks = [asyncio.create_task(work) for work in (_run(feed, connected), over.wait(), _time_out(connected))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            feed.viewer.close()
            self._peers.pop(peer_id, None)
            await connection.close()


async def _run(feed: Feed, connected: asyncio.Event) -> None:
    await connected.wait()
    await feed.run()


async def _time_out(connected: asyncio.Event) -> None:
    """Return if there is no connection in time; otherwise never."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await connected.wait()
    except TimeoutError:
        return
    await asyncio.Event().wait()


def _codec_preference(codec: Any) -> int:
    return VIDEO_CODECS.index(codec.mimeType)


def video_codec(sdp: str) -> str:
    """The name of the first video codec in a description, from its `rtpmap`; "" if it has none or refuses video."""
    section = re.search(r"^m=video (\d+) \S+ (\d+)(.*?)(?=^m=|\Z)", sdp, re.MULTILINE | re.DOTALL)
    if section is None or section[1] == "0":
        return ""
    name = re.search(rf"^a=rtpmap:{section[2]} ([^/\s]+)", section[0], re.MULTILINE)
    return name[1] if name else ""
