"""models.restore.tracking and models.restore.video: faces tracked, restored, filtered and pasted in a video."""

import cv2
import numpy as np
import pytest

from models.avatar.detect import BlazeMesh
from models.deflicker import NEW_SHARE, TemporalFilter
from models.errors import InputError
from models.geometry import apply, invert
from models.restore.align import five_points, to_template
from models.restore.small import SmallRestorer
from models.restore.tracking import lookahead_frames, track_faces
from models.restore.video import BOX, Detail, EnhanceOptions, crop_transform, enhance_frames, interpolate_detail
from tests.support.avatar import astronaut, hopper, moved, similarity


@pytest.fixture(scope="module")
def detector() -> BlazeMesh:
    return BlazeMesh()


@pytest.fixture(scope="module")
def restorer() -> SmallRestorer:
    return SmallRestorer.load(threads=1)


def noisy(picture: np.ndarray, n: int, sigma: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 255).astype(np.uint8) for _ in range(n)]


def numbered(frames):
    return ((frame, k) for k, frame in enumerate(frames))


def at_once(function):
    """A `submit` that computes immediately."""

    def submit(faces):
        result = function(faces)
        return lambda: result

    return submit


def plain(faces: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(face, (512, 512), interpolation=cv2.INTER_CUBIC) for face in faces])


# --- tracking


def test_every_frame_is_yielded_once_in_order(detector: BlazeMesh) -> None:
    frames = [astronaut()] * 8 + [np.zeros_like(astronaut())] + [astronaut()] * 3
    out = list(track_faces(numbered(frames), detector, 25, first_index=5))
    assert [item.payload for item in out] == list(range(12))
    assert [item.index for item in out] == list(range(5, 17))
    assert all(item.frame is frame for item, frame in zip(out, frames, strict=True))
    assert [item.transform is None for item in out] == [False] * 8 + [True] + [False] * 3
    assert len({item.shot for item in out}) == 3


def test_a_still_face_jitters_less_than_its_landmarks(detector: BlazeMesh) -> None:
    frames = noisy(astronaut(), 16, 6)
    out = list(track_faces(numbered(frames), detector, 25))
    corners = np.array([[0.0, 0], [511, 0], [0, 511], [511, 511]])
    steady = np.stack([apply(invert(item.transform), corners) for item in out])
    face = detector.detect(frames[0])[0]
    raw = []
    for frame in frames:
        face = detector.detect(frame, near=face)[0]
        raw.append(apply(invert(to_template(five_points(face.landmarks))), corners))
    jitter = [np.abs(np.diff(series, axis=0)).mean() for series in (steady, np.stack(raw))]
    print(f"jitter {jitter[0]:.3f} px, of the landmarks alone {jitter[1]:.3f} px")
    assert jitter[0] < 0.5 * jitter[1] and jitter[0] < 0.1


def test_motion_is_tracked_without_lag(detector: BlazeMesh) -> None:
    motions = [similarity(astronaut().shape, dx=3.0 * k - 20) for k in range(14)]
    out = list(track_faces(numbered([moved(astronaut(), motion) for motion in motions]), detector, 25))
    centre = np.stack([apply(invert(item.transform), np.full(2, 255.5)) for item in out])
    assert np.abs(centre[2:-2, 0] - centre[7, 0] - 3.0 * (np.arange(2, 12) - 7)).max() < 0.6


def test_nothing_is_smoothed_across_a_cut(detector: BlazeMesh) -> None:
    away = moved(astronaut(), similarity(astronaut().shape, dx=70, zoom=0.8))
    out = list(track_faces(numbered([astronaut()] * 4 + [away] * 4), detector, 25))
    assert [item.shot for item in out] == [out[0].shot] * 4 + [out[0].shot + 1] * 4
    alone = list(track_faces(numbered([away] * 4), detector, 25))
    assert np.abs(out[4].transform - alone[0].transform).max() < 1e-6


def test_after_a_second_without_a_face_only_some_frames_are_searched() -> None:
    class Counting:
        frames = 0

        def detect(self, frame, near=None):
            self.frames += 1
            return []

    counting = Counting()
    out = list(track_faces(numbered([np.zeros((64, 64, 3), np.uint8)] * 126), counting, 25))
    assert len(out) == 126 and counting.frames == 26 + 25


def test_the_window_is_bounded_at_any_frame_rate() -> None:
    assert lookahead_frames(25) == 6
    assert lookahead_frames(240) == 24


# --- temporal filter


def test_flicker_falls_by_the_filters_share_and_a_change_passes_at_once() -> None:
    rng = np.random.default_rng(0)
    base = np.full((512, 512, 3), 120, np.uint8)
    steadier = TemporalFilter()
    faces = [np.clip(120 + rng.normal(0, 10, base.shape), 0, 255).astype(np.uint8) for _ in range(24)]
    shown = np.stack([steadier(base, face) for face in faces]).astype(np.float32)
    ratio = np.diff(shown[12:], axis=0).std() / np.diff(np.stack(faces[12:]).astype(np.float32), axis=0).std()
    # Successive values of an exponential mean differ by share · √(2 / (2 − share)) of a face's noise, raw ones by √2.
    assert ratio == pytest.approx(NEW_SHARE / np.sqrt(2 - NEW_SHARE), rel=0.1)
    changed = steadier(np.full_like(base, 180), np.full_like(base, 200))
    assert changed.min() == 200
    steadier.reset()
    assert np.array_equal(steadier(base, faces[0]), faces[0])


def test_detail_is_added_only_where_nothing_changed() -> None:
    base = np.full((512, 512, 3), 100, np.uint8)
    detail = Detail(base, base + 10)
    moved_on = base.copy()
    moved_on[:, 256:] = 160
    face = interpolate_detail(moved_on, detail, None, 0.0)
    assert face[:, :200].min() == 110 and face[:, 320:].max() == 160
    blended = interpolate_detail(base, detail, Detail(base, base + 30), 0.25)
    assert blended.min() == blended.max() == 115


# --- the whole stream


def face_region(detector: BlazeMesh, frame: np.ndarray) -> tuple[slice, slice]:
    x1, y1, x2, y2 = (int(edge) for edge in detector.detect(frame)[0].box)
    return slice(y1, y2), slice(x1, x2)


@pytest.mark.parametrize(("every", "noise"), [(1, 1.0), (3, 4.0)])
def test_enhancement_does_not_raise_the_flicker_of_a_still_face(
    detector: BlazeMesh, restorer: SmallRestorer, every: int, noise: float
) -> None:
    frames = noisy(hopper(), 10, noise)
    region = face_region(detector, hopper())
    options = EnhanceOptions(every=every)
    stream = enhance_frames(numbered(frames), detector, 25, at_once(restorer.restore), options)
    out = [frame for frame, _, _ in stream]
    after, before = (
        np.abs(np.diff(np.stack([frame[region] for frame in series]).astype(float), axis=0)).mean()
        for series in (out, frames)
    )
    print(f"every {every}, noise {noise}: flicker {after:.3f} levels, before {before:.3f}: ratio {after / before:.3f}")
    assert after < 1.05 * before
    change = np.abs(np.stack(out).astype(float).mean(0) - np.stack(frames).astype(float).mean(0))
    assert change[region].mean() > 0.3  # the restorer has an effect


def sharpened(faces: np.ndarray) -> np.ndarray:
    """Detail and noise three times as strong, like a network that invents pores."""
    large = plain(faces).astype(np.float32)
    return np.clip(3 * large - 2 * np.stack([cv2.GaussianBlur(x, (0, 0), 2) for x in large]), 0, 255).astype(np.uint8)


def flickering(faces: np.ndarray) -> np.ndarray:
    """Noise that differs in every frame, stronger than the source's own."""
    noise = np.random.default_rng(int(faces.sum()) % 1000).normal(0, 3, (len(faces), 512, 512, 3))
    return np.clip(plain(faces) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("engine", [sharpened, flickering])
def test_a_flickering_restorer_does_not_raise_the_flicker_of_a_still_face(detector: BlazeMesh, engine) -> None:
    """Stand-ins for GFPGAN, whose weights are not available in tests; they flicker more."""
    frames, region = noisy(hopper(), 10, 1.0), face_region(detector, hopper())
    stream = enhance_frames(numbered(frames), detector, 25, at_once(engine), EnhanceOptions())
    after, before = (
        np.abs(np.diff(np.stack([frame[region] for frame in series]).astype(float), axis=0)).mean()
        for series in ([frame for frame, _, _ in stream], frames)
    )
    alone = np.abs(np.diff(engine(np.stack([frame[:256, :256] for frame in frames])).astype(float), axis=0)).mean()
    print(f"{engine.__name__}: flicker {after / before:.2f} of the source's, of the engine alone {alone / before:.2f}")
    assert alone > 1.5 * before and after < 1.05 * before


def test_a_restorer_that_changes_nothing_does_not_move_the_face(detector: BlazeMesh) -> None:
    soft = cv2.GaussianBlur(hopper(), (0, 0), 2.0)
    (out, _, found), *_ = enhance_frames(numbered([soft] * 3), detector, 25, at_once(plain), EnhanceOptions())
    assert found
    assert np.abs(out.astype(int) - soft).mean() < 0.2
    outside = np.ones(soft.shape[:2], bool)
    outside[face_region(detector, soft)] = False
    assert np.abs(out.astype(int) - soft)[outside].mean() < 0.2


@pytest.mark.parametrize("template", [False, True])
def test_the_engine_gets_crops_or_aligned_faces(detector: BlazeMesh, template: bool) -> None:
    shapes, eyes = [], []

    def look(faces):
        shapes.append(faces.shape)
        found = detector.detect(faces[0])[0]
        eyes.append(five_points(found.landmarks)[:2])
        return np.full((len(faces), 512, 512, 3), 255, np.uint8)

    frames = [hopper()] * 5
    options = EnhanceOptions(template=template, batch=4, strength=0.5)
    out = list(enhance_frames(numbered(frames), detector, 25, at_once(look), options))
    side = 512 if template else 256
    assert shapes == [(4, side, side, 3), (1, side, side, 3)]
    left, _, width = (0, 0, 512) if template else BOX
    assert np.abs((eyes[0][:, 0] * width / side + left) - [192.98, 318.9]).max() < 12
    centre = apply(invert(to_template(five_points(detector.detect(hopper())[0].landmarks))), np.full(2, 300.0))
    x, y = np.rint(centre).astype(int)
    assert np.abs(out[0][0][y, x] - (hopper()[y, x].astype(float) + 255) / 2).max() <= 2


def test_frames_without_a_face_and_strength_0_pass_unchanged(detector: BlazeMesh) -> None:
    empty = [np.full((120, 160, 3), 90, np.uint8)] * 4

    def never(faces):
        raise AssertionError("a face was restored")

    out = list(enhance_frames(numbered(empty), detector, 25, never, EnhanceOptions()))
    assert [found for _, _, found in out] == [False] * 4
    assert all(frame is given for (frame, _, _), given in zip(out, empty, strict=True))
    (frame, _, _), *_ = enhance_frames(numbered([hopper()]), detector, 25, never, EnhanceOptions(strength=0))
    assert np.array_equal(frame, hopper())


def test_every_third_face_goes_through_the_network_and_all_are_enhanced(detector: BlazeMesh) -> None:
    sent = []

    def brighter(faces):
        sent.append(len(faces))
        return np.clip(plain(faces).astype(int) + 20, 0, 255).astype(np.uint8)

    options = EnhanceOptions(every=3, batch=2)
    out = list(enhance_frames(numbered([hopper()] * 8), detector, 25, at_once(brighter), options, first_index=4))
    assert sum(sent) == 1 + 2  # the first of the shot (frame 4), then frames 6 and 9
    region = face_region(detector, hopper())
    rises = [(frame[region].astype(int) - hopper()[region]).mean() for frame, _, _ in out]
    assert min(rises) > 0.9 * max(rises) and min(rises) > 8


def test_calls_overlap_and_frames_keep_their_order(detector: BlazeMesh) -> None:
    under_way, most, order = 0, 0, []

    def submit(faces):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)

        def wait():
            nonlocal under_way
            under_way -= 1
            return plain(faces)

        return wait

    options = EnhanceOptions(batch=1, in_flight=3)
    for _, payload, _ in enhance_frames(numbered([astronaut()] * 9), detector, 25, submit, options):
        order.append(payload)
    assert order == list(range(9))
    assert most == 4


def test_the_number_of_frames_in_memory_is_bounded() -> None:
    class Blind:
        def detect(self, frame, near=None):
            return []

    taken = yielded = most = 0

    def endless():
        nonlocal taken
        for k in range(400):
            taken += 1
            yield np.full((64, 64, 3), k % 256, np.uint8), k

    options = EnhanceOptions(batch=4, in_flight=2)
    for _ in enhance_frames(endless(), Blind(), 25, at_once(plain), options):
        yielded += 1
        most = max(most, taken - yielded)
    assert yielded == 400
    assert most <= lookahead_frames(25) + 4 * (2 + 1)


def test_crop_transforms_map_the_box_of_the_template_to_the_crop() -> None:
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    corners = np.array([[BOX[0] - 0.5, BOX[1] - 0.5], [BOX[0] + BOX[2] - 0.5, BOX[1] + BOX[2] - 0.5]])
    assert np.abs(apply(crop_transform(same, False), corners) - [[-0.5, -0.5], [255.5, 255.5]]).max() < 1e-9
    assert np.abs(apply(crop_transform(same, True), np.array([[-0.5, 511.5]])) - [-0.5, 255.5]).max() < 1e-9


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match="strength 1.5 is not"):
        EnhanceOptions(strength=1.5)
    with pytest.raises(InputError, match="--every 0"):
        EnhanceOptions(every=0)
