"""The options of avatar preparation, and the config of the Avatars stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.strict import (
    AVATARS_DIR,
    AVATARS_FOLDER,
    DEVICE,
    DTYPE,
    UNET_CONFIG,
    UNET_WEIGHTS,
    VAE_DIR,
    Accelerated,
    DType,
    Strict,
)


class PreparationOptions(Strict):
    """How avatars are prepared. Requests and the command line may override these options for one avatar."""

    bbox_shift: int = Field(
        0,
        ge=-50,
        le=50,
        description="Moves the middle and the upper edge of the face box down, in pixels. Negative values move up.",
    )
    extra_margin: int = Field(
        10, ge=0, le=100, description="Margin below the chin, in pixels. The weights of MuseTalk v1.0 need 0."
    )
    geometry: Literal["similarity", "box", "musetalk"] = Field(
        "similarity",
        description="How faces are cropped. `similarity` follows rotation and size. `box` is MuseTalk's upright box, "
        "smoothed and with sub-pixel precision. `musetalk` uses the original integer boxes, crops and masks per frame.",
    )
    smoothing: Literal["zero_phase", "one_euro", "kalman", "none"] = Field(
        "zero_phase",
        description="Filter for the crop's position over time. `zero_phase` has no delay; `one_euro` and `kalman` are "
        "causal filters.",
    )
    smooth_s: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Width of the zero_phase filter, as a standard deviation in seconds. Null selects 0.04 with "
        "affine tracking and 0.08 without.",
    )
    min_cutoff: float = Field(
        1.0,
        gt=0,
        description="Cutoff frequency of one_euro for a still head, in Hz. Lower values reduce jitter and add delay.",
    )
    beta: float = Field(
        0.7,
        ge=0,
        description="How much the cutoff of one_euro rises with speed, in Hz per px/s. Higher values reduce the delay "
        "while the head moves.",
    )
    d_cutoff: float = Field(
        1.0, gt=0, description="Cutoff frequency of the filter for the speed that beta multiplies, in Hz."
    )
    scale_lock_enabled: bool = Field(
        True, description="Whether all crops of a scene have one size, unless the head really moves closer or away."
    )
    scale_lock_warmup_frames: int = Field(
        0, ge=0, description="Number of first frames whose median size is used for the scale lock. 0 uses all frames."
    )
    affine_tracking_enabled: bool = Field(
        True, description="Whether the landmarks are combined with Lucas-Kanade tracking of the rigid part of the face."
    )
    subpixel_enabled: bool = Field(
        True, description="Whether crops have sub-pixel precision. False rounds them to whole pixels."
    )
    detector: Literal["blazemesh", "dwpose"] = Field(
        "blazemesh", description="The landmark detector. `dwpose` needs the file in detector_weights."
    )
    parsing_mode: Literal["jaw", "raw", "neck"] = Field(
        "jaw", description="Region of the mask when geometry is `musetalk`. MuseTalk v1.0 uses `raw`, v1.5 `jaw`."
    )
    cheek_width: int = Field(
        90, ge=0, le=256, description="Width of the cheeks for parsing_mode `jaw`, in pixels of a 512 px crop."
    )
    fps: Literal[24, 25, 30] = Field(25, description="Frame rate of prepared avatars, and so of their sessions.")
    batch_size: int = Field(4, ge=1, le=64, description="Crops in one call of the VAE.")
    max_seconds: float = Field(120.0, gt=0, description="Longest video that can be prepared, in seconds.")


class AvatarsConfig(PreparationOptions, Accelerated):
    """Avatar preparation. Keys that MuseTalk's manual also has keep their names."""

    avatar_id: str = Field("presenter", description="The avatar that is prepared from video_path at start.")
    video_path: str | None = Field(None, description="Video or picture to prepare at start. Null prepares nothing.")
    preparation: bool = Field(
        True,
        description="Whether a missing or outdated avatar of video_path is prepared at start. False stops with an "
        "error that names the command to run.",
    )
    detector_weights: str = Field(
        "weights/dwpose/dw-ll_ucoco_384.onnx", description="ONNX file of DWPose, used when detector is `dwpose`."
    )
    parser_weights: str | None = Field(
        "weights/face-parse-bisent/79999_iter.pth",
        description="Weights of the face parser, used when geometry is `musetalk`. Without the file, or with null, the "
        "mask follows the landmarks.",
    )
    avatars_dir: str = Field(AVATARS_DIR, description=AVATARS_FOLDER)
    max_avatars: int = Field(
        1000,
        ge=1,
        description="Most avatars that users prepare, with those that are being prepared or wait for it. Built-in ones "
        "do not count. New ones get status 507 above it.",
    )
    max_avatars_gb: float = Field(
        50.0, gt=0, description="Most disk space of these avatars together, in GB. Above it none is prepared."
    )
    vae_dir: str = Field(VAE_DIR, description="Folder of the VAE. It must be the one of LipSync.")
    unet_config: str = Field(UNET_CONFIG, description="JSON file with the configuration of the UNet.")
    unet_weights: str = Field(UNET_WEIGHTS, description="File with the weights of the UNet.")
    device: str = Field("cpu", description=DEVICE)
    dtype: DType = Field("float32", description=DTYPE)
    hung_after_s: float = Field(
        300.0, gt=0, description="Seconds without progress after which a preparation counts as hung and is ended."
    )
