"""Two public-domain portraits, moved by known warps, and clips of them, for the tests of models/avatar."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import av
import cv2
import matplotlib.cbook
import numpy as np
import numpy.typing as npt
import skimage.data

from models.media.frames import write_frames
from models.types import UInt8

FPS = 25


@cache
def astronaut() -> UInt8:
    """Eileen Collins (NASA), RGB `(300, 300, 3)`; her face is 109 px high."""
    picture = skimage.data.astronaut()[:300, 80:380]
    return np.ascontiguousarray(picture)


@cache
def hopper() -> UInt8:
    """Grace Hopper (US Navy), RGB `(480, 512, 3)`; her face is 205 px high."""
    picture = cv2.imread(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return np.ascontiguousarray(picture[:480, :, ::-1])


def similarity(
    shape: tuple[int, ...], roll_deg: float = 0, zoom: float = 1, dx: float = 0, dy: float = 0
) -> npt.NDArray[np.float64]:
    """Rotation and zoom about the centre of a picture, then a shift: `(2, 3)`, old px → new px."""
    angle = np.radians(roll_deg)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    return np.concatenate([linear, (middle + np.array([dx, dy]) - linear @ middle)[:, None]], axis=1)


def moved(picture: UInt8, motion: npt.NDArray[np.float64]) -> UInt8:
    size = (picture.shape[1], picture.shape[0])
    return cv2.warpAffine(picture, motion, size, flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)


def swaying(picture: UInt8, n: int, roll_deg: float = 5, zoom: float = 0) -> npt.NDArray[np.float64]:
    """Motions `(n, 2, 3)` of a head that sways: 8 px sideways at 0.6 Hz, 5 px up and down, `roll_deg` at 0.5 Hz."""
    t = np.arange(n) / FPS * 2 * np.pi
    return np.stack(
        [
            similarity(
                picture.shape,
                roll_deg * np.sin(0.5 * time),
                1 + zoom * np.sin(0.4 * time),
                8 * np.sin(0.6 * time),
                5 * np.cos(0.45 * time),
            )
            for time in t
        ]
    )


def write_clip(path: Path, frames: list[UInt8], fps: int = FPS, crf: float = 12) -> Path:
    write_frames(path, frames, fps, crf)
    return path


def write_sound(path: Path) -> Path:
    """Write an MP4 with one second of silence and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def fake_encoder(crops: UInt8) -> npt.NDArray[np.float32]:
    """A fake VAE: eight channels of the crop reduced to 32 px, so that latents can be compared with their crop."""
    small = [cv2.resize(crop, (32, 32), interpolation=cv2.INTER_AREA) for crop in crops]
    stacked = np.stack(small).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return np.concatenate([stacked, stacked, stacked[:, :2]], axis=1)
