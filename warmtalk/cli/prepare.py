"""Prepares an avatar in this process, as the Avatars stage of a config would. Knows no Ray and no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.serve_file import ConfigFileError
from deployments.common.paths import builtin_avatars, output_path
from deployments.preparation import configured, load_model, prepare_options
from models.avatar.prepare import Progress, prepare_avatar
from models.avatar.store import AvatarStore
from models.errors import ConfigError, InputError


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words, values as YAML has them → keys of Avatars' `user_config`. Raises InputError."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (key and equals):
            raise InputError(f"{word!r} is no setting.", "Write KEY=VALUE, as in --set min_cutoff=0.5.")
    return settings


def prepare_here(
    config: str,
    video: Path,
    avatar_id: str,
    force: bool,
    options: dict[str, Any],
    settings: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Prepare `video`; what `PrepareReport.to_dict` gives.

    config: a short name or a path; `settings` replace keys of its Avatars stage, `options` those of OPTION_KEYS, where
    they are not None. Raises ConfigError, ExistsError, VideoError, NoFaceError and other WarmTalkErrors.
    """
    try:
        stage = configured(config, settings)
    except ConfigFileError as error:
        raise ConfigError(str(error)) from error
    store = AvatarStore(output_path(stage.avatars_dir), builtin_avatars())
    store.refuse_existing(avatar_id, force)
    model, chosen = load_model(stage), prepare_options(stage, options)
    report = prepare_avatar(
        video, avatar_id, store, model.encode_reference, model.vae_fingerprint, chosen, force=force, progress=progress
    )
    return report.to_dict()
