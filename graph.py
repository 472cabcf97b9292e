"""The graph of Serve deployments: one bind line per stage, in the order of the data flow.

text → TTS → AudioFeatures → LipSync → Enhance → Stitch → fragment → client
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from ray import serve

from configs.schema import AppConfig
from deployments.avatars import Avatars
from deployments.chat.deployment import Chat
from deployments.enhance import Enhance
from deployments.features import AudioFeatures
from deployments.ingress.deployment import Ingress
from deployments.lipsync import LipSync
from deployments.recognize import Recognize
from deployments.stitch.deployment import Stitch
from deployments.tts import TTS
from models.errors import ConfigError


def build_app(args: AppConfig | dict[str, Any] | None = None) -> serve.Application:
    """Build the application. Serve config files name this function: `import_path: graph:build_app`.

    Serve applies the options of each deployment (num_gpus, autoscaling_config, user_config …) by the names below.
    Raises ConfigError for args that AppConfig refuses.
    """
    config = _parse_args(args)
    tts = serve.deployment(TTS, name="TTS").bind()
    features = serve.deployment(AudioFeatures, name="AudioFeatures").bind()
    lipsync = serve.deployment(LipSync, name="LipSync").bind()
    enhance = serve.deployment(Enhance, name="Enhance").bind() if config.enhance else None
    stitch = serve.deployment(Stitch, name="Stitch").bind(tts, features, lipsync, enhance)
    avatars = serve.deployment(Avatars, name="Avatars").bind()
    recognize = serve.deployment(Recognize, name="Recognize").bind() if config.recognize else None
    chat = serve.deployment(Chat, name="Chat").bind(stitch)
    return serve.deployment(Ingress, name="Ingress").bind(stitch, avatars, tts, chat, recognize)


def _parse_args(args: AppConfig | dict[str, Any] | None) -> AppConfig:
    try:
        return args if isinstance(args, AppConfig) else AppConfig.model_validate(args or {})
    except ValidationError as error:
        message = f"args of the application: {error.errors()[0]['msg']}."
        raise ConfigError(message, "Correct args in the config file.") from error
