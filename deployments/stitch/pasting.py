"""What Stitch's config makes of an avatar: its paster, its mouth, how its sessions are coded. Knows no stage."""

from __future__ import annotations

from configs.schema import StitchConfig
from deployments.stitch.utterance import LoadedAvatar
from models.media.encode import MediaSpec
from models.stitch.crop_filter import CropFilter, pasted_box
from models.stitch.mouth import Mouth
from models.stitch.paste import Paster
from models.stitch.rest import RestSettings, own_mouth_rests
from models.types import PreparedAvatar

PASTE_KEYS = {"blend_mode", "color_match", "sharpness_match", "jaw_follow"}  # a change of these makes pasters anew


def loaded(prepared: PreparedAvatar, config: StitchConfig) -> LoadedAvatar:
    """A prepared avatar with what pastes into it. Raises ConfigError for a blend that does not exist."""
    paster = Paster(
        prepared,
        config.blend_mode,
        color_match=config.color_match,
        sharpness_match=config.sharpness_match,
        jaw_follow=config.jaw_follow,
    )
    return LoadedAvatar(prepared, paster, own_mouth_rests(prepared), pasted_box(prepared))


def mouth_of(avatar: LoadedAvatar, config: StitchConfig, fps: int) -> Mouth:
    """The mouth of one utterance."""
    source_rests = avatar.rests if config.rest_mouth == "auto" else config.rest_mouth == "source"
    times_s = (config.rest_fade_ms / 1e3, config.rest_pause_ms / 1e3, config.av_offset_ms / 1e3)
    rest = RestSettings(*times_s, source_rests=source_rests)
    return Mouth(fps, rest, CropFilter(avatar.pasted) if config.steady_crops else None)


def spec_of(prepared: PreparedAvatar, config: StitchConfig) -> MediaSpec:
    """How a new session of an avatar is coded. Raises ConfigError."""
    return MediaSpec.for_source(
        prepared.width,
        prepared.height,
        prepared.fps,
        sample_rate_hz=config.sample_rate_hz,
        crf=config.crf,
        preset=config.preset,
        first_fragment_frames=config.first_chunk_frames,
        fragment_frames=config.chunk_frames,
    )
