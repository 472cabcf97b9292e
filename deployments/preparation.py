"""The VAE and the options of avatar preparation, from the Avatars stage's config. Used by the stage and by the CLI."""

from __future__ import annotations

from typing import Any

from configs.schema import AvatarsConfig
from deployments.paths import input_path
from models.avatar.prepare import PrepareOptions

STEADINESS_KEYS = (
    *("smoothing", "smooth_s", "min_cutoff", "beta", "d_cutoff"),
    *("scale_lock_enabled", "scale_lock_warmup_frames", "affine_tracking_enabled", "subpixel_enabled"),
)
OPTION_KEYS = (
    *("fps", "bbox_shift", "extra_margin", "max_seconds", "batch_size"),
    *("geometry", "detector", "parsing_mode", "cheek_width", *STEADINESS_KEYS),
)


def load_model(config: AvatarsConfig) -> Any:
    """The MuseTalk model whose VAE encodes an avatar's faces."""
    import torch

    from models.musetalk import MuseTalk

    return MuseTalk.load(
        input_path(config.unet_config),
        input_path(config.unet_weights),
        input_path(config.vae_dir),
        device=config.device,
        dtype=getattr(torch, config.dtype),
    )


def prepare_options(config: AvatarsConfig, overrides: dict[str, Any]) -> PrepareOptions:
    """The config's options of a preparation, with some of OPTION_KEYS replaced (not by None). Raises ConfigError."""
    chosen = {key: getattr(config, key) for key in OPTION_KEYS}
    chosen |= {key: value for key, value in overrides.items() if key in OPTION_KEYS and value is not None}
    parser = input_path(config.parser_weights) if config.parser_weights else None
    return PrepareOptions(
        **chosen,
        detector_weights=input_path(config.detector_weights),
        parser_weights=parser if parser is not None and parser.is_file() else None,
        device=config.device,
    )
