"""Makes a contact sheet of a video, as shown in the README.

    python -m benchmarks.sheet out/demo.mp4 -o docs/images/demo.png

The frames are evenly spaced in the video.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import cv2
import numpy as np

from benchmarks.common import argument_parser
from models.types import UInt8


def sheet(video: Path, columns: int, rows: int, side_px: int) -> UInt8:
    """Evenly spaced frames of a video, RGB `(rows × h, columns × w, 3)`."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    chosen = np.linspace(0, len(frames) - 1, columns * rows + 2).astype(int)[1:-1]
    height = round(side_px * frames[0].shape[0] / frames[0].shape[1])
    small = [cv2.resize(frames[k], (side_px, height), interpolation=cv2.INTER_AREA) for k in chosen]
    return np.vstack([np.hstack(small[row * columns : (row + 1) * columns]) for row in range(rows)])


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/demo.png"))
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--side-px", type=int, default=200, help="width of a frame on the sheet")
    arguments = parser.parse_args()
    picture = sheet(arguments.video, arguments.columns, arguments.rows, arguments.side_px)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(arguments.output), picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{arguments.output}: {picture.shape[1]}×{picture.shape[0]} px")
    return 0


if __name__ == "__main__":
    sys.exit(main())
