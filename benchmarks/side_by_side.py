"""Compares the manual's method with WarmTalk's on one moving clip, with one voice and the same networks.

    python -m benchmarks.side_by_side -o docs/images/manual_vs_ours.png

The clip's motion is known (benchmarks/known_motion.py), so every frame is viewed at the true position of the head, and
any jitter was added by the method. Both are measured on unencoded frames, along the edges of their own masks. Prints a
table and writes a picture.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.common import argument_parser
from benchmarks.known_motion import KnownMotion, known_motion
from benchmarks.manual_method import cut_face, followed_boxes, hard_mask, paste_hard, prepared_box
from benchmarks.speaker import Speaker
from configs.schema import StitchConfig
from deployments.stitch.avatar_cache import load_avatar, mouth_of
from models.avatar.detect import BlazeMesh
from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.geometry import apply, invert, warp
from models.quality.flicker import flicker, greys, ratio
from models.quality.jitter import jitter, percentile_95, rms, shifts
from models.quality.regions import regions_of
from models.quality.seam import seam_delta_e
from models.stitch.paste import PasteMemory, warp_alpha
from models.types import CROP_PX, Float32, PreparedAvatar, Speech, UInt8

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

FACE_PX, FRAMES = 230.0, 75
TEXT = "My mother may buy a big map of Bombay."
ROWS = (("source", "The source"), ("manual", "The manual"), ("ours", "WarmTalk"))
COLOURS = {"source": "#94a3b8", "manual": "#dc2626", "ours": "#2563eb"}


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """The result of one method: frames uint8 `(n, h, w, 3)`, and the weights of the paste `(n, h, w)`."""

    frames: UInt8
    weights: UInt8


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Measurements at the true position of the head. trembling: px per frame, `(n - 2,)`. crops: uint8
    `(n, 256, 256, 3)`. nostril: (x, y) in the crops."""

    crops: UInt8
    nostril: tuple[int, int]
    trembling: Float64
    flicker: float
    seam_delta_e: float

    def numbers(self) -> dict[str, float]:
        return {
            "jitter_rms_px": rms(self.trembling),
            "jitter_p95_px": percentile_95(self.trembling),
            "flicker_times_source": self.flicker,
            "seam_delta_e": self.seam_delta_e,
        }


def prepared(clip: KnownMotion, folder: Path, speaker: Speaker) -> PreparedAvatar:
    """The clip as an avatar, prepared as `warmtalk prepare` does."""
    store, options = AvatarStore(folder / "avatars"), PrepareOptions(fps=clip.fps, batch_size=8)
    video = clip.write(folder / "clip.mp4")
    engine = speaker.engine
    prepare_avatar(video, "moving", store, engine.encode_reference, engine.vae_fingerprint, options)
    return store.load("moving")


def spoken(speaker: Speaker, fps: int, frames: int) -> Speech:
    """TEXT, padded with silence to the length of the clip."""
    said = list(speaker.voice.speak(TEXT))
    samples = np.concatenate([speech.samples for speech in said])
    wanted = round(frames / fps * said[0].sample_rate_hz)
    return Speech(np.pad(samples, (0, max(0, wanted - len(samples))))[:wanted], said[0].sample_rate_hz, TEXT, True)


def our_method(avatar: PreparedAvatar, speaker: Speaker, speech: Speech) -> Rendering:
    """Crops along the avatar's transforms, filtered and pasted by the product's code with the default config."""
    assert avatar.frames is not None and avatar.latents is not None
    faces = speaker.generate(avatar.latents[: len(avatar)], speech, avatar.fps)
    config, size = StitchConfig(rest_mouth="generated"), (avatar.height, avatar.width)  # the manual's mouth never rests
    shown, memory = load_avatar(avatar, config), PasteMemory()
    mouth = mouth_of(shown, config, avatar.fps)
    frames = np.stack([avatar.frames[k] for k in range(len(avatar))])
    weights = np.zeros((len(avatar), *size), np.uint8)
    for k, face in enumerate(faces):
        shown.paster.paste_into(frames[k], mouth.crop(face, 1.0), k, memory=memory)
        alpha = warp_alpha(avatar.transforms[k], avatar.masks[k], size)
        weights[k][alpha.region] = alpha.weights
    return Rendering(frames, weights)


def manual_method(avatar: PreparedAvatar, speaker: Speaker, speech: Speech) -> Rendering:
    """The same frames, speech and networks with the manual's boxes, masks and paste."""
    assert avatar.frames is not None
    frames = np.stack([avatar.frames[k] for k in range(len(avatar))])
    found = list(_landmarks(frames))
    boxes, size = list(followed_boxes(frames, found[0])), (avatar.height, avatar.width)
    cut = [prepared_box(points, size) for points in found]
    crops = np.stack([cut_face(frame, box) for frame, box in zip(frames, cut, strict=True)])
    latents = np.concatenate([_encoded(speaker, crops[k : k + 8]) for k in range(0, len(crops), 8)])
    faces = speaker.generate(latents, speech, avatar.fps)
    masks = np.stack([hard_mask(points, box, size) for points, box in zip(found, boxes, strict=True)])
    whole = zip(frames, faces, boxes, masks, strict=True)
    return Rendering(np.stack([paste_hard(*one) for one in whole]), masks)


def _landmarks(frames: UInt8) -> Iterator[Float32]:
    """The landmarks of each frame independently, as the manual detects them."""
    detector, last = BlazeMesh(), None
    for frame in frames:
        faces = detector.detect(frame, near=last)
        last = faces[0] if faces else last
        assert last is not None, "no face"
        yield last.landmarks


def _encoded(speaker: Speaker, crops: UInt8) -> Any:
    return np.asarray(speaker.engine.encode_reference(crops)).astype(np.float16)


def true_crops(clip: KnownMotion, avatar: PreparedAvatar) -> Float64:
    """Crop transforms that are fixed on the head by its known motion, `(n, 2, 3)`, starting at the avatar's first."""
    first = np.asarray(avatar.transforms[0], np.float64)
    linear = first[:, :2] @ clip.motions[0][:, :2]
    onto = np.concatenate([linear, apply(first, clip.motions[0][:, 2])[:, None]], 1)  # still px → crop px
    back = invert(clip.motions)
    turned = onto[:, :2] @ back[:, :, :2]
    return np.concatenate([turned, apply(onto, back[:, :, 2])[:, :, None]], 2)


def measure(rendering: Rendering, source: UInt8, transforms: Float64, landmarks: Float64, steady: Bool) -> Measured:
    """Jitter of the pasted part relative to the rest; flicker along the edge of the paste; the step across that edge.

    landmarks: of the head at rest, in true crop px. steady: the part that both methods paste and speech does not move.
    """
    crops, own = (
        np.stack([warp(f, t) for f, t in zip(part, transforms, strict=True)]) for part in (rendering.frames, source)
    )
    px = 1 / float(np.sqrt(np.linalg.det(transforms[0, :, :2])))
    regions = regions_of(landmarks, in_crop(rendering.weights[0], transforms[0]))
    trembling = jitter(shifts(crops, steady) - shifts(crops, regions.rigid)) * px
    made, given = (flicker(greys(part), regions.seam).second for part in (crops, own))
    edges = [seam_delta_e(source[k], rendering.frames[k], rendering.weights[k]) for k in range(0, len(source), 3)]
    nostril = round(float(landmarks[[31, 32], 0].mean())), round(float(landmarks[31, 1]))
    return Measured(crops, nostril, trembling, ratio(made, given), float(np.mean(edges)))


def in_crop(weights: UInt8, transform: Float64) -> UInt8:
    """The paste weights of a frame in its true crop."""
    size = (CROP_PX, CROP_PX)
    return cv2.warpAffine(weights, transform, size, flags=cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def compare(clip: KnownMotion, folder: Path) -> dict[str, Measured]:
    """The source, the manual's method and ours on one clip."""
    speaker = Speaker(folder / "sessions")
    avatar = prepared(clip, folder, speaker)
    assert avatar.frames is not None
    speech = spoken(speaker, clip.fps, len(avatar))
    ours, manual = our_method(avatar, speaker, speech), manual_method(avatar, speaker, speech)
    source = np.stack([avatar.frames[k] for k in range(len(avatar))])
    transforms = true_crops(clip, avatar)
    landmarks = np.median(apply(transforms, avatar.landmarks.astype(np.float64)), axis=0)
    masks = [in_crop(rendering.weights[0], transforms[0]) for rendering in (ours, manual)]
    steady = regions_of(landmarks, masks[0]).steady & regions_of(landmarks, masks[1]).steady
    renderings = {"source": Rendering(source, ours.weights), "manual": manual, "ours": ours}
    return {name: measure(one, source, transforms, landmarks, steady) for name, one in renderings.items()}


# --- the picture


def picture(measured: dict[str, Measured], fps: int, path: Path) -> None:
    """Faces, the mouth over time, the jitter of each method, and the figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.2), layout="constrained", facecolor="white")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.75, 1))
    top, bottom = parts
    top.suptitle(
        "One moving head, one voice, the same networks: each face at the true position of the head", fontsize=15, x=0.5
    )
    columns = top.subplots(3, 7, gridspec_kw={"width_ratios": (1, 1, 1, 1, 1, 1, 2.5)})
    shown = _open_mouths(measured["ours"].crops)
    for row, (name, title) in zip(columns, ROWS, strict=True):
        for axes, k in zip(row[:6], shown, strict=True):
            axes.imshow(measured[name].crops[k][60:256, 30:226])
            axes.set(xticks=[], yticks=[])
            if name == "source":
                axes.set_title(f"{k / fps:.2f} s", fontsize=10)
        row[0].set_ylabel(title, fontsize=13, color=COLOURS[name], fontweight="bold")
        _slice(row[6], measured[name], fps, last=name == "ours")
    columns[0][6].set_title("a column of pixels through a nostril, over time", fontsize=10)
    left, right = bottom.subplots(1, 2, gridspec_kw={"width_ratios": (1.5, 1)})
    for name, title in ROWS[1:]:
        at = (np.arange(len(measured[name].trembling)) + 1) / fps
        left.plot(at, measured[name].trembling, color=COLOURS[name], lw=1.3, label=title)
    left.plot(at, measured["source"].trembling, color=COLOURS["source"], lw=1.2, label="The source")
    left.set(xlabel="seconds", ylabel="px", ylim=(0, None), xlim=(0, at[-1]))
    left.set_title("Jitter of the pasted part relative to eyes and nose", fontsize=12)
    left.legend(frameon=False, fontsize=10)
    left.spines[["top", "right"]].set_visible(False)
    _table(right, measured)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=95)


def _open_mouths(crops: UInt8) -> list[int]:
    """Six frames, one per sixth of the clip: where the mouth differs most from its median."""
    mouth = greys(crops)[:, 170:240, 70:186].astype(np.float32)
    differs = np.abs(mouth - np.median(mouth, axis=0)).mean((1, 2))
    parts = np.array_split(np.arange(len(crops)), 6)
    return [int(part[differs[part].argmax()]) for part in parts]


def _slice(axes: Any, measured: Measured, fps: int, last: bool) -> None:
    """A column of pixels through a nostril, over time: a steady paste gives straight lines."""
    x, y = measured.nostril
    rows = slice(y - 20, y + 14)
    column = measured.crops[:, rows, x - 1 : x + 2].mean(2).astype(np.uint8)  # (n, rows, 3)
    extent = (0, len(column) / fps, rows.stop, rows.start)
    axes.imshow(column.transpose(1, 0, 2), aspect="auto", interpolation="nearest", extent=extent)
    axes.set(yticks=[])
    axes.tick_params(labelbottom=last, labelsize=9)
    if last:
        axes.set_xlabel("seconds", fontsize=9)


def _table(axes: Any, measured: dict[str, Measured]) -> None:
    axes.axis("off")
    rows = [
        ("jitter, px rms", "jitter_rms_px", "{:.3f}"),
        ("jitter, px 95 %", "jitter_p95_px", "{:.3f}"),
        ("seam flicker, × source", "flicker_times_source", "{:.2f}"),
        ("seam ΔE above source", "seam_delta_e", "{:.2f}"),
    ]
    numbers = {name: measured[name].numbers() for name, _ in ROWS}
    cells = [[form.format(numbers[name][key]) for name, _ in ROWS] for _, key, form in rows]
    table = axes.table(
        cells,
        rowLabels=[row[0] for row in rows],
        colLabels=[title for _, title in ROWS],
        loc="center",
        cellLoc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(11)
    table.scale(1, 2.1)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#e2e8f0")
        if row == 0:
            cell.get_text().set(color=COLOURS[ROWS[column][0]], fontweight="bold", fontsize=9.5)


def text_table(measured: dict[str, Measured]) -> str:
    """The figures as a Markdown table."""
    lines = ["| | jitter, px rms (95 %) | seam flicker, × source | seam ΔE above source |", "| --- | --- | --- | --- |"]
    for name, title in ROWS:
        n = measured[name].numbers()
        jitter_px = f"{n['jitter_rms_px']:.3f} ({n['jitter_p95_px']:.3f})"
        lines.append(f"| {title} | {jitter_px} | {n['flicker_times_source']:.2f} | {n['seam_delta_e']:.2f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/manual_vs_ours.png"))
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    clip = known_motion(FACE_PX, FRAMES, cut=None)
    with tempfile.TemporaryDirectory() as folder:
        measured = compare(clip, Path(folder))
    picture(measured, clip.fps, arguments.output)
    print(text_table(measured))
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
