"""`warmtalk prepare`: prepares an avatar in this process, as the Avatars stage of a config would, or on a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.serve_file import ConfigFileError
from deployments.common.paths import builtin_avatars, output_path
from deployments.preparation import load_avatars_config, load_model, prepare_options, prepare_video, quota_of
from models.avatar.prepare import Progress
from models.avatar.store import AvatarStore
from models.errors import ConfigError, InputError
from warmtalk.cli.terminal import StepProgress
from warmtalk.client.sync_client import Client


def settings_of(assignments: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` arguments, values in YAML, as keys of the `user_config` of Avatars. Raises InputError."""
    settings: dict[str, Any] = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (key and equals):
            raise InputError(f"{word!r} is not a setting.", "Write KEY=VALUE, for example --set min_cutoff=0.5.")
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
    """Prepare `video`; return `PrepareReport.to_dict()`. Needs no Ray.

    config: a short name or a path. settings: replace keys of its Avatars stage. options: preparation options, by the
    names of Client.prepare; None keeps the config's value. Raises ConfigError, ExistsError, VideoError, NoFaceError
    and other WarmTalkErrors.
    """
    try:
        stage = load_avatars_config(config, settings)
    except (ConfigFileError, ConfigError) as error:
        message = error.message if isinstance(error, ConfigError) else str(error)
        raise ConfigError(message, "Correct the config file or the --set options.") from error
    store = AvatarStore(output_path(stage.avatars_dir), builtin_avatars(), quota=quota_of(stage))
    store.refuse_existing(avatar_id, force)
    model, chosen = load_model(stage), prepare_options(stage, options)
    return prepare_video(stage, model, video, avatar_id, store, chosen, force, progress).to_dict()


def prepare_on_server(
    url: str, video: Path, avatar_id: str, force: bool, options: dict[str, Any], progress: StepProgress
) -> dict[str, Any]:
    """Upload `video` to a running server, follow its progress, and return the report. Raises ServerError."""
    with Client(url, tries=1) as client:
        prepared = client.prepare(
            video,
            avatar_id,
            lambda event: progress(event.step, event.done, event.total),
            force=force,
            **{key: value for key, value in options.items() if value is not None},  # type: ignore[typeddict-item]
        )
    return prepared.report
