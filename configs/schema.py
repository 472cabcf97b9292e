"""The strict schema of everything that can be configured. Knows no model, no stage and no Ray.

A Serve config file has two places for our values. `applications[].args` is `AppConfig`: only what rewires the graph,
since any change there restarts every deployment. `deployments[].user_config` is the model of that stage below: its
engine and tunables, applied to running replicas by `reconfigure()` without a restart.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ICE_URL = re.compile(r"stuns?:[^\s?:]+(:\d+)?|turns?:[^\s?:]+(:\d+)?(\?transport=(udp|tcp))?")
EMBEDDED = "models/embedded"  # relative paths are looked up in the working folder first, then beside the code


class Strict(BaseModel):
    """A model that refuses unknown keys and names the nearest known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_alternatives(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"unknown key {key!r}: {hint}known keys are {', '.join(cls.model_fields)}")
        return values


class AppConfig(Strict):
    """`args` of the application: what rewires the graph. A change restarts every deployment."""

    enhance: bool = True  # False leaves the Enhance deployment out of the graph
    recognize: bool = False  # True puts the Recognize deployment into it: speech that is sent is understood


class TTSConfig(Strict):
    """Text to speech."""

    engine: str = "hibari"  # a short name of models/tts, or module:Class
    options: dict[str, Any] = Field(default_factory=dict)  # passed to the engine's load()
    voice: str | None = None  # None is the engine's default
    speed: float = Field(1.0, ge=0.5, le=2.0)  # 1 is the voice's own pace
    max_chars: int = Field(2000, ge=1, le=100_000)  # longer texts are refused


class AudioFeaturesConfig(Strict):
    """Whisper encoder: speech to feature windows."""

    weights: str = f"{EMBEDDED}/whisper"  # folder with config.json and model.safetensors or pytorch_model.bin
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    context_s: float | None = Field(8.0, gt=2, le=30)  # None: MuseTalk's full 30 s context
    margin_s: float = Field(1.0, ge=0, le=5)  # overlap of neighbouring contexts that is thrown away
    rest_in_silence: bool = (
        True  # long silences get the features of a mouth at rest, whatever the encoder makes of them
    )
    plosive_lead_ms: float = Field(
        0.0, ge=0, le=80
    )  # how much ahead of p, b, m the lips close; needs a voice's phonemes
    threads: int = Field(1, ge=1, le=64)  # two torch threads on two contended cores are slower than one


class LipSyncConfig(Strict):
    """UNet + VAE: feature windows and avatar latents to face crops."""

    engine: str = "openvino"  # openvino (CPU), torch (CPU or CUDA), or module:Class
    unet_config: str = f"{EMBEDDED}/musetalk/musetalk.json"
    unet_weights: str = f"{EMBEDDED}/musetalk/unet.safetensors"
    vae_dir: str = f"{EMBEDDED}/vae"
    decoder: Literal["vae", "tiny"] = "vae"  # tiny: TAESD's decoder, for a Stable Diffusion VAE; faster and softer
    decoder_dir: str = "weights/taesd"  # of decoder: tiny
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1, le=64)
    compile: Literal["off", "graphs", "inductor"] = "off"  # on CUDA: recorded launches; fused kernels, a minute once
    mouth_amplitude: float = Field(1.0, ge=0.7, le=1.3)  # how wide the mouth opens; not 1 passes by `compile`
    batch_size: int = Field(8, ge=1, le=64)  # frames of one or several sessions in one UNet call
    batch_wait_ms: float = Field(2.0, ge=0, le=200)  # how long a part-full batch waits for company
    avatars_dir: str = "results/avatars"
    cached_avatars: int = Field(8, ge=1)  # prepared avatars whose latents stay in memory


class EnhanceConfig(Strict):
    """Face restoration: 256 px crops to 512 px crops."""

    engine: str = "small"  # a short name of models/restore, or module:Class
    options: dict[str, Any] = Field(default_factory=dict)  # passed to the engine's load()
    strength: float = Field(1.0, ge=0, le=1)  # 0: plain bicubic upsampling, 1: the full model
    batch_size: int = Field(8, ge=1, le=64)
    avatars_dir: str = "results/avatars"  # where engines that need landmarks find them


class StitchConfig(Strict):
    """Drives the line; pastes, encodes, appends."""

    avatar_id: str = "presenter"  # used where a request names none
    enhance: bool = False  # where a request does not say
    avatars_dir: str = "results/avatars"
    sessions_dir: str = "results/sessions"
    chunk_frames: int = Field(8, ge=1, le=64)  # frames that one call to LipSync carries
    first_chunk_frames: int = Field(4, ge=1, le=64)  # of an utterance: small, for an early first fragment
    window_chunks: int = Field(3, ge=1, le=32)  # chunks in flight
    tries: int = Field(4, ge=1, le=10)  # per chunk, when a replica dies
    chunk_timeout_s: float = Field(30.0, gt=0)
    sample_rate_hz: Literal[16000, 22050, 24000, 32000, 44100, 48000] = 24000  # of the session's sound
    crf: int = Field(20, ge=0, le=40)  # H.264 quality: lower is better and larger
    preset: str = "veryfast"  # x264's
    threads: int = Field(1, ge=1, le=64)  # utterances pasted and encoded at a time in one replica: a core each
    blend_mode: Literal["feather", "poisson", "multiband"] = "feather"
    color_match: bool = True  # of the generated face to the frame around it, where the mask fades
    sharpness_match: bool = True  # likewise, within bounds
    jaw_follow: bool = True  # mask and chin go down with a jaw that opens wider than the source's
    av_offset_ms: float = Field(
        0.0, ge=-200, le=200
    )  # how much later than their sound lips are shown; below 0: earlier
    steady_crops: bool = True  # average generated faces over time where they rest: less flicker, the same lips
    rest_mouth: Literal["auto", "source", "generated"] = "auto"  # in silences; auto: source, unless its mouth moves
    rest_fade_ms: float = Field(120.0, ge=80, le=160)  # from one mouth to the other, within the silence
    rest_pause_ms: float = Field(300.0, ge=250, le=5000)  # silences between words from which the mouth rests
    max_audio_s: float = Field(600.0, gt=0)
    max_utterances: int = Field(32, ge=1)  # made, or shown live, at a time in one replica
    max_waiting: int = Field(32, ge=0)  # further ones that may wait for that; more get 429
    max_waiting_session: int = Field(8, ge=0)  # utterances of one session that may wait behind what it says
    max_sessions: int = Field(10_000, ge=1)  # in all; more are refused
    max_sessions_gb: float = Field(100.0, gt=0)  # of all sessions together; then nothing more is said
    session_max_minutes: float = Field(240.0, gt=0)  # of video; a longer session is closed
    session_idle_hours: float = Field(720.0, ge=0)  # without a word or a viewer; then it is removed; 0: never
    live_ahead_s: float = Field(4.0, gt=0.5, le=60)  # how far ahead of a live session's clock speech is made
    recorded_pause_ms: float = Field(
        1500.0, ge=0, le=60_000
    )  # of a pause so much before and behind speech watched live is kept in the file; up to 4 times that more where the
    # head, at its own pace, needs it to arrive without a leap; 0: nothing, and replays leap
    cached_avatars: int = Field(4, ge=1)
    cached_sessions: int = Field(256, ge=1)  # session files kept open
    frame_cache_mb: int = Field(512, ge=16)  # decoded frames kept in memory, of each avatar: 41 of them in 4K


class AvatarsConfig(Strict):
    """Avatar preparation; the names are the manual's where it has them."""

    avatar_id: str = "presenter"
    video_path: str | None = None  # source of `avatar_id`, prepared at start when `preparation` is true
    preparation: bool = True  # false: a missing or changed avatar is an error with the command to run
    bbox_shift: int = Field(0, ge=-50, le=50)  # moves the crop's upper edge, px
    extra_margin: int = Field(10, ge=0, le=100)  # below the chin, px; MuseTalk v1.0's weights want 0
    geometry: Literal["similarity", "box", "musetalk"] = "similarity"  # box: MuseTalk's, upright, smoothed, sub-pixel;
    # musetalk: its own integer boxes, crops and masks, frame by frame
    smoothing: Literal["zero_phase", "one_euro", "kalman", "none"] = "zero_phase"  # of where the crop lies, over time
    smooth_s: float | None = Field(None, ge=0, le=2)  # of zero_phase, s; None: 0.04 where motion is tracked, else 0.08
    min_cutoff: float = Field(1.0, gt=0)  # of one_euro, Hz: lower trembles less and lags more while the head is still
    beta: float = Field(0.7, ge=0)  # of one_euro, Hz for each px/s: higher lags less while it moves
    d_cutoff: float = Field(1.0, gt=0)  # of one_euro, Hz: smooths the speed that beta looks at
    scale_lock_enabled: bool = True  # one size of crop for a scene, unless the head truly comes closer
    scale_lock_warmup_frames: int = Field(0, ge=0)  # its median is of the first so many frames; 0: of all
    affine_tracking_enabled: bool = True  # joins landmarks with Lucas-Kanade tracking of the rigid face
    subpixel_enabled: bool = True  # false rounds crops to whole px
    detector: Literal["blazemesh", "dwpose"] = "blazemesh"
    detector_weights: str = "weights/dwpose/dw-ll_ucoco_384.onnx"  # of detector: dwpose
    parser_weights: str | None = "weights/face-parse-bisent/79999_iter.pth"  # of geometry: musetalk, where it is there
    parsing_mode: Literal["jaw", "raw", "neck"] = "jaw"  # of geometry: musetalk; MuseTalk v1.0 has raw
    cheek_width: int = Field(90, ge=0, le=256)  # of parsing_mode: jaw, px of 512
    fps: Literal[24, 25, 30] = 25  # of prepared avatars, and so of their sessions
    batch_size: int = Field(4, ge=1, le=64)  # crops in one VAE call
    max_seconds: float = Field(120.0, gt=0)
    avatars_dir: str = "results/avatars"
    vae_dir: str = f"{EMBEDDED}/vae"
    unet_config: str = f"{EMBEDDED}/musetalk/musetalk.json"
    unet_weights: str = f"{EMBEDDED}/musetalk/unet.safetensors"
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class RecognizeConfig(Strict):
    """Speech recognition: recordings to text."""

    engine: str = "whisper"  # a short name of models/recognition, or module:Class
    options: dict[str, Any] = Field(default_factory=dict)  # passed to the engine's load(): weights, device, threads …
    language: str | None = Field(None, pattern="^[a-z]{2,3}$")  # ISO 639-1, where a request names none; None: found out
    max_audio_s: float = Field(120.0, gt=0)  # longer recordings are refused


class ChatConfig(Strict):
    """Chat jobs and the language model behind them."""

    engine: str = "auto"  # openai where $WARMTALK_LLM_URL is set, else offline; or one of models/llm, or module:Class
    options: dict[str, Any] = Field(default_factory=dict)  # passed to the engine's load(); not to offline under auto
    system_prompt: str = (
        "You are a friendly presenter who talks with a viewer face to face. Your answer is spoken aloud: use one to "
        "four short sentences of plain words, without lists, markup, emoji or links."
    )
    system_prompts: dict[str, str] = Field(default_factory=dict)  # by avatar id, in place of system_prompt
    max_message_chars: int = Field(4000, ge=1, le=100_000)
    max_history_messages: int = Field(40, ge=2)  # of one session; the oldest are forgotten
    max_history_chars: int = Field(16_000, ge=100)
    max_jobs: int = Field(256, ge=1)  # unfinished, of all sessions; more are refused with 429
    max_waiting: int = Field(8, ge=1)  # unfinished, of one session
    job_timeout_s: float = Field(300.0, gt=0)  # from its turn to its last frame
    keep_hours: float = Field(24.0, gt=0)  # finished jobs, and conversations that nobody went on with
    chat_dir: str = "results/chat"


class IceServer(Strict):
    """A STUN or TURN server, as browsers name them (RFC 7064, RFC 7065)."""

    urls: list[str] = Field(min_length=1)  # stun:host:3478, turn:host:3478?transport=udp, turns:host:5349?transport=tcp
    username: str | None = None  # of turn and turns
    credential: str | None = None  # its password: every viewer is told it, so let it expire, or allow little

    @model_validator(mode="after")
    def _complete(self) -> IceServer:
        for url in self.urls:
            if not ICE_URL.fullmatch(url):
                raise ValueError(
                    f"{url!r} is no stun:, stuns:, turn: or turns: address, such as stun:stun.example:3478"
                )
            if url.startswith("turn") and not (self.username and self.credential):
                raise ValueError(f"{url!r} needs username and credential")
        return self


class IngressConfig(Strict):
    """The HTTP face."""

    max_upload_mb: float = Field(200.0, gt=0)
    max_uploads: int = Field(8, ge=1)  # being received at a time by one ingress replica; more get 429
    max_json_kb: float = Field(256.0, gt=0)  # of a request that is no upload
    max_downloads: int = Field(2, ge=1)  # of sessions, put together at a time by one ingress replica; more wait
    max_viewers: int = Field(500, ge=1)  # of one ingress replica, by live.mp4, WebSocket or WebRTC; more get 429
    max_sockets: int = Field(500, ge=1)  # WebSockets of one ingress replica, whether they watch or not
    socket_idle_s: float = Field(900.0, ge=0)  # then a WebSocket that does and watches nothing is closed; 0: never
    api_keys_env: str | None = None  # environment variable with the keys that open the server; None: open to all
    login_days: float = Field(30.0, gt=0)  # how long a browser is remembered that was given a key
    allowed_hosts: list[str] = Field(default_factory=list)  # names it answers to, "*.my.site" any below, ["*"] any;
    # beside addresses, localhost and other names that cannot be public. Where a key is wanted and none is named: any
    allowed_origins: list[str] = Field(default_factory=list)  # of other sites whose pages may act here; ["*"]: of any
    max_webrtc_viewers: int = Field(30, ge=0)  # of those, over WebRTC (extra [webrtc]), some 0.02 cores each; 0: none
    ice_servers: list[IceServer] = Field(
        default_factory=list
    )  # that WebRTC's two ends use where they cannot meet directly


STAGES: dict[str, type[Strict]] = {
    "TTS": TTSConfig,
    "AudioFeatures": AudioFeaturesConfig,
    "LipSync": LipSyncConfig,
    "Enhance": EnhanceConfig,
    "Stitch": StitchConfig,
    "Avatars": AvatarsConfig,
    "Recognize": RecognizeConfig,
    "Chat": ChatConfig,
    "Ingress": IngressConfig,
}
