"""The base class of all config models, and what several of them share."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EMBEDDED = "models/embedded"  # relative paths are looked up under WARMTALK_HOME first, then beside the code
UNET_CONFIG, UNET_WEIGHTS = f"{EMBEDDED}/musetalk/musetalk.json", f"{EMBEDDED}/musetalk/unet.safetensors"
VAE_DIR = f"{EMBEDDED}/vae"
AVATARS_DIR = "results/avatars"

DType = Literal["float32", "float16", "bfloat16"]

# descriptions of fields that several stages have
ENGINE_OPTIONS = "Keyword arguments for the engine's `load()`. Each engine documents its own."
DEVICE = "Torch device of the models: `cpu`, `cuda` or `cuda:N`."
DTYPE = "Number format of the weights. Use float16 or bfloat16 on a GPU and float32 on a CPU."
SENTENCE_PAUSE = (
    "Milliseconds without further text after which a sentence with its full stop is spoken. Where the mark may not end "
    "the sentence (`Dr.`, `3.`) it takes three times as long."
)
AVATARS_FOLDER = "Folder of the prepared avatars. All stages must name the same one."
HUNG_AFTER = (
    "Seconds after which a call of the compute thread counts as hung, so that the replica is replaced. The limit is "
    "higher where calls take long: four times the 99th percentile of recent calls, or for a first call four times what "
    "it took to load the engine."
)


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


class Supervised(Strict):
    """The limits of a stage with a compute thread."""

    hung_after_s: float = Field(8.0, gt=0, description=HUNG_AFTER)
    load_limit_s: float = Field(
        600.0,
        gt=0,
        description="Most seconds for loading, compiling and warming up an engine. A replica that takes longer is "
        "replaced.",
    )


class Accelerated(Supervised):
    """A stage that may use a GPU."""

    limit_gpu_memory: bool = Field(
        True,
        description="Whether torch may use only the replica's share of the GPU's memory, as num_gpus says. Without the "
        "limit one stage can take the memory of its neighbours. It has no effect without num_gpus.",
    )
