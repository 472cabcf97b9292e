"""The model and the options of avatar preparation, from the config of Avatars. Used by that stage and by the CLI."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from configs.schema import AvatarsConfig, PreparationOptions
from configs.serve_file import ConfigFileError, deployment_of, load_serve_config
from configs.strict import Accelerated
from deployments.common.paths import cache_dir, input_path
from deployments.common.stage import parse_config
from models.avatar.decoding import MeasureDecoding, measure_decoding
from models.avatar.prepare import PrepareOptions, PrepareReport, Progress, prepare_avatar
from models.avatar.quota import AvatarQuota
from models.avatar.store import AvatarStore
from models.errors import ConfigError
from models.weights.loading import read_json
from models.weights.vae_files import vae_files

SMOOTHING_KEYS = (
    *("smoothing", "smooth_s", "min_cutoff", "beta", "d_cutoff"),
    *("scale_lock_enabled", "scale_lock_warmup_frames", "affine_tracking_enabled", "subpixel_enabled"),
)
OPTION_KEYS = tuple(PreparationOptions.model_fields)  # options that one preparation may override

COMMAND_CONFIG = "demo"  # the config that `warmtalk prepare` reads by default
LIMIT_KEYS = ("max_avatars", "max_avatars_gb")
# which avatar is prepared and when, and limits of the stage; the other keys say how
NOT_HOW_KEYS = ("avatar_id", "video_path", "preparation", *LIMIT_KEYS, *Accelerated.model_fields)


def load_model(config: AvatarsConfig) -> Any:
    """The MuseTalk model whose VAE encodes an avatar's faces: OpenVINO's on a CPU, torch's on other devices."""
    paths = (input_path(config.unet_config), input_path(config.unet_weights), input_path(config.vae_dir))
    if config.device == "cpu":
        from models.musetalk_openvino import OpenVINOMuseTalk

        return OpenVINOMuseTalk.load(*paths, cache_dir=cache_dir(), warm=False)
    import torch

    from models.musetalk import MuseTalk

    return MuseTalk.load(*paths, device=config.device, dtype=getattr(torch, config.dtype))


def prepare_video(
    config: AvatarsConfig,
    model: Any,
    source: Path,
    avatar_id: str,
    store: AvatarStore,
    options: PrepareOptions,
    force: bool,
    progress: Progress,
) -> PrepareReport:
    """Prepare a video with the model of `load_model`. Raises what prepare_avatar does."""
    measure = decoding_measure(config, model)
    how = (store, model.encode_reference, model.vae_fingerprint, options)
    return prepare_avatar(source, avatar_id, *how, force=force, progress=progress, measure_decoding=measure)


def decoding_measure(config: AvatarsConfig, model: Any) -> MeasureDecoding | None:
    """What measures the cropped decoder of the model's VAE; None for a tiny VAE, whose crop is exact."""
    settings = read_json(vae_files(input_path(config.vae_dir))[0])
    return None if settings.get("_class_name") == "AutoencoderTiny" else partial(measure_decoding, model)


def quota_of(config: AvatarsConfig) -> AvatarQuota:
    """The limits on the avatars that users prepare."""
    return AvatarQuota(config.max_avatars, config.max_avatars_gb * 2**30)


def prepare_options(config: AvatarsConfig, overrides: dict[str, Any]) -> PrepareOptions:
    """The preparation options of a config, with overrides of OPTION_KEYS (None: no override). Raises ConfigError."""
    chosen = {key: getattr(config, key) for key in OPTION_KEYS}
    chosen |= {key: value for key, value in overrides.items() if key in OPTION_KEYS and value is not None}
    parser = input_path(config.parser_weights) if config.parser_weights else None
    return PrepareOptions(
        **chosen,
        detector_weights=input_path(config.detector_weights),
        parser_weights=parser if parser is not None and parser.is_file() else None,
        device=config.device,
    )


def load_avatars_config(name: str, settings: dict[str, Any] | None = None) -> AvatarsConfig:
    """The config of Avatars in a config file, with some keys replaced. Raises ConfigFileError, ConfigError."""
    given = deployment_of(load_serve_config(name), "Avatars").get("user_config") or {}
    config: AvatarsConfig = parse_config("Avatars", given | (settings or {}))
    return config


def prepare_command(config: AvatarsConfig) -> str:
    """The command line that prepares the config's avatar exactly as the stage would.

    It lists the settings that differ from COMMAND_CONFIG. The config must name a video.
    """
    try:
        default = load_avatars_config(COMMAND_CONFIG)
    except (ConfigFileError, ConfigError):  # that file may be broken: this stage was started from another one
        default = AvatarsConfig()
    words = ["warmtalk", "prepare", str(config.video_path), "--avatar-id", config.avatar_id]
    for key, value in config.model_dump(exclude=set(NOT_HOW_KEYS)).items():
        if value != getattr(default, key):
            words += ["--set", f"{key}={_as_yaml(value)}"]
    return shlex.join([*words, "--force"])


def _as_yaml(value: object) -> str:
    """The value as YAML text that is read back as the same value."""
    return value if isinstance(value, str) and yaml.safe_load(value) == value else json.dumps(value)
