"""The H.264 encoders: x264, which every machine has, and those of graphics cards.

A session keeps one init segment, and so the parameter sets (SPS and PPS) in it. Those of x264 follow from its settings.
Those of a graphics card depend on the card and its driver, so they are part of the session's spec: any process can make
the init segment, with or without the card. Beside them the init segment holds x264's, under another id. A replica whose
card is missing, busy or makes other parameter sets continues the session with x264, and the file stays playable.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import av.logging
import numpy as np
from av.video.frame import PictureType
from cachetools.func import ttl_cache

from models.errors import ConfigError
from models.media.frames import BT709, LIMITED, planes
from models.media.mp4 import length_prefixed, nal_units
from models.media.spec import X264, MediaSpec
from models.media.yuv import AnyFrame

log = logging.getLogger(__name__)

NVENC = "h264_nvenc"
GLOBAL_HEADER = 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER: parameter sets go into the init segment, not into the frames
COLOUR = "colorprim=bt709:transfer=bt709:colormatrix=bt709:fullrange=off"
# qp: one quantiser for all frames. x264's crf finds the complexity of each frame on a reduced copy, which takes 15 % of
# the time. It gives camera footage the quantiser crf − 1.5, and calm or enlarged footage a finer one, with up to twice
# the bits for a difference that nobody sees (50 dB of PSNR and more).
# aq-mode=0: adaptive quantisation gives bits to flat walls and takes them from the face. Without it, at the same size,
# the face has 1.3 dB more PSNR and 13 % less flicker (python -m benchmarks.stitch --presets).
QP_BELOW_CRF, FINEST_QP = 2, 1  # qp 0 is lossless, which needs another profile
X264_PARAMS = f"keyint=infinite:scenecut=0:bframes=0:aq-mode=0:{COLOUR}"
# What the preset spends time on and a talking head does not need: 85 % of the time for 7 % more bits.
FASTER = {"superfast": ":cabac=0:8x8dct=0:weightp=0"}
LENGTH_PREFIXED = ":annexb=0"  # x264 writes samples as MP4 stores them
SECOND_ID = ":sps-id=1"  # of x264's parameter sets beside those of a graphics card, which have id 0
NVENC_OPTIONS = {
    "preset": "p4",
    "tune": "ll",
    "rc": "vbr",
    "b": "0",
    "delay": "0",
    "zerolatency": "1",
    "forced-idr": "1",
}
IDR = 5  # nal_unit_type
PROBE_PX, PROBE_FRAMES, PROBE_GOP = 256, 6, 3
RETRY_S = 60.0  # after which a card that was busy is tried again
REFUSED_FOR_GOOD = ("Cannot load", "unsupported device", f"has no {NVENC}")  # no driver; a card without an encoder


class H264Encoder:
    """Encodes frames as H.264 samples in MP4 form, without B-frames and lookahead.

    Uses the spec's encoder, or x264 where that cannot continue the session; `name` is the one in use.
    Raises: ConfigError if x264 rejects its settings.
    """

    def __init__(self, spec: MediaSpec) -> None:
        self.name, self._codec = _open(spec)
        self._frame = av.VideoFrame(spec.width, spec.height, "yuv420p")  # reused for all frames: encoders copy it
        self._picture = planes(self._frame)
        self._count = 0

    def encode(self, frame: AnyFrame, key: bool) -> list[bytes]:
        """Add a frame; return the samples that are complete. x264 returns each frame at once."""
        self._picture.copy_from(frame)
        self._frame.pts, self._count = self._count, self._count + 1
        self._frame.pict_type = PictureType.I if key else PictureType.NONE
        return self._samples(self._codec.encode(self._frame))

    def finish(self) -> list[bytes]:
        """The samples that are still missing."""
        return self._samples(self._codec.encode(None))

    def _samples(self, packets: list[av.Packet]) -> list[bytes]:
        form = bytes if self.name == X264 else lambda packet: length_prefixed(bytes(packet))
        return [form(packet) for packet in packets]


def parameter_sets(spec: MediaSpec) -> bytes:
    """SPS and PPS of a session's init segment, in Annex B form. Needs no graphics card. Raises ConfigError."""
    if spec.encoder == X264:
        return bytes(_open_x264(spec).extradata)
    return bytes.fromhex(spec.parameter_sets) + bytes(_open_x264(spec, SECOND_ID).extradata)


def _now_s() -> float:
    return time.monotonic()


@ttl_cache(maxsize=64, ttl=RETRY_S, timer=lambda: _now_s())
def with_encoder(spec: MediaSpec, encoder: str) -> MediaSpec:
    """The spec of a new session with this encoder, or with x264 if the encoder rejects the size."""
    if encoder == X264:
        return spec
    try:
        return _card_spec(spec, encoder)
    except (av.FFmpegError, ValueError) as error:
        log.warning("New sessions of %d×%d px use libx264: %s.", spec.width, spec.height, _reason(encoder, error))
        return spec


@lru_cache(maxsize=64)  # errors are not cached
def _card_spec(spec: MediaSpec, encoder: str) -> MediaSpec:
    codec = _open_hardware(spec, encoder)
    return replace(spec, encoder=encoder, parameter_sets=bytes(codec.extradata).hex())


def choose_encoder(setting: str) -> tuple[str, str]:
    """The encoder of new sessions for `encoder` in the config, and why it is that one.

    Raises: ConfigError if a graphics card's encoder is required and cannot be used.
    """
    if setting == X264:
        return X264, "as configured"
    refused = probe(NVENC)
    if not refused:
        return NVENC, "it encodes here" if setting == "auto" else "as configured"
    if setting == "auto":
        return X264, refused
    raise ConfigError(
        f"The encoder {setting} cannot be used: {refused}.",
        "Set encoder to auto or libx264. A graphics card is visible to Stitch only if num_gpus in its "
        "ray_actor_options is above 0, and its encoder needs the card's driver.",
    )


_refusals: dict[str, tuple[float, str]] = {}  # encoder → when it was probed, and why it cannot be used, or ""


def probe(name: str) -> str:
    """Encode a few frames with a graphics card's encoder, once. Returns why it cannot be used, or "".

    A card that may be busy is tried again after RETRY_S, on another thread: that can take half a second, and speech
    waits for this answer.
    """
    if name not in _refusals:
        _probe_now(name)
    probed_s, reason = _refusals[name]
    if reason and not any(part in reason for part in REFUSED_FOR_GOOD) and _now_s() - probed_s > RETRY_S:
        _refusals[name] = _now_s(), reason  # so that one thread tries
        threading.Thread(target=_probe_now, args=(name,), name="encoder probe", daemon=True).start()
    return reason


def _probe_now(name: str) -> None:
    try:
        encode_test_frames(name)
        reason = ""
    except (av.FFmpegError, ValueError) as error:
        reason = _reason(name, error)
    except ConfigError as error:
        reason = error.message
    _refusals[name] = _now_s(), reason


def encode_test_frames(name: str) -> None:
    """Raises av.FFmpegError, ValueError if PyAV does not have the encoder, ConfigError for unexpected frames."""
    codec = _open_hardware(MediaSpec(PROBE_PX, PROBE_PX, 25), name)
    frame, packets = av.VideoFrame(PROBE_PX, PROBE_PX, "yuv420p"), []
    for plane in frame.planes:
        np.frombuffer(plane, np.uint8)[:] = 128  # type: ignore[call-overload]
    for k in range(PROBE_FRAMES):
        frame.pts, frame.pict_type = k, PictureType.NONE if k % PROBE_GOP else PictureType.I
        packets += codec.encode(frame)
    packets += codec.encode(None)
    keys = [k for k, packet in enumerate(packets) if any(unit[0] & 31 == IDR for unit in nal_units(bytes(packet)))]
    if len(packets) != PROBE_FRAMES or keys != [*range(0, PROBE_FRAMES, PROBE_GOP)] or not codec.extradata:
        made = f"{name} made {len(packets)} frames, keyframes {keys}, of {PROBE_FRAMES}."
        raise ConfigError(made, "Set encoder to libx264.")


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ValueError) and not isinstance(error, av.FFmpegError):
        return f"PyAV {av.__version__} has no {name}"
    details = getattr(error, "log", None)
    return f"{name}: {(details[2] if details else str(error)).strip()}"


def _open(spec: MediaSpec) -> tuple[str, Any]:
    """The spec's encoder if it makes the parameter sets of the spec, else x264."""
    if spec.encoder == X264:
        return X264, _open_x264(spec, LENGTH_PREFIXED)
    try:
        codec = _open_hardware(spec, spec.encoder)
        if bytes(codec.extradata).hex() == spec.parameter_sets:
            return spec.encoder, codec
        reason = f"{spec.encoder} makes other parameter sets here"
    except (av.FFmpegError, ValueError) as error:
        reason = _reason(spec.encoder, error)
    log.warning("A session that was begun with %s continues with libx264: %s.", spec.encoder, reason)
    return X264, _open_x264(spec, SECOND_ID + LENGTH_PREFIXED)


def _open_x264(spec: MediaSpec, more: str = "") -> Any:
    options = {
        "preset": spec.preset,
        "tune": "zerolatency",
        "qp": str(max(spec.crf - QP_BELOW_CRF, FINEST_QP)),
        "forced-idr": "1",
        "x264-params": X264_PARAMS + FASTER.get(spec.preset, "") + more,
    }
    try:
        return _opened(X264, spec, options)
    except av.FFmpegError as error:
        raise ConfigError(f"x264 rejects its settings: {error}.", "Check preset, crf and size.") from error


def _open_hardware(spec: MediaSpec, name: str) -> Any:
    """Raises av.FFmpegError, and ValueError if PyAV does not have the encoder."""
    options = {**NVENC_OPTIONS, "cq": str(spec.crf)}
    av.logging.set_level(av.logging.ERROR)  # so that an error carries FFmpeg's reason, such as a missing driver
    try:
        with av.logging.Capture():  # the reason goes into our own messages, not to stderr
            return _opened(name, spec, options)
    finally:
        av.logging.set_level(None)


def _opened(name: str, spec: MediaSpec, options: dict[str, str]) -> Any:
    codec: Any = av.CodecContext.create(name, "w")
    codec.width, codec.height, codec.pix_fmt = spec.width, spec.height, "yuv420p"
    codec.framerate, codec.time_base = Fraction(spec.fps), Fraction(1, spec.fps)
    codec.thread_count = spec.threads
    codec.flags |= GLOBAL_HEADER
    if name != X264:  # x264 has its own parameters for these
        codec.gop_size, codec.max_b_frames = 2 * spec.fragment_frames + 1000, 0  # only forced keyframes
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = LIMITED
    codec.options = options
    codec.open()
    return codec
