"""models.media.frames: H.264 frames that can be read in any order."""

import io
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from models.errors import CorruptError
from models.media.frames import GOP_BYTES, VideoFrames, gop_frames, rgb_array, write_frames
from models.types import UInt8
from tests.support.avatar import astronaut, moved, swaying

N = 30
FRAME_BYTES = 320 * 300 * 3 // 2  # as it is kept: coded, rows padded to whole 64 px


@pytest.fixture(scope="module")
def pictures() -> list[UInt8]:
    return [moved(astronaut(), motion) for motion in swaying(astronaut(), N)]


@pytest.fixture(scope="module")
def clip(pictures: list[UInt8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames") / "frames.mp4"
    assert write_frames(path, pictures, 25) == N
    return path


def played(path: Path) -> list[UInt8]:
    """The slow implementation: decode the whole file in order."""
    with av.open(str(path)) as container:
        return [rgb_array(frame) for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    "order",
    [
        range(N),
        range(N - 1, -1, -1),
        np.random.default_rng(3).permutation(N).tolist(),
        [0, N - 1, 12, 11, 12, 23, 24, 0],
    ],
    ids=["forward", "backward", "shuffled", "over the edges of groups"],
)
@pytest.mark.parametrize("cache_bytes", [1, 512 << 20], ids=["small cache", "large cache"])
def test_any_order_gives_the_frames_of_plain_playback(clip: Path, order: list[int], cache_bytes: int) -> None:
    expected = played(clip)
    frames = VideoFrames(clip.open("rb"), cache_bytes=cache_bytes)
    assert len(frames) == N
    assert all(np.array_equal(frames[int(k)], expected[int(k)]) for k in order)


def test_stored_frames_equal_the_written_ones_within_the_codec_loss(clip: Path, pictures: list[UInt8]) -> None:
    frames = VideoFrames(clip.open("rb"))
    errors = np.stack([frames[k].astype(float) - pictures[k] for k in range(N)])
    assert 10 * np.log10(255**2 / (errors**2).mean()) > 36
    assert np.abs(errors.mean(axis=(0, 1, 2))).max() < 0.5  # no colour cast: the same matrix and range both ways


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 140, 110)])
def test_flat_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    write_frames(tmp_path / "flat.mp4", [np.full((64, 64, 3), colour, np.uint8)], 25)
    frame = VideoFrames((tmp_path / "flat.mp4").open("rb"))[0]
    assert np.abs(frame.astype(int) - colour).max() <= 3


def test_each_gop_is_decoded_once_in_either_direction(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    decode = VideoFrames._decode
    monkeypatch.setattr(VideoFrames, "_decode", lambda self, group: groups.append(group) or decode(self, group))
    frames = VideoFrames(clip.open("rb"), cache_bytes=12 * FRAME_BYTES)  # one group
    for k in [*range(N), *range(N - 1, -1, -1)]:
        frames[k]
    assert groups == [0, 1, 2, 1, 0]
    for k in [*range(N), *range(N - 1, -1, -1)]:
        frames.picture(k)
    assert groups == [0, 1, 2, 1, 0, 1, 2, 1, 0]  # group 0 was still there


def test_the_cache_stays_within_its_bytes(clip: Path) -> None:
    limit = 25 * FRAME_BYTES
    frames = VideoFrames(clip.open("rb"), cache_bytes=limit)
    for k in range(N):
        frames[k]
        kept = [plane for group in frames._cache.values() for frame in group for plane in frame.planes]
        assert sum(plane.buffer_size for plane in kept) <= limit
    assert len(frames._cache) == 2


def test_gops_of_large_frames_are_short() -> None:
    assert gop_frames(512, 512) == 12
    assert 1 <= gop_frames(3840, 2160) * 3 * 3840 * 2160 <= GOP_BYTES
    assert gop_frames(8192, 8192) == 1


def test_frames_are_read_only(clip: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        VideoFrames(clip.open("rb"))[0][0, 0, 0] = 1


@pytest.mark.parametrize("index", [-1, N, N + 100])
def test_an_index_out_of_range_raises_index_error(clip: Path, index: int) -> None:
    with pytest.raises(IndexError):
        VideoFrames(clip.open("rb"))[index]


def test_threads_read_the_same_frames(clip: Path) -> None:
    expected, frames, wrong = played(clip), VideoFrames(clip.open("rb"), cache_bytes=1), []

    def read(seed: int) -> None:
        for k in np.random.default_rng(seed).integers(0, N, 12):
            if not np.array_equal(frames[int(k)], expected[int(k)]):
                wrong.append(int(k))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_same_frames_give_the_same_bytes(pictures: list[UInt8], tmp_path: Path) -> None:
    for name in ("once.mp4", "again.mp4"):  # not the module's clip: other tests change OpenCV's number of threads
        write_frames(tmp_path / name, pictures, 25)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "once.mp4").read_bytes()


def test_an_unreadable_file_is_reported() -> None:
    with pytest.raises(CorruptError, match=r"frames\.mp4 cannot be read"):
        VideoFrames(io.BytesIO(b"no video" * 100))
