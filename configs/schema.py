"""The strict schema of all settings of WarmTalk in a Serve config file.

`applications[].args` is `AppConfig`: only what changes the graph, because a change there restarts every deployment.
`deployments[].user_config` is the model of that stage below: its engine and tunables, which `reconfigure()` applies to
running replicas without a restart. docs/configuration.md is generated from the descriptions of the fields.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from configs.ingress_schema import IceServer, IngressConfig
from configs.preparation_schema import AvatarsConfig, PreparationOptions
from configs.strict import (
    AVATARS_DIR,
    AVATARS_FOLDER,
    DEVICE,
    DTYPE,
    EMBEDDED,
    ENGINE_OPTIONS,
    HUNG_AFTER,
    SENTENCE_PAUSE,
    UNET_CONFIG,
    UNET_WEIGHTS,
    VAE_DIR,
    Accelerated,
    DType,
    Strict,
    Supervised,
)


class AppConfig(Strict):
    """`args` of the application: which optional stages the graph has. A change restarts every deployment."""

    enhance: bool = Field(True, description="Whether the graph has the Enhance stage. Without it faces stay at 256 px.")
    recognize: bool = Field(
        False, description="Whether the graph has the Recognize stage, which turns recorded speech into text."
    )


class TTSConfig(Accelerated):
    """Text to speech."""

    engine: str = Field(
        "hibari", description="The voice engine: `hibari`, `coqui`, `openai`, or `module:Class` for one of your own."
    )
    options: dict[str, Any] = Field(default_factory=dict, description=ENGINE_OPTIONS)
    voice: str | None = Field(
        None, description="The voice for requests that name none. Null selects the engine's default voice."
    )
    speed: float = Field(
        1.0, ge=0.5, le=2.0, description="Speaking rate for requests that name none. 1 is the voice's natural rate."
    )
    max_chars: int = Field(2000, ge=1, le=100_000, description="Longest text of one call, in characters.")


class AudioFeaturesConfig(Accelerated):
    """Whisper encoder: speech to feature windows."""

    hung_after_s: float = Field(5.0, gt=0, description=HUNG_AFTER)  # speech of live sessions waits for it
    weights: str = Field(
        f"{EMBEDDED}/whisper",
        description="Folder of the Whisper model: config.json and model.safetensors or pytorch_model.bin.",
    )
    device: str = Field("cpu", description=DEVICE)
    dtype: DType = Field("float32", description=DTYPE)
    context_s: float | None = Field(
        8.0,
        gt=2,
        le=30,
        description="Seconds of speech that the encoder sees at once. A smaller value is faster. Null uses the full "
        "30 s that MuseTalk uses.",
    )
    margin_s: float = Field(
        1.0,
        ge=0,
        le=5,
        description="Seconds at the inner edges of a context whose features are discarded, because the encoder lacks "
        "the neighbouring sound there. Contexts overlap by twice this time, which must be less than context_s.",
    )
    rest_in_silence: bool = Field(
        True, description="Whether long silences get the features of a closed, resting mouth instead of the encoder's."
    )
    plosive_lead_ms: float = Field(
        0.0,
        ge=0,
        le=80,
        description="How many milliseconds before the sound of p, b and m the lips close. It needs an engine that "
        "reports phonemes. 0 keeps the encoder's timing.",
    )
    threads: int = Field(
        1, ge=1, le=64, description="CPU threads of torch. On two busy cores one thread is faster than two."
    )


class LipSyncConfig(Accelerated):
    """UNet and VAE: feature windows and avatar latents to face crops."""

    hung_after_s: float = Field(5.0, gt=0, description=HUNG_AFTER)  # speech of live sessions waits for it
    engine: str = Field(
        "openvino",
        description="The lip-sync engine: `openvino` (CPU), `torch` (CPU or CUDA), or `module:Class` for your own.",
    )
    unet_config: str = Field(UNET_CONFIG, description="JSON file with the configuration of the UNet.")
    unet_weights: str = Field(UNET_WEIGHTS, description="File with the weights of the UNet.")
    vae_dir: str = Field(VAE_DIR, description="Folder of the VAE. Avatars must have been prepared with the same VAE.")
    decoder: Literal["vae", "tiny"] = Field(
        "vae",
        description="`vae` decodes with the VAE. `tiny` decodes with TAESD, which is faster and less sharp; it needs a "
        "Stable Diffusion VAE.",
    )
    decoder_dir: str = Field("weights/taesd", description="Folder of the TAESD weights, used when decoder is `tiny`.")
    decode: Literal["auto", "full", "cropped"] = Field(
        "auto",
        description="Which part of a face is decoded. `full`: all of it. `cropped`: what is pasted. `auto` crops where "
        "that is exact, with tiny VAEs, or where preparation has measured a difference of at most 0.5 grey levels on "
        "average and 4 in 99.9 % of the pixels. The openvino engine crops tiny VAEs; torch crops both with `compile`.",
    )
    device: str = Field("cpu", description=DEVICE + " Used by the torch engine.")
    dtype: DType = Field("float32", description=DTYPE + " Used by the torch engine.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format in which the openvino engine computes. `auto` is bfloat16 where the processor "
        "multiplies such numbers (avx512_bf16 or amx_bf16), which takes less than half of the time; otherwise float32.",
    )
    threads: int = Field(2, ge=1, le=64, description="CPU threads of the engine.")
    compile: Literal["off", "graphs", "inductor"] = Field(
        "off",
        description="Compilation on CUDA, for the torch engine. `graphs` records CUDA graphs. `inductor` also fuses "
        "the UNet's kernels, which is faster but takes up to two minutes at the first start.",
    )
    mouth_amplitude: float = Field(
        1.0,
        ge=0.7,
        le=1.3,
        description="How wide the mouth opens, relative to the model's output. Any value but 1 disables compile.",
    )
    batch_size: int = Field(
        8, ge=1, le=64, description="Most frames in one call of the UNet. They may come from several sessions."
    )
    batch_wait_ms: float = Field(
        2.0, ge=0, le=200, description="Milliseconds that a batch with free places waits for more frames."
    )
    avatars_dir: str = Field(AVATARS_DIR, description=AVATARS_FOLDER)
    avatar_memory_mb: int = Field(
        2048,
        ge=16,
        description="Memory for what is kept of avatars in use, in MB: 0.02 MB per frame, and 0.22 MB where the "
        "decoder is cropped. The least recently used ones are loaded again.",
    )


class EnhanceConfig(Accelerated):
    """Face restoration: 256 px crops to 512 px crops."""

    hung_after_s: float = Field(5.0, gt=0, description=HUNG_AFTER)  # speech of live sessions waits for it
    engine: str = Field(
        "small", description="The restoration engine: `small`, `gfpgan`, `spandrel`, or `module:Class` for your own."
    )
    options: dict[str, Any] = Field(default_factory=dict, description=ENGINE_OPTIONS)
    strength: float = Field(
        1.0, ge=0, le=1, description="0 is plain bicubic upsampling, 1 is the full output of the model."
    )
    batch_size: int = Field(
        8, ge=1, le=64, description="Most crops in one call of the engine. They may come from several sessions."
    )
    batch_wait_ms: float = Field(
        2.0, ge=0, le=200, description="Milliseconds that a batch with free places waits for more crops."
    )
    avatars_dir: str = Field(AVATARS_DIR, description=AVATARS_FOLDER + " Engines that need landmarks read them there.")
    avatar_memory_mb: int = Field(
        1024,
        ge=64,
        description="Memory for decoded frames of avatars in use, in MB: up to 64 MB per avatar. The least recently "
        "used ones are loaded again. For engines that need landmarks.",
    )


class StitchConfig(Supervised):
    """Runs the pipeline of an utterance, pastes faces into frames, encodes fragments, and owns the session files."""

    avatar_id: str = Field("presenter", description="The avatar of sessions that name none.")
    enhance: bool = Field(False, description="Whether faces are enhanced when a request does not say.")
    avatars_dir: str = Field(AVATARS_DIR, description=AVATARS_FOLDER)
    sessions_dir: str = Field("results/sessions", description="Folder of the session files.")
    chunk_frames: int = Field(8, ge=1, le=64, description="Video frames in one call to LipSync.")
    first_chunk_frames: int = Field(
        4,
        ge=1,
        le=64,
        description="Video frames in the first call and the first fragment of an utterance. A small value makes the "
        "first fragment early. The next ones grow by as much, up to chunk_frames.",
    )
    window_chunks: int = Field(3, ge=1, le=32, description="Most calls in flight for one utterance.")
    tries: int = Field(
        4, ge=1, le=10, description="How often a call is tried in all when replicas fail or do not answer in time."
    )
    chunk_timeout_s: float = Field(
        20.0,
        gt=0,
        description="Seconds after which a call is repeated if AudioFeatures, LipSync and Enhance answer nothing at "
        "all. While they answer other calls, a call waits for its turn. A replica that hangs is replaced earlier, see "
        "hung_after_s; `tries` times this value is how long its replacement may take.",
    )
    speech_timeout_s: float = Field(
        30.0, gt=0, description="Seconds without a sentence after which a call of TTS is repeated, as chunk_timeout_s."
    )
    sample_rate_hz: Literal[16000, 22050, 24000, 32000, 44100, 48000] = Field(
        24000, description="Sample rate of the sound of new sessions, in Hz."
    )
    crf: int = Field(
        20,
        ge=0,
        le=40,
        description="Quality of the H.264 video: lower is better and larger. x264's quantiser is 2 less.",
    )
    preset: str = Field("superfast", description="Speed preset of x264, such as `superfast`, `veryfast` or `medium`.")
    encoder: Literal["auto", "libx264", "h264_nvenc"] = Field(
        "auto",
        description="H.264 encoder of new sessions. `auto` takes that of a graphics card if it encodes a few frames, "
        "else x264; a card that is busy is tried again after a minute. A card is visible to Stitch only if `num_gpus` "
        "in its ray_actor_options is above 0. Where the encoder of a session is missing later, x264 continues it.",
    )
    threads: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of utterances that one replica pastes and encodes at a time. Each uses about one core.",
    )
    blend_mode: Literal["feather", "poisson", "multiband"] = Field(
        "feather", description="How the generated face is blended into the frame."
    )
    color_match: bool = Field(
        True, description="Whether the colours of the generated face are adapted to the frame around it."
    )
    sharpness_match: bool = Field(
        True, description="Whether the sharpness of the generated face is adapted to the frame, within limits."
    )
    jaw_follow: bool = Field(
        True, description="Whether mask and chin move down when the generated jaw opens wider than the source's."
    )
    av_offset_ms: float = Field(
        0.0,
        ge=-200,
        le=200,
        description="Milliseconds by which the lips follow their sound. Negative values show them before it.",
    )
    steady_crops: bool = Field(
        True,
        description="Whether a temporal filter removes flicker from the generated face where it does not move. The "
        "lips are not changed.",
    )
    rest_mouth: Literal["auto", "source", "generated"] = Field(
        "auto",
        description="The mouth shown in silences. `source` is the avatar's own, `generated` the model's. `auto` takes "
        "the source, unless its mouth moves there.",
    )
    rest_fade_ms: float = Field(
        120.0, ge=80, le=160, description="Milliseconds of the cross-fade between the two mouths, within the silence."
    )
    rest_pause_ms: float = Field(
        300.0, ge=250, le=5000, description="Shortest silence between words, in milliseconds, in which the mouth rests."
    )
    max_audio_s: float = Field(600.0, gt=0, description="Longest audio that a request may send, in seconds.")
    max_utterances: int = Field(
        32,
        ge=1,
        description="Most utterances that one replica makes at a time. Watched ones and others are counted apart.",
    )
    max_waiting: int = Field(
        32, ge=0, description="Most utterances that wait for a place in max_utterances. Further ones get status 429."
    )
    max_live_load: float | None = Field(
        0.9,
        gt=0,
        le=2,
        description="Share of the measured capacity, in frames per second, that watched sessions may need together. A "
        "session that would need more gets status 429 when it begins to speak. Null never refuses for this reason.",
    )
    min_live: int = Field(
        1, ge=1, description="Watched sessions that may always speak on one replica, whatever its capacity is."
    )
    assumed_live: int = Field(
        2, ge=1, description="Watched sessions that may speak on one replica before its capacity has been measured."
    )
    max_waiting_session: int = Field(
        8, ge=0, description="Most utterances of one session that wait behind its current one. Others get status 429."
    )
    max_sessions: int = Field(10_000, ge=1, description="Most sessions on disk. New ones are refused above it.")
    max_sessions_gb: float = Field(
        100.0, gt=0, description="Most disk space of all sessions together, in GB. Above it new speech is refused."
    )
    session_max_minutes: float = Field(
        240.0, gt=0, description="Longest video of a session, in minutes. A longer session is closed."
    )
    session_idle_hours: float = Field(
        720.0, ge=0, description="Hours without speech or viewers after which a session is deleted. 0 keeps it forever."
    )
    live_ahead_s: float = Field(
        4.0, gt=0.5, le=60, description="How many seconds before it is shown live speech is generated."
    )
    recorded_pause_ms: float = Field(
        1500.0,
        ge=0,
        le=60_000,
        description="Milliseconds of a pause that the session file keeps before and after speech that was shown live. "
        "Up to four times as much more is kept where the head needs it to move without a jump. 0 keeps nothing, and "
        "replays jump.",
    )
    cached_avatars: int = Field(4, ge=1, description="Number of avatars that stay in memory.")
    cached_sessions: int = Field(256, ge=1, description="Number of session files that stay open.")
    frame_cache_mb: int = Field(
        512, ge=16, description="Memory for the decoded frames of each avatar, in MB. 512 MB hold 41 frames in 4K."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="Address of an OpenTelemetry collector, such as `http://collector:4318`, that gets the spans of "
        "utterances over OTLP/HTTP. It needs the extra `tracing`. Null exports none.",
    )
    hung_after_s: float = Field(30.0, gt=0, description=HUNG_AFTER)


class RecognizeConfig(Accelerated):
    """Speech recognition: recordings to text."""

    engine: str = Field(
        "whisper", description="The recognition engine: `whisper`, `openai`, or `module:Class` for one of your own."
    )
    options: dict[str, Any] = Field(default_factory=dict, description=ENGINE_OPTIONS)
    language: str | None = Field(
        None,
        pattern="^[a-z]{2,3}$",
        description="ISO 639-1 code of the language for requests that name none. Null lets the engine detect it.",
    )
    max_audio_s: float = Field(120.0, gt=0, description="Longest recording, in seconds.")
    hung_after_s: float = Field(
        10.0, gt=0, description=HUNG_AFTER + " Both are per second of a recording, and at least for 10 s of it."
    )


class ChatConfig(Strict):
    """Chat jobs and the language model behind them."""

    engine: str = Field(
        "auto",
        description="The language model: `openai` for any OpenAI-compatible server, `offline` for the built-in "
        "responder, or `module:Class`. `auto` selects openai when WARMTALK_LLM_URL is set, otherwise offline.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description=ENGINE_OPTIONS + " They are ignored when `auto` selects offline."
    )
    system_prompt: str = Field(
        "You are a friendly presenter who talks with a viewer face to face. Your answer is spoken aloud: use one to "
        "four short sentences of plain words, without lists, markup, emoji or links.",
        description="System prompt for the language model. An empty text sends none.",
    )
    system_prompts: dict[str, str] = Field(
        default_factory=dict, description="System prompts per avatar id. They replace system_prompt for that avatar."
    )
    max_message_chars: int = Field(4000, ge=1, le=100_000, description="Longest message, in characters.")
    max_history_messages: int = Field(
        40, ge=2, description="Most messages of a session that are kept. The oldest are dropped."
    )
    max_history_chars: int = Field(
        16_000, ge=100, description="Most characters of a session's messages that are kept. The oldest are dropped."
    )
    max_jobs: int = Field(256, ge=1, description="Most unfinished jobs of all sessions. Others get status 429.")
    max_waiting: int = Field(8, ge=1, description="Most unfinished jobs of one session. Others get status 429.")
    job_timeout_s: float = Field(
        300.0, gt=0, description="Most seconds from the start of a job's turn to the last frame of its answer."
    )
    reply_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Most seconds between two words of the language model's answer. After it the answer ends with an "
        "error; what has arrived is spoken. The wait for the first word is limited by the engine and by job_timeout_s.",
    )
    sentence_pause_ms: float = Field(500.0, ge=50, le=10_000, description=SENTENCE_PAUSE)
    keep_hours: float = Field(
        24.0, gt=0, description="Hours after which finished jobs and inactive conversations are deleted."
    )
    chat_dir: str = Field("results/chat", description="Folder of jobs and conversations.")


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

__all__ = [
    "STAGES",
    "AppConfig",
    "AudioFeaturesConfig",
    "AvatarsConfig",
    "ChatConfig",
    "EnhanceConfig",
    "IceServer",
    "IngressConfig",
    "LipSyncConfig",
    "PreparationOptions",
    "RecognizeConfig",
    "StitchConfig",
    "Strict",
    "TTSConfig",
]
