"""A transcoded video keeps every frame time and every audio packet."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from models.errors import CorruptError, VideoError
from models.media.transcode import PartWriter, SourceVideo, check_output, join, part_signature
from tests.support.video import picture_of, sound_of, uneven, write_video


def stripes(n: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """Frames that can be distinguished: a bright bar that moves."""
    frames = np.full((n, height, width, 3), 60, np.uint8)
    for k in range(n):
        frames[k, :, 4 * k : 4 * k + 12] = 220
    return list(frames)


def rewrite(source: SourceVideo, output: Path, kind: str, length: int) -> int:
    parts, writer = [], None
    for rgb, at in source.frames():
        writer = writer or PartWriter(output.with_name(f"{len(parts)}.mp4"), source, 12, "veryfast")
        writer.write(rgb, at)
        if writer.frames == length:
            parts.append(writer.close())
            writer = None
    if writer is not None:
        parts.append(writer.close())
    return join(parts, source, output, kind)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "in.mp4", stripes(23), uneven(23), ("aac", "aac"))


@pytest.mark.parametrize("length", [5, 100])
def test_frames_times_and_both_sound_tracks_are_kept(video: Path, tmp_path: Path, length: int) -> None:
    source = SourceVideo(video)
    assert (source.width, source.height, source.expected_frames) == (128, 96, 23)
    assert rewrite(source, tmp_path / "out.mp4", "mp4", length) == 23
    (times, frames), (out_times, out_frames) = picture_of(video), picture_of(tmp_path / "out.mp4")
    assert out_times == times
    off = np.abs(np.stack(frames).astype(int) - np.stack(out_frames)).mean((1, 2, 3))
    assert off.max() < 2.0  # each frame is the right one: the bar of a neighbour would cost 10 levels
    for track in (0, 1):
        assert sound_of(tmp_path / "out.mp4", track) == sound_of(video, track)
    with av.open(str(video)) as a, av.open(str(tmp_path / "out.mp4")) as b:
        spans = [float(c.streams.video[0].duration * c.streams.video[0].time_base) for c in (a, b)]
    assert spans[1] == pytest.approx(spans[0], abs=0.04)


def test_a_matroska_output_keeps_times_to_the_millisecond(video: Path, tmp_path: Path) -> None:
    assert rewrite(SourceVideo(video), tmp_path / "out.mkv", "matroska", 7) == 23
    sound, out_sound = sound_of(video), sound_of(tmp_path / "out.mkv")
    assert [data for _, data in out_sound] == [data for _, data in sound]
    # Matroska starts at 0 or later: earlier audio is moved, and the video with it
    moved = float(out_sound[0][0] - sound[0][0])
    times, out_times = picture_of(video)[0], picture_of(tmp_path / "out.mkv")[0]
    assert max(abs(float(b - a) - moved) for a, b in zip(times, out_times, strict=True)) <= 0.0015


def test_odd_time_bases_stay_exact(tmp_path: Path) -> None:
    time_base = Fraction(1001, 30000)
    video = write_video(tmp_path / "in.mp4", stripes(9), [0, 1, 2, 4, 5, 6, 9, 10, 11], (), time_base)
    rewrite(SourceVideo(video), tmp_path / "out.mp4", "mp4", 4)
    assert picture_of(tmp_path / "out.mp4")[0] == picture_of(video)[0]
    webm = write_video(tmp_path / "in.mkv", stripes(9), [0, 1, 2, 4, 5, 6, 9, 10, 11], (), time_base)
    rewrite(SourceVideo(webm), tmp_path / "from_mkv.mp4", "mp4", 4)
    assert picture_of(tmp_path / "from_mkv.mp4")[0] == picture_of(webm)[0]


def test_frames_can_be_skipped_and_keep_their_times(video: Path) -> None:
    source = SourceVideo(video)
    every, rest = list(source.frames()), list(source.frames(skip=17))
    assert len(rest) == 6
    assert [at for _, at in rest] == [at for _, at in every[17:]]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(rest, every[17:], strict=True))


def test_odd_sides_are_cropped_and_rotation_is_applied(tmp_path: Path) -> None:
    frames = [np.full((97, 131, 3), 100, np.uint8)] * 3
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 131, 97, "bgr0"
        for k, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgr0")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = SourceVideo(tmp_path / "in.mkv")
    assert (source.width, source.height) == (130, 96)
    assert rewrite(source, tmp_path / "out.mp4", "mp4", 2) == 3
    assert picture_of(tmp_path / "out.mp4")[1][0].shape == (96, 130, 3)


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="not found"):
        SourceVideo(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="empty"):
        SourceVideo(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video " * 99)
    with pytest.raises(VideoError, match="cannot be read"):
        SourceVideo(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=24000, layout="mono")
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        audio.sample_rate = 24000
        container.mux(track.encode(audio))
        container.mux(track.encode(None))
    with pytest.raises(VideoError, match="audio but no video"):
        SourceVideo(tmp_path / "sound.m4a")


def test_outputs_that_cannot_be_written_are_named(video: Path, tmp_path: Path) -> None:
    check_output(video, tmp_path / "out.mp4")
    with pytest.raises(VideoError, match="same file"):
        check_output(video, video)
    with pytest.raises(VideoError, match=r"\.avi cannot be written"):
        check_output(video, tmp_path / "out.avi")
    with pytest.raises(VideoError, match="is a folder"):
        (tmp_path / "folder.mp4").mkdir()
        check_output(video, tmp_path / "folder.mp4")
    loud = write_video(tmp_path / "flac.mkv", stripes(2), [0, 512], ("flac",))
    with pytest.raises(VideoError, match=r"\.mov file cannot hold the audio of flac\.mkv"):
        check_output(loud, tmp_path / "out.mov")
    check_output(loud, tmp_path / "out.mkv")
    check_output(loud, tmp_path / "out.mp4")


def test_an_unreadable_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.mp4").write_bytes(b"x" * 100)
    with pytest.raises(CorruptError, match=r"0\.mp4"):
        part_signature(tmp_path / "0.mp4")
