"""Writes and reads the boxes of fragmented MP4: init segments (ftyp + moov) and fragments (moof + mdat).

Box layouts follow ISO/IEC 14496-12 (base format), -14 (`mp4a`, `esds`) and -15 (`avc1`, `avcC`). FFmpeg's muxer is not
used because its timeline cannot be resumed: here each fragment states its decode times, and all utterances of a session
share one init segment, byte for byte.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VIDEO_TRACK, AUDIO_TRACK = 1, 2
SYNC_SAMPLE = 0x02000000  # sample_depends_on = 2: an IDR frame, or any AAC frame
DELTA_SAMPLE = 0x01010000  # sample_depends_on = 1, sample_is_non_sync_sample
UNITY_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
MOVIE_TIMESCALE = 1000
START_CODE = re.compile(rb"\x00{2,}\x01")  # Annex B; a NAL unit contains no start code and does not end in a zero byte
SPS, PPS, ACCESS_UNIT_DELIMITER = 7, 8, 9  # nal_unit_type


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """width, height: px. extradata: SPS and PPS of the H.264 encoder, or of several, in Annex B form."""

    width: int
    height: int
    timescale: int
    extradata: bytes


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """extradata: the AAC encoder's AudioSpecificConfig (ISO/IEC 14496-3)."""

    sample_rate_hz: int
    bit_rate: int
    extradata: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive samples of one track: encoded bytes. Each lasts `sample_ticks`; the first is decoded at `start`."""

    samples: Sequence[bytes]
    start: int
    sample_ticks: int

    @property
    def ticks(self) -> int:
        return len(self.samples) * self.sample_ticks


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box: size, type and body."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def children(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of body, end) of each box in data[start:end]."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        assert 8 <= size <= end - start, (kind, size)
        yield kind, start + 8, start + size
        start += size


def nal_units(annex_b: bytes) -> list[bytes]:
    """The NAL units of an Annex B byte stream, without start codes."""
    return [unit for unit in START_CODE.split(annex_b) if unit]


def length_prefixed(annex_b: bytes) -> bytes:
    """An encoded frame as MP4 stores it: each NAL unit with a length prefix, without parameter sets."""
    units = [u for u in nal_units(annex_b) if u[0] & 31 not in (SPS, PPS, ACCESS_UNIT_DELIMITER)]
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


def init_segment(video: VideoTrack, audio: AudioTrack) -> bytes:
    """ftyp + moov: codecs and timescales of both tracks, without samples. Equal input gives equal bytes."""
    movie_header = struct.pack(">4I", 0, 0, MOVIE_TIMESCALE, 0)
    movie_header += (
        struct.pack(">IH10x", 0x10000, 0x100) + UNITY_MATRIX + bytes(24) + struct.pack(">I", AUDIO_TRACK + 1)
    )
    defaults = [struct.pack(">5I", track, 1, 0, 0, 0) for track in (VIDEO_TRACK, AUDIO_TRACK)]
    moov = box(
        b"moov",
        full_box(b"mvhd", 0, 0, movie_header),
        _video_trak(video),
        _audio_trak(audio),
        box(b"mvex", *(full_box(b"trex", 0, 0, default) for default in defaults)),
    )
    return box(b"ftyp", b"iso6", struct.pack(">I", 1), b"iso6", b"iso5", b"avc1", b"mp41", b"cmfc") + moov


def fragment(sequence: int, video: Run, audio: Run, key: bool) -> bytes:
    """moof + mdat. key: the first frame of `video` is an IDR frame. A run without samples gets no `traf` box."""

    def moof(video_offset: int, audio_offset: int) -> bytes:
        tracks = [full_box(b"mfhd", 0, 0, struct.pack(">I", sequence & 0xFFFFFFFF))]
        if video.samples:
            tracks.append(_traf(VIDEO_TRACK, video, video_offset, DELTA_SAMPLE, SYNC_SAMPLE if key else DELTA_SAMPLE))
        if audio.samples:
            tracks.append(_traf(AUDIO_TRACK, audio, audio_offset, SYNC_SAMPLE, SYNC_SAMPLE))
        return box(b"moof", *tracks)

    data_at = len(moof(0, 0)) + 8  # offset of the first sample from the start of the moof, after the mdat header
    return moof(data_at, data_at + sum(map(len, video.samples))) + box(b"mdat", *video.samples, *audio.samples)


def shift_decode_times(data: bytes, shifts: dict[int, int]) -> bytes:
    """A copy of a fragment with `shifts[track id]` ticks subtracted from each track's decode time."""
    out = bytearray(data)
    for kind, start, end in children(out, 0, len(out)):
        if kind != b"moof":
            continue
        for traf in ((s, e) for k, s, e in children(out, start, end) if k == b"traf"):
            at = {k: s for k, s, _ in children(out, *traf)}
            (track,) = struct.unpack_from(">I", out, at[b"tfhd"] + 4)
            (time,) = struct.unpack_from(">Q", out, at[b"tfdt"] + 4)  # version 1, as `_traf` writes it
            assert time >= shifts[track], (track, time, shifts)
            struct.pack_into(">Q", out, at[b"tfdt"] + 4, time - shifts[track])
    return bytes(out)


def read_fragment(data: bytes) -> tuple[dict[int, Run], bool]:
    """The runs of a fragment that `fragment` has written, by track id, and whether its first frame is an IDR frame."""
    runs: dict[int, Run] = {}
    key = False
    for kind, start, end in children(data, 0, len(data)):
        if kind != b"moof":
            continue
        for traf in ((s, e) for k, s, e in children(data, start, end) if k == b"traf"):
            at = {k: s for k, s, _ in children(data, *traf)}
            track, sample_ticks = struct.unpack_from(">II", data, at[b"tfhd"] + 4)
            (time,) = struct.unpack_from(">Q", data, at[b"tfdt"] + 4)
            count, offset, flags = struct.unpack_from(">IiI", data, at[b"trun"] + 4)
            sizes = struct.unpack_from(f">{count}I", data, at[b"trun"] + 16)
            offset += start - 8  # relative to the first byte of the moof
            samples = []
            for size in sizes:
                samples.append(data[offset : offset + size])
                offset += size
            runs[track] = Run(samples, time, sample_ticks)
            key = key or (track == VIDEO_TRACK and flags == SYNC_SAMPLE)
    return runs, key


def _traf(track: int, run: Run, data_offset: int, flags: int, first_flags: int) -> bytes:
    header_flags = 0x020000 | 0x08 | 0x20  # offsets relative to the moof; default duration; default flags
    header = full_box(b"tfhd", 0, header_flags, struct.pack(">3I", track, run.sample_ticks, flags))
    time = full_box(b"tfdt", 1, 0, struct.pack(">Q", run.start))
    sizes = struct.pack(f">{len(run.samples)}I", *map(len, run.samples))
    run_flags = 0x01 | 0x04 | 0x200  # data offset; flags of the first sample; one size per sample
    samples = full_box(b"trun", 0, run_flags, struct.pack(">IiI", len(run.samples), data_offset, first_flags), sizes)
    return box(b"traf", header, time, samples)


def _trak(
    track: int, timescale: int, size_px: tuple[int, int], handler: bytes, media_header: bytes, entry: bytes
) -> bytes:
    volume = 0x100 if handler == b"soun" else 0
    header = struct.pack(">5I8xHHHH", 0, 0, track, 0, 0, 0, 0, volume, 0) + UNITY_MATRIX
    header += struct.pack(">II", size_px[0] << 16, size_px[1] << 16)
    reference = full_box(b"dref", 0, 0, struct.pack(">I", 1), full_box(b"url ", 0, 1))  # flag 1: same file
    table = box(
        b"stbl",
        full_box(b"stsd", 0, 0, struct.pack(">I", 1), entry),
        full_box(b"stts", 0, 0, bytes(4)),
        full_box(b"stsc", 0, 0, bytes(4)),
        full_box(b"stsz", 0, 0, bytes(8)),
        full_box(b"stco", 0, 0, bytes(4)),
    )
    media = box(
        b"mdia",
        full_box(b"mdhd", 0, 0, struct.pack(">4IHH", 0, 0, timescale, 0, 0x55C4, 0)),  # language `und`
        full_box(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, handler), b"WarmTalk\0"),
        box(b"minf", media_header, box(b"dinf", reference), table),
    )
    return box(b"trak", full_box(b"tkhd", 0, 3, header), media)  # flags: enabled, in movie


def _video_trak(video: VideoTrack) -> bytes:
    units = nal_units(video.extradata)
    sps = [unit for unit in units if unit[0] & 31 == SPS]
    pps = [unit for unit in units if unit[0] & 31 == PPS]
    assert 1 <= len(sps) == len(pps) < 32, (len(sps), len(pps))
    config = b"\x01" + sps[0][1:4] + b"\xff"  # version, profile, constraints, level; 4-byte lengths
    config += bytes([0xE0 | len(sps)]) + b"".join(struct.pack(">H", len(unit)) + unit for unit in sps)
    config += bytes([len(pps)]) + b"".join(struct.pack(">H", len(unit)) + unit for unit in pps)
    if sps[0][1] >= 100:  # High profile: 4:2:0, 8 bit luma and chroma, no SPS extension
        config += b"\xfd\xf8\xf8\x00"
    entry = struct.pack(">6xH16xHHIIIH32xHh", 1, video.width, video.height, 0x480000, 0x480000, 0, 1, 24, -1)
    colour = box(
        b"colr", b"nclx", struct.pack(">HHHB", 1, 1, 1, 0)
    )  # BT.709 primaries, transfer, matrix; limited range
    square = box(b"pasp", struct.pack(">II", 1, 1))
    entry_box = box(b"avc1", entry, box(b"avcC", config), colour, square)
    media_header = full_box(b"vmhd", 0, 1, bytes(8))
    return _trak(VIDEO_TRACK, video.timescale, (video.width, video.height), b"vide", media_header, entry_box)


def _audio_trak(audio: AudioTrack) -> bytes:
    def descriptor(tag: int, body: bytes) -> bytes:
        assert len(body) < 128, len(body)
        return bytes([tag, len(body)]) + body

    decoder = struct.pack(">BBHBII", 0x40, 0x15, 0, 0, audio.bit_rate, audio.bit_rate)  # MPEG-4 audio stream
    decoder_config = descriptor(4, decoder + descriptor(5, audio.extradata))
    stream = descriptor(3, struct.pack(">HB", AUDIO_TRACK, 0) + decoder_config + descriptor(6, b"\x02"))
    entry = struct.pack(">6xH8xHHII", 1, 1, 16, 0, audio.sample_rate_hz << 16 & 0xFFFFFFFF)
    entry_box = box(b"mp4a", entry, full_box(b"esds", 0, 0, stream))
    return _trak(AUDIO_TRACK, audio.sample_rate_hz, (0, 0), b"soun", full_box(b"smhd", 0, 0, bytes(4)), entry_box)
