"""CropGeometry `musetalk`: integer boxes, MuseTalk's crops and masks, from preparation to the pasted frame."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.avatar import bisenet
from models.avatar.crop_geometry import box_transforms, crop_geometry
from models.avatar.packed_regions import PackedRegions
from models.avatar.parse import FaceParser, masks_of, paste_region
from models.avatar.prepare import PrepareOptions, PrepareReport, prepare_avatar
from models.avatar.store import AvatarStore
from models.avatar.track import TrackOptions, landmarks_in_crop, musetalk_box
from models.errors import ConfigError, WeightsError
from models.geometry import apply, crop_box_of, crop_padded
from models.stitch.musetalk_paste import musetalk_blend, musetalk_material
from models.stitch.paste import Paster
from models.types import PreparedAvatar, UInt8
from tests.support.avatar import FPS, astronaut, fake_encoder, hopper, moved, swaying, write_clip
from tests.support.random_weights import BISENET_WIDTH
from tests.unit.models.stitch.test_paste_region import face_labels

N = 8
OPTIONS = PrepareOptions(geometry="musetalk", copy_video=False, batch_size=3)


class DrawnParser:
    """A fake parser: a drawn face, shifted by the picture's mean; remembers the pictures."""

    def __init__(self) -> None:
        self.seen: list[UInt8] = []

    def labels(self, face_rgb: UInt8) -> np.ndarray:
        self.seen.append(face_rgb)
        return face_labels(int(face_rgb.mean()))


Prepared = tuple[PreparedAvatar, PrepareReport, DrawnParser]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    motions = swaying(astronaut(), N)
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", [moved(astronaut(), m) for m in motions])


@pytest.fixture(scope="module")
def parsed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    store, parser = AvatarStore(tmp_path_factory.mktemp("avatars")), DrawnParser()
    report = prepare_avatar(clip, "eileen", store, fake_encoder, "v", OPTIONS, parser=parser)
    return store.load("eileen"), report, parser


@pytest.fixture(scope="module")
def plain(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedAvatar, PrepareReport, AvatarStore]:
    store = AvatarStore(tmp_path_factory.mktemp("avatars"))
    report = prepare_avatar(clip, "eileen", store, fake_encoder, "v", OPTIONS)
    return store.load("eileen"), report, store


# Boxes and crops


def test_every_frame_has_musetalks_box_of_its_own_landmarks(parsed: Prepared) -> None:
    avatar, report, _ = parsed
    assert avatar.boxes is not None and avatar.boxes.dtype == np.int32 and not avatar.boxes.flags.writeable
    for k in range(N):
        assert avatar.box(k) == musetalk_box(avatar.landmarks[k], 300)
    sides = (avatar.boxes[:, 2:] - avatar.boxes[:, :2]).max(1)
    assert report.crop_px == (sides.min(), round(float(np.median(sides))), sides.max())


def test_latents_are_of_the_box_resized_with_lanczos(parsed: Prepared) -> None:
    avatar, _, _ = parsed
    for k in (0, 3, N - 1):
        x1, y1, x2, y2 = avatar.box(k)
        crop = cv2.resize(avatar.frames[k][y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_LANCZOS4)
        assert np.array_equal(avatar.latents[k], fake_encoder(crop[None])[0].astype(np.float16)), k


def test_box_transforms_agree_with_resizing_the_box() -> None:
    """A linear warp along the transform equals the box resized linearly, up to rounding."""
    boxes = np.array([[131, 77, 340, 299], [40, 10, 300, 470]], np.int32)
    for box, transform in zip(boxes, box_transforms(boxes), strict=True):
        x1, y1, x2, y2 = box
        resized = cv2.resize(hopper()[y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_LINEAR)
        warped = cv2.warpAffine(hopper(), transform.astype(np.float64), (256, 256), flags=cv2.INTER_LINEAR)
        inner = np.abs(resized.astype(int) - warped)[2:-2, 2:-2]
        assert inner.max() <= 6 and inner.mean() < 0.4  # warpAffine rounds positions to 1/32 px
        assert np.allclose(
            apply(transform, np.array([[x1 - 0.5, y1 - 0.5], [x2 - 0.5, y2 - 0.5]])),
            [[-0.5] * 2, [255.5] * 2],
            atol=1e-3,
        )


def test_a_box_at_the_border_is_clipped_to_the_frame() -> None:
    points = np.zeros((3, 68, 2), np.float32)
    points[:] = np.random.default_rng(0).uniform([220, -10], [340, 110], (68, 2))
    geometry = crop_geometry("musetalk", points, np.ones(3, bool), [None] * 3, FPS, (300, 300), TrackOptions())
    x1, y1, x2, _ = geometry.box(0)
    assert (x2, y1) == (300, 0) and x1 == int(points[0, :, 0].min())
    assert geometry.crop(astronaut(), 0).shape == (256, 256, 3)


def test_bbox_shift_and_margin_move_the_box(tmp_path: Path) -> None:
    store = AvatarStore(tmp_path)
    for name, given in {"v15": {}, "v10": {"extra_margin": 0}, "low": {"bbox_shift": 5}}.items():
        cv2.imwrite(str(tmp_path / "a.png"), hopper()[..., ::-1])
        options = PrepareOptions(geometry="musetalk", **given)
        prepare_avatar(tmp_path / "a.png", name, store, fake_encoder, "v", options)
    boxes = {name: store.load(name, frames=False).boxes for name in ("v15", "v10", "low")}
    assert (boxes["v15"] - boxes["v10"]).tolist() == [[0, 0, 0, 10]]
    assert (boxes["low"] - boxes["v15"]).tolist() == [[0, 10, 0, 0]]


# Masks


def test_the_parser_gets_the_square_around_the_box(parsed: Prepared) -> None:
    avatar, _, parser = parsed
    assert len(parser.seen) == N
    for k in range(N):
        assert np.array_equal(parser.seen[k], crop_padded(avatar.frames[k], crop_box_of(avatar.box(k))))


def test_frames_are_pasted_as_by_musetalks_functions(parsed: Prepared) -> None:
    avatar, _, _ = parsed
    paster = Paster(avatar)
    crop = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for k in (0, 5, 0):
        frame, box = avatar.frames[k].copy(), avatar.box(k)
        square = crop_padded(avatar.frames[k], crop_box_of(box))
        mask, crop_box = musetalk_material(avatar.frames[k], box, face_labels(int(square.mean())), "jaw")
        face = cv2.resize(crop, (box[2] - box[0], box[3] - box[1]))
        paster.paste_into(frame, crop, k)
        assert np.array_equal(frame, musetalk_blend(avatar.frames[k], face, box, mask, crop_box)), k
        assert not np.array_equal(frame, avatar.frames[k])


def test_enhanced_crops_are_pasted_at_the_same_place(parsed: Prepared) -> None:
    avatar, _, _ = parsed
    small = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8), (0, 0), 6)
    large = cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC)
    frames = [avatar.frames[0].copy(), avatar.frames[0].copy()]
    for frame, crop in zip(frames, (small, large), strict=True):
        Paster(avatar).paste_into(frame, crop, 0)
    assert np.abs(frames[0].astype(int) - frames[1]).max() <= 3


def test_without_a_parser_the_mask_follows_the_landmarks_with_a_warning(
    plain: tuple[PreparedAvatar, PrepareReport, AvatarStore], parsed: Prepared
) -> None:
    avatar, report, _ = plain
    assert avatar.regions is None and avatar.boxes is not None
    assert any("mask follows the landmarks" in warning for warning in report.warnings)
    assert not any("landmarks" in warning for warning in parsed[1].warnings)
    frame, box = avatar.frames[2].copy(), avatar.box(2)
    Paster(avatar).paste_into(frame, np.full((256, 256, 3), (255, 0, 255), np.uint8), 2)
    share = (frame.astype(float) - avatar.frames[2])[..., 0] / np.maximum(255.0 - avatar.frames[2][..., 0], 1)
    wanted = np.zeros((300, 300))
    mask = cv2.resize(avatar.masks[2], (box[2] - box[0], box[3] - box[1]), interpolation=cv2.INTER_LINEAR)
    wanted[box[1] : box[3], box[0] : box[2]] = mask / 255
    dark = avatar.frames[2][..., 0] < 100
    assert np.abs(share - wanted)[dark].max() < 0.01 and wanted[dark].max() == 1


@pytest.mark.parametrize("picture", [astronaut, hopper])
def test_landmark_and_parsed_masks_agree_on_real_faces(picture: Callable[[], UInt8], tmp_path: Path) -> None:
    """Labels are drawn from the face's own outline: skin within jaw and brows, nose, mouth and lips. Both masks contain
    the whole mouth and nothing above the middle; they differ at cheeks, chin and nose."""
    cv2.imwrite(str(tmp_path / "a.png"), picture()[..., ::-1])
    store = AvatarStore(tmp_path / "avatars")
    prepare_avatar(tmp_path / "a.png", "a", store, fake_encoder, "v", OPTIONS)
    avatar = store.load("a")
    box, points = avatar.box(0), avatar.landmarks[0]
    square = crop_box_of(box)
    drawn = np.zeros((square[3] - square[1], square[2] - square[0]), np.uint8)
    for label, outline in ((1, [*range(17), *range(26, 16, -1)]), (10, [27, 31, 33, 35]), (12, [*range(48, 60)])):
        cv2.fillPoly(drawn, [np.rint(points[outline] - square[:2]).astype(np.int32)], label)
    labels = cv2.resize(drawn, (512, 512), interpolation=cv2.INTER_NEAREST).astype(np.int64)
    whole, _ = musetalk_material(avatar.frames[0], box, labels, "jaw")
    inside = whole[box[1] - square[1] : box[3] - square[1], box[0] - square[0] : box[2] - square[0]]
    theirs = cv2.resize(inside, (256, 256), interpolation=cv2.INTER_AREA).astype(int)
    ours = avatar.masks[0].astype(int)
    assert np.minimum(theirs, ours).sum() / np.maximum(theirs, ours).sum() > 0.7  # measured: 0.78 and 0.80
    mouth = apply(avatar.transforms[0], points[48:68]).round().astype(int)
    assert (ours[mouth[:, 1], mouth[:, 0]] > 250).all() and (theirs[mouth[:, 1], mouth[:, 0]] > 200).all()
    assert not ours[:110].any() and not theirs[:90].any()


def test_the_landmark_mask_uses_landmarks_in_the_boxs_crop(
    plain: tuple[PreparedAvatar, PrepareReport, AvatarStore],
) -> None:
    avatar, _, _ = plain
    track = crop_geometry(
        "musetalk", avatar.landmarks, avatar.has_face, [None] * N, FPS, (300, 300), TrackOptions()
    ).track
    masks, index = masks_of(landmarks_in_crop(track), FPS)
    assert np.array_equal(avatar.masks, masks[index])


# Storage


def test_packed_regions_are_exact_and_small() -> None:
    regions = [paste_region(face_labels(seed), "jaw") for seed in range(5)]
    packed = PackedRegions.pack(regions)
    assert len(packed) == 5
    assert all(np.array_equal(packed[k], region) for k, region in enumerate(regions))
    assert sum(len(part.tobytes()) for part in packed.tensors().values()) < 5 * 4000


def test_frames_without_a_face_have_a_box_and_no_region(tmp_path: Path) -> None:
    frames = [moved(astronaut(), motion) for motion in swaying(astronaut(), 12)]
    frames[5] = np.full_like(frames[5], 128)
    store, parser = AvatarStore(tmp_path / "avatars"), DrawnParser()
    prepare_avatar(write_clip(tmp_path / "a.mp4", frames), "a", store, fake_encoder, "v", OPTIONS, parser=parser)
    avatar = store.load("a")
    assert len(parser.seen) == 11 and not avatar.regions[5].any() and avatar.regions[4].any()
    assert np.abs(avatar.boxes[5] - (avatar.boxes[4] + avatar.boxes[6]) / 2).max() <= 2
    frame = avatar.frames[5].copy()
    Paster(avatar).paste_into(frame, np.zeros((256, 256, 3), np.uint8), 5)
    assert np.array_equal(frame, avatar.frames[5])


def test_regions_are_not_read_without_frames(
    plain: tuple[PreparedAvatar, PrepareReport, AvatarStore], clip: Path, tmp_path: Path
) -> None:
    store = AvatarStore(tmp_path)
    prepare_avatar(clip, "a", store, fake_encoder, "v", OPTIONS, parser=DrawnParser())
    (store.folder("a") / "regions.safetensors").unlink()
    assert store.load("a", frames=False).regions is None


def test_avatars_of_geometry_similarity_have_no_boxes_and_their_settings_no_paths(clip: Path, tmp_path: Path) -> None:
    store = AvatarStore(tmp_path)
    options = PrepareOptions(detector_weights="/somewhere/a.onnx", parser_weights="/somewhere/b.pth")
    prepare_avatar(clip, "a", store, fake_encoder, "v", options)
    avatar = store.load("a")
    assert avatar.boxes is None and avatar.regions is None
    assert store.describe("a")["settings"]["geometry"] == "similarity"
    assert "somewhere" not in (store.folder("a") / "avatar.json").read_text()


# Options


def test_parser_weights_of_the_options_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(bisenet, "BiSeNet", partial(bisenet.BiSeNet, BISENET_WIDTH))
    torch.save(bisenet.BiSeNet().state_dict(), tmp_path / "79999_iter.pth")
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), hopper()[..., ::-1])
    options = PrepareOptions(geometry="musetalk", parser_weights=tmp_path / "79999_iter.pth", parsing_mode="neck")
    store = AvatarStore(tmp_path / "avatars")
    prepare_avatar(picture, "a", store, fake_encoder, "v", options)
    avatar = store.load("a")
    labels = FaceParser.load(tmp_path / "79999_iter.pth").labels(
        crop_padded(avatar.frames[0], crop_box_of(avatar.box(0)))
    )
    assert np.array_equal(avatar.regions[0], paste_region(labels, "neck"))


def test_missing_parser_weights_are_refused_before_any_work(clip: Path, tmp_path: Path) -> None:
    options = PrepareOptions(geometry="musetalk", parser_weights=tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"none\.pth is missing"):
        prepare_avatar(clip, "a", AvatarStore(tmp_path / "avatars"), fake_encoder, "v", options)
    assert not (tmp_path / "avatars").exists()


@pytest.mark.parametrize("wrong", [{"geometry": "square"}, {"detector": "dlib"}, {"parsing_mode": "chin"}])
def test_unknown_names_are_refused_with_the_valid_ones(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="Use one of"):
        PrepareOptions(**wrong)
