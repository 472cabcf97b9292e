"""models.avatar.dwpose: peaks of the network, mapped to the frame, with ONNX files written by the test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from models.avatar import dwpose
from models.avatar.detect import BlazeMesh, open_detector
from models.avatar.dwpose import MIRRORED, DWPose, decode, top_down
from models.avatar.prepare import PrepareOptions, prepare_avatar
from models.avatar.store import AvatarStore
from models.avatar.track import musetalk_box
from models.errors import ConfigError, NoFaceError, WeightsError
from models.types import UInt8
from tests.support import tiny_onnx
from tests.support.avatar import astronaut, fake_encoder, hopper

Float32 = npt.NDArray[np.float32]


def brightest(path: Path, points: int = 133) -> Path:
    """Write a network that puts every point on the brightest column and row of the input's red channel."""
    doubled_x = np.repeat(np.eye(288, dtype=np.float32), 2, axis=1)  # (288, 576): two bins per px
    doubled_y = np.repeat(np.eye(384, dtype=np.float32), 2, axis=1)
    nodes = [
        tiny_onnx.node("Gather", ["input", "red"], ["channel"], axis=1),  # (1, 384, 288)
        tiny_onnx.node("ReduceMax", ["channel"], ["columns"], axes=[1], keepdims=1),  # (1, 1, 288)
        tiny_onnx.node("ReduceMax", ["channel"], ["rows"], axes=[2], keepdims=0),  # (1, 384)
        tiny_onnx.node("Unsqueeze", ["rows", "one"], ["rows_3"]),  # (1, 1, 384)
        tiny_onnx.node("MatMul", ["columns", "doubled_x"], ["x"]),
        tiny_onnx.node("MatMul", ["rows_3", "doubled_y"], ["y"]),
        tiny_onnx.node("Expand", ["x", "shape_x"], ["simcc_x"]),
        tiny_onnx.node("Expand", ["y", "shape_y"], ["simcc_y"]),
    ]
    initializers = {
        "red": np.array(0, np.int64),
        "one": np.array([1], np.int64),
        "doubled_x": doubled_x,
        "doubled_y": doubled_y,
        "shape_x": np.array([1, points, 576], np.int64),
        "shape_y": np.array([1, points, 768], np.int64),
    }
    shapes = {"simcc_x": (1, points, 576), "simcc_y": (1, points, 768)}
    path.write_bytes(tiny_onnx.model(nodes, {"input": (1, 3, 384, 288)}, shapes, initializers))
    return path


class Session:
    """A fake network: peaks of height 5 at `places`, `(133, 2)` in input px; mirrored in every second call."""

    def __init__(self, places: npt.NDArray[np.float64], height: float = 5.0) -> None:
        self.places, self.height, self.pictures = places, height, []

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="input", shape=[1, 3, 384, 288])]

    def run(self, _: None, feed: dict[str, Float32]) -> list[Float32]:
        assert feed["input"].shape == (1, 3, 384, 288) and feed["input"].dtype == np.float32
        self.pictures.append(feed["input"])
        bins = np.rint(2 * self.places).astype(int)
        if len(self.pictures) % 2 == 0:  # the mirrored picture: points in mirrored order at mirrored positions
            bins[dwpose.FACE] = bins[dwpose.FACE][MIRRORED]
            bins[:, 0] = 575 - bins[:, 0]
        x, y = np.zeros((1, 133, 576), np.float32), np.zeros((1, 133, 768), np.float32)
        x[0, np.arange(133), bins[:, 0]] = self.height
        y[0, np.arange(133), bins[:, 1]] = self.height + 1
        return [x, y]


def places_of(points: npt.NDArray[np.floating], frame: UInt8) -> npt.NDArray[np.float64]:
    """Frame px → input px of the network, for the 68 face points; the others are at (0, 0)."""
    transform, _ = top_down(frame.shape[1], frame.shape[0])
    places = np.zeros((133, 2))
    places[23:91] = points @ transform[:, :2].T + transform[:, 2]
    return places


# Geometry


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (288, 384), (1920, 1080), (301, 299)])
def test_the_network_sees_the_whole_frame_enlarged_by_a_quarter(width: int, height: int) -> None:
    """mmpose's GetBBoxCenterScale (padding 1.25) and TopdownAffine, by their three corresponding points."""
    centre, size = np.array([width, height]) / 2, 1.25 * np.array([width, height])
    size = np.array([size[0], size[0] * 4 / 3]) if size[0] > size[1] * 3 / 4 else np.array([size[1] * 3 / 4, size[1]])
    there = np.array([centre, centre - [0, size[0] / 2], centre - [size[0] / 2, size[0] / 2]], np.float32)
    here = np.array([[144, 192], [144, 192 - 144], [0, 192 - 144]], np.float32)
    transform, seen = top_down(width, height)
    assert np.allclose(transform, cv2.getAffineTransform(there, here), atol=1e-4)
    assert np.allclose(seen, size)


@pytest.mark.parametrize("dot", [(333, 120), (60, 400), (250, 250)])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_dot_is_found_at_its_position(tmp_path: Path, dot: tuple[int, int], mirror: bool) -> None:
    frame = np.zeros((480, 640, 3), np.uint8)
    cv2.circle(frame, dot, 6, (255, 90, 90), -1)
    frame = cv2.GaussianBlur(frame, (0, 0), 5)
    points, _ = DWPose.load(brightest(tmp_path / "net.onnx"), mirror=mirror).points(frame)
    px = 640 * 1.25 / 288  # frame px per input px
    assert points.shape == (68, 2) and points.dtype == np.float32
    assert np.abs(points - dot).max() <= px


def test_the_input_is_rgb_normalised_as_imagenet() -> None:
    session = Session(places_of(np.zeros((68, 2)), hopper()))
    frame = np.full((384, 288, 3), (255, 0, 128), np.uint8)
    DWPose(session, mirror=False).points(frame)
    middle = session.pictures[0][0, :, 192, 144]
    wanted = ((255 - 123.675) / 58.395, -116.28 / 57.12, (128 - 103.53) / 57.375)
    assert np.allclose(middle, wanted, atol=1e-5)


# The points


def test_the_face_points_are_keypoints_23_to_90() -> None:
    face = BlazeMesh().detect(hopper())[0].landmarks
    session = Session(places_of(face, hopper()))
    (found,) = DWPose(session, mirror=False).detect(hopper())
    px = 512 * 1.25 / 288
    assert np.abs(found.landmarks - face).max() <= px / 4 + 1e-3  # to the nearest of two bins per px
    assert found.score == 5.0 and found.landmarks.shape == found.mesh.shape == (68, 2)
    assert found.box == (*found.landmarks.min(0).tolist(), *found.landmarks.max(0).tolist())


def test_points_of_the_mirrored_picture_are_swapped_back() -> None:
    """Both pictures' peaks coincide only if flip, order and axis are right; otherwise they have half the height."""
    face = BlazeMesh().detect(astronaut())[0].landmarks
    session = Session(places_of(face, astronaut()))
    pose = DWPose(session)
    (found,) = pose.detect(astronaut())
    assert np.array_equal(session.pictures[1], session.pictures[0][..., ::-1])
    assert found.score == 5.0
    (alone,) = DWPose(Session(places_of(face, astronaut())), mirror=False).detect(astronaut())
    assert np.array_equal(found.landmarks, alone.landmarks)


def test_mirrored_points_are_ibugs() -> None:
    """Points and their mirror images swap, and on a real face they lie on opposite sides of the nose."""
    assert np.array_equal(MIRRORED[MIRRORED], np.arange(68))
    face = BlazeMesh().detect(astronaut())[0].landmarks
    axis = face[[27, 28, 29, 30, 8]].mean(0)[0]
    opposite = (face[:, 0] - axis) * (face[MIRRORED, 0] - axis) <= 25  # px²: for points on the axis
    assert opposite.all()
    assert [int(MIRRORED[k]) for k in (8, 27, 30, 33, 51, 57, 62, 66)] == [8, 27, 30, 33, 51, 57, 62, 66]


def test_peaks_are_the_lower_of_both_axes() -> None:
    x, y = np.zeros((3, 576), np.float32), np.zeros((3, 768), np.float32)
    x[0, 101], y[0, 700] = 3, 2
    x[1, 575], y[1, 767] = 0.5, 0.75
    x[2], y[2] = -1, -2
    places, peaks = decode(x, y)
    assert places.tolist() == [[50.5, 350], [287.5, 383.5], [-0.5, -0.5]]
    assert peaks.tolist() == [2, 0.5, -2]


def test_faint_peaks_are_no_face() -> None:
    places = places_of(BlazeMesh().detect(hopper())[0].landmarks, hopper())
    assert DWPose(Session(places, height=0.29), mirror=False).detect(hopper()) == []
    assert len(DWPose(Session(places, height=0.31), mirror=False).detect(hopper())) == 1


# In use


def test_musetalks_box_comes_from_either_detector(tmp_path: Path) -> None:
    face = BlazeMesh().detect(hopper())[0].landmarks
    cv2.imwrite(str(tmp_path / "a.png"), hopper()[..., ::-1])
    store, options = AvatarStore(tmp_path / "avatars"), PrepareOptions(geometry="musetalk", detector="dwpose")
    detector = DWPose(Session(places_of(face, hopper())))
    prepare_avatar(tmp_path / "a.png", "pose", store, fake_encoder, "v", options, detector=detector)
    prepare_avatar(tmp_path / "a.png", "mesh", store, fake_encoder, "v", PrepareOptions(geometry="musetalk"))
    pose, mesh = store.load("pose"), store.load("mesh")
    assert store.describe("pose")["settings"]["detector"] == "dwpose"
    assert pose.box(0) == musetalk_box(pose.landmarks[0], 480)
    assert np.abs(pose.boxes - mesh.boxes).max() <= 4  # the net's bins are 1.1 px wide; the box sums two


def test_the_detector_is_chosen_by_name(tmp_path: Path) -> None:
    assert isinstance(open_detector("blazemesh"), BlazeMesh)
    assert isinstance(open_detector("dwpose", brightest(tmp_path / "net.onnx")), DWPose)
    with pytest.raises(ConfigError, match="blazemesh, dwpose"):
        open_detector("mediapipe")
    with pytest.raises(WeightsError, match="dw-ll_ucoco_384"):
        open_detector("dwpose")


def test_preparation_loads_the_detector_that_the_options_name(tmp_path: Path) -> None:
    """The network of this test puts all points in one place, which is not a face."""
    cv2.imwrite(str(tmp_path / "a.png"), hopper()[..., ::-1])
    options = PrepareOptions(detector="dwpose", detector_weights=str(brightest(tmp_path / "net.onnx")))
    with pytest.raises(NoFaceError):
        prepare_avatar(tmp_path / "a.png", "a", AvatarStore(tmp_path / "avatars"), fake_encoder, "v", options)


# Files


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.onnx is missing"):
        DWPose.load(tmp_path / "none.onnx")
    path = brightest(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a complete ONNX file"):
        DWPose.load(path)


def test_a_net_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\[1, 17, 576\], not \(1, 133, 576\)"):
        DWPose.load(brightest(tmp_path / "body.onnx", points=17))
