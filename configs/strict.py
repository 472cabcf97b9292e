"""The base class of all config models, and what several of them share."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

EMBEDDED = "models/embedded"  # relative paths are looked up under WARMTALK_HOME first, then beside the code
UNET_CONFIG, UNET_WEIGHTS = f"{EMBEDDED}/musetalk/musetalk.json", f"{EMBEDDED}/musetalk/unet.safetensors"
VAE_DIR = f"{EMBEDDED}/vae"
AVATARS_DIR = "results/avatars"

DType = Literal["float32", "float16", "bfloat16"]

# descriptions of fields that several stages have
ENGINE_OPTIONS = "Keyword arguments for the engine's `load()`. Each engine documents its own."
DEVICE = "Torch device of the models: `cpu`, `cuda` or `cuda:N`."
DTYPE = "Number format of the weights. Use float16 or bfloat16 on a GPU and float32 on a CPU."
AVATARS_FOLDER = "Folder of the prepared avatars. All stages must name the same one."


class Strict(BaseModel):
    """A model that refuses unknown keys and suggests the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"unknown key {key!r}: {hint}known keys are {', '.join(cls.model_fields)}")
        return values
