"""models.avatar.prepare: from a video to a prepared avatar, on real faces moved by known warps."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.avatar.detect import BlazeMesh
from models.avatar.face import Face
from models.avatar.prepare import PrepareOptions, PrepareReport, prepare_avatar
from models.avatar.store import AvatarStore
from models.avatar.track import musetalk_box
from models.errors import ConfigError, ExistsError, IdError, NoFaceError, VideoError
from models.geometry import apply, invert, warp
from models.types import PreparedAvatar, UInt8
from tests.support.avatar import (
    FPS,
    astronaut,
    fake_encoder,
    hopper,
    moved,
    swaying,
    write_clip,
    write_sound,
)

N = 16
MOTIONS = swaying(astronaut(), N)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", [moved(astronaut(), m) for m in MOTIONS])


@pytest.fixture(scope="module")
def detector() -> BlazeMesh:
    return BlazeMesh()


@pytest.fixture(scope="module")
def prepared(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedAvatar, PrepareReport, AvatarStore]:
    store = AvatarStore(tmp_path_factory.mktemp("avatars"))
    report = prepare_avatar(clip, "eileen", store, fake_encoder, "vae-1", PrepareOptions(copy_video=False))
    return store.load("eileen"), report, store


def test_every_frame_has_an_entry_everywhere(prepared: tuple[PreparedAvatar, PrepareReport, AvatarStore]) -> None:
    avatar, report, _ = prepared
    assert (len(avatar), len(avatar.frames), len(avatar.latents), len(avatar.masks)) == (N, N, N, N)
    assert (avatar.fps, avatar.width, avatar.height, avatar.vae_fingerprint) == (25, 300, 300, "vae-1")
    assert avatar.has_face.all() and report.frames == N and report.frames_without_face == 0
    assert report.faces == 1 and report.version == avatar.version


def test_latents_are_of_the_crops_of_the_stored_frames(
    prepared: tuple[PreparedAvatar, PrepareReport, AvatarStore],
) -> None:
    avatar, _, _ = prepared
    for k in (0, 7, N - 1):
        crop = warp(avatar.frames[k], avatar.transforms[k])
        assert np.array_equal(avatar.latents[k], fake_encoder(crop[None])[0].astype(np.float16)), k


def test_the_crop_follows_the_known_motion(prepared: tuple[PreparedAvatar, PrepareReport, AvatarStore]) -> None:
    """Through detector, tracking and two H.264 encodings, the crop's centre stays in place within 0.12 px rms."""
    avatar, report, _ = prepared
    places = apply(invert(MOTIONS), apply(invert(avatar.transforms), np.full((N, 1, 2), 127.5)))[:, 0]
    error = places - places.mean(0)
    assert np.sqrt((error**2).sum(1).mean()) < 0.12
    assert np.sqrt((np.diff(error, 2, axis=0) ** 2).sum(1).mean()) < 0.05
    assert report.tracked > 0.95 and report.cuts == []


def test_the_report_has_sizes_and_a_contact_sheet(
    prepared: tuple[PreparedAvatar, PrepareReport, AvatarStore],
) -> None:
    avatar, report, store = prepared
    assert report.face_px[0] <= report.face_px[1] <= report.face_px[2] and 100 < report.face_px[1] < 118
    x1, y1, x2, y2 = musetalk_box(avatar.landmarks[0], 300)
    assert abs(report.crop_px[1] - max(x2 - x1, y2 - y1)) <= 5
    assert not report.video_copied
    low, high = report.bbox_shift_range
    assert low < 0 < high
    sheet = cv2.imread(report.contact_sheet)
    assert sheet.shape == (2 * 256, 4 * (256 + 256), 3)
    assert report.to_dict()["warnings"] == [] and report.seconds > 0
    assert store.describe("eileen")["settings"]["bbox_shift"] == 0
    assert len(store.describe("eileen")["source"]["sha256"]) == 64


def test_progress_is_reported_in_two_steps(clip: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    options = PrepareOptions(batch_size=7)
    prepare_avatar(
        clip, "a", AvatarStore(tmp_path), fake_encoder, "v", options, progress=lambda *step: seen.append(step)
    )
    finding = [(done, total) for step, done, total in seen if step == "finding faces"]
    encoding = [(done, total) for step, done, total in seen if step == "encoding faces"]
    assert finding == [(k, N) for k in range(1, N + 1)]
    assert encoding == [(7, N), (14, N), (N, N)]


def test_a_picture_is_an_avatar_of_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), hopper()[..., ::-1])
    store = AvatarStore(tmp_path / "avatars")
    report = prepare_avatar(tmp_path / "a.png", "grace", store, fake_encoder, "v")
    avatar = store.load("grace")
    assert report.frames == len(avatar) == len(avatar.frames) == 1
    assert np.abs(avatar.frames[0].astype(int) - hopper()).mean() < 3


def test_frames_without_a_face_are_kept(tmp_path: Path) -> None:
    frames = [moved(astronaut(), motion) for motion in MOTIONS]
    for k in range(6, 10):
        frames[k] = np.full_like(frames[k], 128)
    store = AvatarStore(tmp_path / "avatars")
    report = prepare_avatar(write_clip(tmp_path / "a.mp4", frames), "a", store, fake_encoder, "v")
    avatar = store.load("a")
    assert (~avatar.has_face).nonzero()[0].tolist() == [6, 7, 8, 9]
    assert report.frames_without_face == 4 and "4 of 16 frames show no face" in report.warnings[0]
    assert np.isfinite(avatar.transforms).all() and np.isfinite(avatar.latents.astype(np.float32)).all()
    centres = apply(invert(avatar.transforms), np.full((N, 1, 2), 127.5))[:, 0]
    assert np.abs(np.diff(centres, axis=0)).max() < 6  # interpolated, without a jump


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_too_few_faces_are_refused_and_nothing_is_left(tmp_path: Path, share: float) -> None:
    frames = [astronaut()] * 10
    frames[: int(10 * share)] = [np.full_like(astronaut(), 128)] * int(10 * share)
    store = AvatarStore(tmp_path / "avatars")
    with pytest.raises(NoFaceError, match="any of the 10 frames" if share == 1 else "5 of 10 frames show no face"):
        prepare_avatar(write_clip(tmp_path / "a.mp4", frames), "a", store, fake_encoder, "v")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_of_two_faces_the_largest_is_used_with_a_warning(tmp_path: Path) -> None:
    canvas = np.full((480, 962, 3), 110, np.uint8)
    canvas[:, :512] = hopper()
    canvas[20:470, 512:] = cv2.resize(astronaut(), None, fx=1.5, fy=1.5)
    store = AvatarStore(tmp_path / "avatars")
    report = prepare_avatar(write_clip(tmp_path / "a.mp4", [canvas] * 3), "a", store, fake_encoder, "v")
    assert report.faces == 2 and any("up to 2 faces" in warning for warning in report.warnings)
    assert store.load("a").landmarks[0, 30, 0] < 512


@pytest.mark.parametrize(("scale", "word"), [(2.0, "loses detail"), (0.7, "coarse")])
def test_large_and_small_faces_give_a_warning(tmp_path: Path, scale: float, word: str) -> None:
    picture = cv2.resize(hopper() if scale > 1 else astronaut(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    report = prepare_avatar(tmp_path / "a.png", "a", AvatarStore(tmp_path / "avatars"), fake_encoder, "v")
    assert any(word in warning for warning in report.warnings)


def test_another_frame_rate_gives_a_warning(clip: Path, tmp_path: Path) -> None:
    report = prepare_avatar(clip, "a", AvatarStore(tmp_path), fake_encoder, "v", PrepareOptions(fps=30))
    assert report.frames == round(N / FPS * 30)
    assert any("25 frames per second" in warning for warning in report.warnings)


def test_latents_may_be_a_torch_tensor(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    cv2.imwrite(str(tmp_path / "a.png"), astronaut()[..., ::-1])
    stores = AvatarStore(tmp_path / "one"), AvatarStore(tmp_path / "two")
    prepare_avatar(tmp_path / "a.png", "a", stores[0], fake_encoder, "v")
    prepare_avatar(tmp_path / "a.png", "a", stores[1], lambda crops: torch.from_numpy(fake_encoder(crops)), "v")
    assert stores[0].version("a") == stores[1].version("a")


def test_a_vae_of_another_shape_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut()[..., ::-1])
    with pytest.raises(ConfigError, match=r"\(1, 4, 32, 32\)"):
        prepare_avatar(tmp_path / "a.png", "a", AvatarStore(tmp_path / "b"), lambda c: np.zeros((1, 4, 32, 32)), "v")


class _NoFaces:
    """A detector that must not be called."""

    def detect(self, frame: UInt8, near: Face | None = None) -> list[Face]:
        raise AssertionError("work was done before the id was checked")


def test_ids_are_checked_before_any_work(tmp_path: Path) -> None:
    store, source = AvatarStore(tmp_path / "avatars"), tmp_path / "a.png"
    cv2.imwrite(str(source), astronaut()[..., ::-1])
    with pytest.raises(IdError):
        prepare_avatar(source, "No Good", store, fake_encoder, "v", detector=_NoFaces())
    prepare_avatar(source, "a", store, fake_encoder, "v")
    with pytest.raises(ExistsError):
        prepare_avatar(source, "a", store, fake_encoder, "v", detector=_NoFaces())
    version = store.version("a")
    prepare_avatar(source, "a", store, fake_encoder, "other", force=True)
    assert store.version("a") != version


def test_sound_without_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="has sound but no picture"):
        prepare_avatar(write_sound(tmp_path / "a.mp4"), "a", AvatarStore(tmp_path / "b"), fake_encoder, "v")


@pytest.mark.parametrize(
    "options", [{"fps": 12}, {"batch_size": 0}, {"max_seconds": 0}, {"shape": "round"}, {"smoothing": "no"}]
)
def test_options_out_of_range_are_refused(options: dict, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        prepare_avatar(clip, "a", AvatarStore(tmp_path), fake_encoder, "v", PrepareOptions(**options))


def test_memory_does_not_grow_with_the_video(tmp_path: Path, detector: BlazeMesh) -> None:
    """Four times the frames: at most 2 MB more at the peak, where the frames alone are 4.9 MB more."""
    peaks = []
    for n in (6, 24):
        path = write_clip(tmp_path / f"{n}.mp4", [astronaut()] * n)
        tracemalloc.start()
        prepare_avatar(path, f"a{n}", AvatarStore(tmp_path / "avatars"), fake_encoder, "v", detector=detector)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2 << 20
