"""The config of the Ingress stage: limits, access control and WebRTC."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from configs.strict import SENTENCE_PAUSE, Strict

ICE_URL = re.compile(r"stuns?:[^\s?:]+(:\d+)?|turns?:[^\s?:]+(:\d+)?(\?transport=(udp|tcp))?")  # RFC 7064, RFC 7065


class IceServer(Strict):
    """A STUN or TURN server for WebRTC, with the names that browsers use (RTCIceServer)."""

    urls: list[str] = Field(
        min_length=1,
        description="Addresses of the server, such as `stun:stun.example:3478`, `turn:turn.example:3478?transport=udp` "
        "or `turns:turn.example:5349?transport=tcp`.",
    )
    username: str | None = Field(None, description="User name for turn: and turns: addresses.")
    credential: str | None = Field(
        None,
        description="Password for turn: and turns: addresses. Every viewer receives it, so use one that expires or "
        "that allows little.",
    )

    @model_validator(mode="after")
    def _check_urls(self) -> IceServer:
        for url in self.urls:
            if not ICE_URL.fullmatch(url):
                raise ValueError(f"{url!r} is not a stun:, stuns:, turn: or turns: address like stun:stun.example:3478")
            if url.startswith("turn") and not (self.username and self.credential):
                raise ValueError(f"{url!r} needs username and credential")
        return self


class IngressConfig(Strict):
    """The HTTP server: uploads, viewers, access control and WebRTC. Limits with status 429 are per replica."""

    max_upload_mb: float = Field(200.0, gt=0, description="Largest upload, in MB.")
    max_uploads: int = Field(8, ge=1, description="Most uploads received at a time. Further ones get status 429.")
    max_json_kb: float = Field(256.0, gt=0, description="Largest body of a request that is not an upload, in KB.")
    max_downloads: int = Field(
        2, ge=1, description="Most session downloads that are put together at a time. Further ones wait."
    )
    max_viewers: int = Field(
        500, ge=1, description="Most viewers over live.mp4, WebSocket and WebRTC together. Others get status 429."
    )
    max_sockets: int = Field(500, ge=1, description="Most open WebSockets, with or without a live picture.")
    socket_idle_s: float = Field(
        900.0,
        ge=0,
        description="Seconds after which a WebSocket that sends nothing and watches nothing is closed. 0 never closes.",
    )
    writer_timeout_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Seconds without further text after which a text that is still being written (`say`, WebSocket) "
        "ends with an error. What has arrived is spoken. A space or a line break counts as further text.",
    )
    sentence_pause_ms: float = Field(500.0, ge=50, le=10_000, description=SENTENCE_PAUSE)
    api_keys_env: str | None = Field(
        None,
        description="Name of the environment variable that holds the API keys. Null requires no key: everybody who "
        "reaches the server may use it.",
    )
    login_days: float = Field(
        30.0, gt=0, description="Days for which a browser stays logged in after its user has entered a key."
    )
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="Public host names that the server answers to; others get status 421. `*.my.site` allows all "
        "subdomains, `*` allows every name. IP addresses, localhost and names that cannot be public are always "
        "allowed. With api_keys_env set, an empty list allows every name.",
    )
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="Origins of other web sites, such as `https://my.site`, whose pages may call this server from a "
        "browser and read its answers. `*` allows every site.",
    )
    max_webrtc_viewers: int = Field(
        30,
        ge=0,
        description="Most viewers over WebRTC, counted within max_viewers. Each needs about 0.03 cores and the extra "
        "`webrtc` must be installed. 0 disables WebRTC.",
    )
    ice_servers: list[IceServer] = Field(
        default_factory=list,
        description="STUN and TURN servers that viewers and server use for WebRTC when they cannot connect directly.",
    )
