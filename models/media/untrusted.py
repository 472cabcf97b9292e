"""Opens videos and pictures that users send. Sizes are checked in the header, before anything is decoded, and again
after pixel aspect ratio and rotation are applied.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.stream import Disposition
from PIL import Image

from models import MAX_PICTURE_PIXELS
from models.errors import VideoError
from models.media.frames import rgb_array
from models.types import UInt8

MIN_SIDE_PX, MAX_SIDE_PX = 64, 8192
MAX_VIDEO_PIXELS = 8192 * 4320  # DCI 8K: 24 frames with 16 reference frames take 1.8 GB to decode
DECODER_THREADS = 4  # each holds a frame, so the number of cores must not set the memory
MAX_JPEG_SCANS = 100  # progressive JPEGs of cameras and editors have about 10; each scan is a pass over the picture
JPEG_SCAN = b"\xff\xda"  # within coded data, a byte of 255 is followed by 0
# Allowed demuxers. Playlists and concat scripts are excluded, because they make FFmpeg open other files.
# Those of sound are in the list so that the error is "sound but no picture".
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,ivf,flv,asf,ogg,gif,dv,mxf,nut,"
    "wav,w64,aiff,au,flac,mp3,aac,caf,amr"
)
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SCALE = "Scale it down first."


def open_video(path: Path) -> Any:
    """Open a video with PyAV. Raises av.FFmpegError.

    FFmpeg may decode frames to find the properties of a stream; larger ones than MAX_VIDEO_PIXELS are not decoded.
    """
    options = {"format_whitelist": VIDEO_FORMATS, "max_pixels": str(MAX_VIDEO_PIXELS)}
    return av.open(str(path), options=options, metadata_errors="ignore")


def video_stream(container: Any) -> Any:
    """The first video stream that is not the cover picture of an audio file, or None. Raises VideoError for a bad size.

    Its decoder refuses frames above MAX_VIDEO_PIXELS, whatever the header says.
    """
    moving = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    stream = next(moving, None)
    if stream is None:
        return None
    if stream.width and stream.height:  # some formats state no size
        check_size(stream.width, stream.height)
        check_size(*_square_pixels(stream.width, stream.height, stream.sample_aspect_ratio))
    stream.codec_context.options = {"max_pixels": str(MAX_VIDEO_PIXELS)}
    stream.codec_context.thread_count = DECODER_THREADS
    return stream


def check_size(width: int, height: int, max_pixels: int = MAX_VIDEO_PIXELS) -> None:
    """Raises VideoError if a side or the number of pixels is outside the limits."""
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_SIDE_PX:
        raise VideoError(
            f"The frames have {width} × {height} px; each side must be between {MIN_SIDE_PX} and {MAX_SIDE_PX}.",
            "Scale the video first.",
        )
    if width * height > max_pixels:
        raise VideoError(
            f"The frames have {width} × {height} px, that is {width * height / 1e6:.1f} megapixels; at most "
            f"{max_pixels / 1e6:.1f} are allowed.",
            SCALE,
        )


def upright(frame: av.VideoFrame, aspect: Fraction | None = None) -> UInt8:
    """A decoded frame as RGB `(h, w, 3)`, rotated by the file's metadata, with even sides.

    aspect: the pixels' width over their height; frames with other than square pixels are stretched. The last row or
    column of an odd side is dropped, because H.264 halves the chroma. Raises VideoError for a bad size or pixel format.
    """
    check_size(frame.width, frame.height)
    width, height = _square_pixels(frame.width, frame.height, aspect)
    check_size(width, height)
    try:
        rgb = rgb_array(frame)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"Frames in the pixel format {frame.format.name} cannot be converted to RGB.", "Convert the video to H.264."
        ) from error
    if width != frame.width:
        rgb = cast(UInt8, cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA))
    return even(np.rot90(rgb, round(frame.rotation / 90) % 4))  # counter-clockwise, both


def even(frame: UInt8) -> UInt8:
    """Drop the last row or column of an odd side. Coordinates do not change."""
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    return np.ascontiguousarray(frame[:height, :width])


def read_picture(path: Path, flags: int = cv2.IMREAD_COLOR) -> UInt8:
    """The pixels of a PNG, JPEG, WebP or BMP file as OpenCV decodes them. Raises VideoError.

    By default BGR uint8 `(h, w, 3)`: EXIF rotation applied, alpha dropped, 16 bits reduced to 8.
    """
    data = path.read_bytes()
    _check_picture(path.name, data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _damaged(path.name) from error
    if pixels is None:
        raise _damaged(path.name)
    check_size(pixels.shape[1], pixels.shape[0], MAX_PICTURE_PIXELS)
    return cast(UInt8, pixels)


def _check_picture(name: str, data: bytes) -> None:
    """Raises VideoError for a size outside the limits, from the header, and for a JPEG that takes minutes to decode."""
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        allowed = MAX_PICTURE_PIXELS / 1e6
        raise VideoError(
            f"{name} has more than {limit:.0f} megapixels; at most {allowed:.1f} are allowed.", SCALE
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:  # what Pillow raises for damaged headers
        raise _damaged(name) from error
    check_size(width, height, MAX_PICTURE_PIXELS)
    if data.startswith(b"\xff\xd8") and (scans := data.count(JPEG_SCAN)) > MAX_JPEG_SCANS:
        what = f"{name} is a JPEG with {scans} scans; at most {MAX_JPEG_SCANS} are allowed."
        raise VideoError(what, "Save it again without progressive coding.")


def _damaged(name: str) -> VideoError:
    return VideoError(f"{name} is a damaged picture.", "Save it again, or use another file.")


def _square_pixels(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height after a frame is stretched to square pixels."""
    if not aspect or aspect <= 0 or aspect == 1:
        return width, height
    return max(2, round(width * aspect)), height
