"""models.media.yuv: conversion to RGB and back by BT.709, chroma on the left column, parts equal the whole."""

from __future__ import annotations

import io

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from models.media.frames import VideoFrames, planes, rgb_array, write_frames
from models.media.yuv import PatchedPicture, Picture, picture_at, picture_of, rgb_part, write_part
from models.types import UInt8
from tests.support.avatar import astronaut


@pytest.fixture(scope="module")
def photo() -> UInt8:
    return astronaut()


@pytest.fixture(scope="module")
def decoded(photo: UInt8, tmp_path_factory: pytest.TempPathFactory) -> av.VideoFrame:
    """The photograph after H.264."""
    path = tmp_path_factory.mktemp("yuv") / "photo.mp4"
    write_frames(path, [photo], 25)
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def whole(picture: Picture) -> UInt8:
    height, width = picture.shape
    return rgb_part(picture, (0, 0, width, height))


@pytest.mark.parametrize(
    ("rgb", "coded"),
    [  # ITU-R BT.709-6, 3.3 and 3.4, to 8 bit: 16 + 219 Y', 128 + 224 C'
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((0, 0, 255), (32, 240, 118)),
    ],
)
def test_colours_have_the_levels_of_the_standard(rgb: tuple[int, int, int], coded: tuple[int, int, int]) -> None:
    picture = picture_of(np.full((8, 12, 3), rgb, np.uint8))
    for plane, level in zip(picture.planes, coded, strict=True):
        assert np.abs(plane.astype(int) - level).max() <= 1
    assert np.abs(whole(picture).astype(int) - rgb).max() <= 2


def test_conversion_to_rgb_agrees_with_swscale(decoded: av.VideoFrame) -> None:
    apart = whole(planes(decoded)).astype(int) - rgb_array(decoded)
    assert np.abs(apart.mean((0, 1))).max() < 0.1
    assert np.sqrt((apart**2).mean()) < 1  # where colours meet, kernels differ


def test_repeated_conversion_does_not_shift_chroma(photo: UInt8) -> None:
    """Ten conversions in both directions. Centred chroma would move by a quarter of a sample each time."""
    picture = picture_of(photo)
    red = picture.red.astype(np.float32)
    for _ in range(10):
        picture = picture_of(whole(picture))
    (shift, _), _ = cv2.phaseCorrelate(red, picture.red.astype(np.float32))
    assert abs(shift) < 0.05


def test_a_colour_edge_keeps_its_position() -> None:
    """A red half that starts at an even column: its first chroma samples are weighted 1 2 1, so they are at 3 / 4."""
    photo = np.zeros((8, 16, 3), np.uint8)
    photo[:, 8:, 0] = 200
    row = picture_of(photo).red[2].astype(int)
    low, high = row[0], row[-1]
    assert list(row[:4]) == [low] * 4 and list(row[5:]) == [high] * 3
    assert row[4] == pytest.approx(low + 0.75 * (high - low), abs=1.5)


@pytest.mark.parametrize("part", [(0, 0, 40, 60), (260, 240, 300, 300), (100, 64, 200, 190), (2, 298, 4, 300)])
def test_a_part_equals_that_part_of_the_whole_picture(decoded: av.VideoFrame, part: tuple[int, int, int, int]) -> None:
    picture = planes(decoded)
    x1, y1, x2, y2 = part
    assert np.array_equal(rgb_part(picture, part), whole(picture)[y1:y2, x1:x2])


def test_conversion_to_rgb_and_back_loses_less_than_a_level(decoded: av.VideoFrame) -> None:
    picture = planes(decoded)
    again = picture_of(whole(picture))
    for plane, before in zip(again.planes, picture.planes, strict=True):
        apart = plane.astype(int) - before
        assert abs(apart.mean()) < 0.05 and np.sqrt((apart**2).mean()) < 1
    far = np.abs(again.luma.astype(int) - picture.luma) > 1  # where a colour is beyond RGB
    assert far.mean() < 0.005


def test_unchanged_samples_stay_bit_for_bit(decoded: av.VideoFrame) -> None:
    under = planes(decoded)
    changed = np.zeros((20, 30), np.uint8)
    changed[7, 11] = 255
    drawn = Picture.empty(*under.shape)
    drawn.copy_from(PatchedPicture(under, np.full((20, 30, 3), (0, 255, 0), np.uint8), 100, 50, changed))
    assert {(y, x) for y, x in np.argwhere(drawn.luma != under.luma)} == {(57, 111)}
    for plane, before in ((drawn.blue, under.blue), (drawn.red, under.red)):
        assert {(y, x) for y, x in np.argwhere(plane != before)} == {(28, 55)}
    assert drawn.luma[57, 111] == 173


def test_a_written_part_equals_its_own_conversion(photo: UInt8) -> None:
    picture = Picture.empty(40, 60)
    picture.copy_from(np.zeros((40, 60, 3), np.uint8))
    write_part(picture, photo[:20, :30], 10, 8)
    alone = picture_of(photo[:20, :30])
    assert np.array_equal(picture.luma[8:28, 10:40], alone.luma)
    assert np.array_equal(picture.red[4:14, 5:20], alone.red)
    assert (picture.luma[:8] == 16).all() and (picture.luma[28:] == 16).all()


def test_bands_of_a_large_picture_have_no_edges(photo: UInt8) -> None:
    banded, at_once = picture_of(photo), Picture.empty(300, 300)
    write_part(at_once, photo, 0, 0)
    assert all(np.array_equal(a, b) for a, b in zip(banded.planes, at_once.planes, strict=True))


def test_odd_sides_are_cropped(photo: UInt8) -> None:
    assert picture_of(photo[:41, :31]).shape == (40, 30)


def test_pictures_of_a_video_are_not_converted(photo: UInt8) -> None:
    """A PictureSource gives its own pictures; those of other sources are converted."""
    path = io.BytesIO()
    with av.open(path, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 300, 300, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        frame = av.VideoFrame.from_ndarray(photo, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(io.BytesIO(path.getvalue())) as container:
        stored = next(container.decode(video=0)).to_ndarray()
    got = picture_at(VideoFrames(io.BytesIO(path.getvalue())), 0)
    assert np.array_equal(got.luma, stored[:300])
    assert np.array_equal(got.blue.ravel(), stored[300:375].ravel())
    with pytest.raises(ValueError, match="read-only"):
        got.red[0, 0] = 1
    assert np.array_equal(picture_at(photo[None], 0).luma, picture_of(photo).luma)  # type: ignore[arg-type]
