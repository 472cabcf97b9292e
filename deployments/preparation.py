"""The VAE and the options of avatar preparation, from the Avatars stage's config. Used by the stage and by the CLI."""

from __future__ import annotations

import json
import shlex
from typing import Any

import yaml

from configs.schema import AvatarsConfig
from configs.serve_file import ConfigFileError, deployment_of, load_serve_config
from deployments.common.paths import input_path
from deployments.common.stage import parse_config
from models.avatar.prepare import PrepareOptions
from models.errors import ConfigError

SMOOTHING_KEYS = (
    *("smoothing", "smooth_s", "min_cutoff", "beta", "d_cutoff"),
    *("scale_lock_enabled", "scale_lock_warmup_frames", "affine_tracking_enabled", "subpixel_enabled"),
)
OPTION_KEYS = (
    *("fps", "bbox_shift", "extra_margin", "max_seconds", "batch_size"),
    *("geometry", "detector", "parsing_mode", "cheek_width", *SMOOTHING_KEYS),
)

COMMAND_CONFIG = "demo"  # that `warmtalk prepare` reads where none is named
WHAT_KEYS = ("avatar_id", "video_path", "preparation")  # say which avatar, and when; all others say how


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


def configured(name: str, settings: dict[str, Any] | None = None) -> AvatarsConfig:
    """A config file's Avatars stage, with some of its keys replaced. Raises ConfigFileError, ConfigError."""
    given = deployment_of(load_serve_config(name), "Avatars").get("user_config") or {}
    config: AvatarsConfig = parse_config("Avatars", given | (settings or {}))
    return config


def prepare_command(config: AvatarsConfig) -> str:
    """The command line that makes the config's avatar just as the stage would: it names what is not COMMAND_CONFIG's.

    The config must name a video.
    """
    try:
        usual = configured(COMMAND_CONFIG)
    except (ConfigFileError, ConfigError):  # of a file that this stage was not started from
        usual = AvatarsConfig()
    words = ["warmtalk", "prepare", str(config.video_path), "--avatar-id", config.avatar_id]
    for key, value in config.model_dump(exclude=set(WHAT_KEYS)).items():
        if value != getattr(usual, key):
            words += ["--set", f"{key}={_as_yaml(value)}"]
    return shlex.join([*words, "--force"])


def _as_yaml(value: object) -> str:
    """A scalar that YAML reads back as it is."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)
