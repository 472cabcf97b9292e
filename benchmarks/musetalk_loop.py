"""MuseTalk's own way of working, at the shapes of our benchmarks, for comparison.

    python -m benchmarks.musetalk_loop --out out/gpu     # after `python -m benchmarks.gpu --make-only --out out/gpu`

As scripts/realtime_inference.py of TMElyralab/MuseTalk does: one utterance after another; features of the whole audio
first, from contexts of 30 s; then batches of 20 frames, each through the eager fp16 networks before the next one;
each face goes to the host as float32 and is rounded there; a second thread copies the avatar's frame, resizes the face
to its box, and blends it with Pillow. GFPGAN, which MuseTalk leaves to another program, restores one face at a time in
fp32, as its own inference_gfpgan.py does, with OpenCV's warps before and after. Nothing is encoded.

Prints JSON: frames per second of the networks alone, with blending, and with GFPGAN as well; faces per second of GFPGAN
(both on CUDA only); seconds from a text to the first blended frame, and to the last one.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.common import argument_parser
from models.avatar.playback import ping_pong
from models.avatar.store import AvatarStore
from models.avatar.track import musetalk_box
from models.features import WhisperFeatures
from models.geometry import crop_box_of
from models.musetalk import Generator, load_unet, load_vae
from models.restore.align import FFHQ_512
from models.restore.gfpgan_net import GFPGANNet
from models.speech.audio import resample
from models.tts.hibari import HibariTTS
from models.types import CROP_PX, RESTORED_PX, WHISPER_HZ, Box, UInt8
from models.weights.loading import build_module, load_state_dict

BATCH = 20  # default of --batch_size
FACES = 20  # that GFPGAN restores for its figure
FRAMES = 100  # of the avatar in memory


class Loop:
    """The loaded networks and the avatar's frames, as the script keeps them in memory."""

    def __init__(self, out: Path, device: str, avatar_id: str) -> None:
        weights, dtype = out / "weights", torch.float16 if device == "cuda" else torch.float32
        plain = {"memory_format": torch.contiguous_format}
        unet = load_unet(weights / "musetalkV15/musetalk.json", weights / "musetalkV15/unet.pth", device, dtype)
        self.generator = Generator(unet.to(**plain)).eval()
        self.vae = load_vae(weights / "sd-vae", device, dtype).to(**plain)
        self.whisper = WhisperFeatures.load(weights / "whisper", device, dtype)
        path = weights / "GFPGANv1.4.pth"
        self.gfpgan = build_module(GFPGANNet, load_state_dict(path), path, device, torch.float32)
        self.device, self.dtype = device, dtype
        avatar = AvatarStore(out / "results" / "avatars").load(avatar_id)
        assert avatar.frames is not None and avatar.latents is not None
        count = min(FRAMES, len(avatar))
        self.latents = torch.tensor(avatar.latents[:count]).to(device, dtype)
        self.frames = [np.array(avatar.frames[k]) for k in range(count)]
        self.boxes = [musetalk_box(points, avatar.height) for points in avatar.landmarks[:count]]
        self.masks = [_mask(box) for box in self.boxes]

    def faces(self, windows: torch.Tensor) -> Iterator[UInt8]:
        """Faces `(n ≤ 20, 256, 256, 3)` on the host, batch after batch. windows: `(n, 50, 384)`."""
        for start in range(0, len(windows), BATCH):
            part = windows[start : start + BATCH].to(self.device, self.dtype)
            index = ping_pong(start, len(part), len(self.latents))
            with torch.inference_mode():
                z = self.generator(self.latents[index], part) / self.vae.config.scaling_factor
                image = (self.vae.decode(z, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
                yield (image.cpu().permute(0, 2, 3, 1).float().numpy() * 255).round().astype(np.uint8)

    def blend(self, number: int, face: UInt8) -> UInt8:
        """The avatar's frame with the face, as musetalk/utils/blending.py makes it."""
        index = int(ping_pong(number, 1, len(self.frames))[0])
        (x1, y1, x2, y2), (mask, around) = self.boxes[index], self.masks[index]
        face = cv2.resize(face, (x2 - x1, y2 - y1))
        body = Image.fromarray(self.frames[index].copy())
        large = body.crop(around)
        large.paste(Image.fromarray(face), (x1 - around[0], y1 - around[1]))
        body.paste(large, around[:2], mask)
        return np.array(body)

    def restore(self, face: UInt8) -> UInt8:
        """One face through GFPGAN, aligned and put back with OpenCV's warps."""
        points = (FFHQ_512 - 256) * 0.9 / 2 + 128
        there, _ = cv2.estimateAffinePartial2D(points.astype(np.float32), FFHQ_512.astype(np.float32))
        size = RESTORED_PX, RESTORED_PX
        aligned = cv2.warpAffine(face, there, size, borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
        x = torch.from_numpy(aligned).permute(2, 0, 1).float().div(127.5).sub(1)[None].to(self.device)
        with torch.inference_mode():
            made = self.gfpgan(x)[0].float().clamp(-1, 1).add(1).mul(127.5)
        restored = made.permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)
        back, side = cv2.invertAffineTransform(there), (face.shape[1], face.shape[0])
        edge = cv2.GaussianBlur(np.pad(np.ones((464, 464), np.float32), 24), (0, 0), 11)
        weight = cv2.warpAffine(edge, back, side)[..., None]
        pasted: UInt8 = (weight * cv2.warpAffine(restored, back, side) + (1 - weight) * face).astype(np.uint8)
        return pasted

    def speak(self, windows: torch.Tensor, blend: bool, enhance: bool = False) -> tuple[float, float]:
        """Seconds to the first and to the last frame."""
        begin_s = time.perf_counter()
        waiting: queue.Queue[UInt8 | None] = queue.Queue()
        times_s = list[float]()

        def finish() -> None:
            while (face := waiting.get()) is not None:
                face = self.restore(face) if enhance else face
                if blend:
                    self.blend(len(times_s), face)
                times_s.append(time.perf_counter() - begin_s)

        thread = threading.Thread(target=finish)
        thread.start()
        for batch in self.faces(windows):
            for face in batch:
                waiting.put(face)
        waiting.put(None)
        thread.join()
        return times_s[0], times_s[-1]


def _mask(box: Box) -> tuple[Image.Image, Box]:
    """A mask of the lower face with a blurred edge, and the square of the frame that it covers."""
    around = crop_box_of(box)
    side = around[2] - around[0]
    mask = np.zeros((side, side), np.uint8)
    mask[side // 2 : side * 5 // 6, side // 4 : side * 3 // 4] = 255
    return Image.fromarray(cv2.GaussianBlur(mask, (int(0.1 * side // 2 * 2) + 1,) * 2, 0)), around


def measure(out: Path, device: str, avatar_id: str, text: str) -> dict[str, float]:
    """All figures; see the module."""
    loop, voice = Loop(out, device, avatar_id), HibariTTS.load()

    def windows() -> torch.Tensor:
        spoken = np.concatenate([speech.samples for speech in voice.speak(text)])
        return loop.whisper.windows(resample(spoken, voice.sample_rate_hz, WHISPER_HZ))

    some = windows()
    list(loop.faces(some[: 2 * BATCH]))  # warm up
    begin_s = time.perf_counter()
    some = windows()
    some[0].cpu()
    features_s = time.perf_counter() - begin_s
    _, networks_s = loop.speak(some, blend=False)
    first_s, blended_s = loop.speak(some, blend=True)
    figures: dict[str, Any] = {
        "lipsync": len(some) / networks_s,
        "blended": len(some) / blended_s,
        "first_frame_s": features_s + first_s,
        "last_frame_s": features_s + blended_s,
    }
    if device == "cuda":
        figures["gfpgan"] = _gfpgan_speed(loop)
        figures["enhanced"] = len(some) / loop.speak(some, blend=True, enhance=True)[1]
    return figures


def _gfpgan_speed(loop: Loop) -> float:
    """Faces per second, one after another."""
    face = np.full((CROP_PX, CROP_PX, 3), 128, np.uint8)
    loop.restore(face)  # warm up
    begin_s = time.perf_counter()
    for _ in range(FACES):
        loop.restore(face)
    return FACES / (time.perf_counter() - begin_s)


def main() -> int:
    from benchmarks.concurrency import TEXT

    parser = argument_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder with weights and avatars")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--avatar", default="wide")
    parser.add_argument("--text", default=TEXT)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.out, arguments.device, arguments.avatar, arguments.text)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
