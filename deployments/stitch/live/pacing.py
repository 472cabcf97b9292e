"""Estimates how fast frames are made, and how long speech must be delayed to play without interruption.

Arithmetic only: all times are arguments, in seconds of any one clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SAFETY_FACTOR = 1.25  # frames may take this much longer than recent ones
OVERDUE_FACTOR = 1.3  # slow-down assumed for an overdue burst
SMOOTHING = 0.4  # weight of the latest burst in the estimate
STALL_FACTOR = 4.0  # a burst that takes longer than expected by more than this was stopped, as by a lost replica
RELEASE_LEAD_S = 0.08  # a live fragment leaves Stitch this long before it is due, for the way to the ingress
RESERVE_S = 0.4  # a burst may be this much later than the others where the machine has little capacity to spare
# The share of real time that making frames takes: below the first value no reserve is needed, from the second one on
# all of RESERVE_S. Several utterances slow one another down, so the limits are lower where they share the machine.
LOAD_LIMITS_ALONE, LOAD_LIMITS_SHARED = (0.9, 1.0), (0.6, 0.9)
MAX_DELAY_S = 4.0  # the longest delay of a sentence, so that it can play without interruption


@dataclass(slots=True)
class SupplyEstimate:
    """How the frames of one utterance arrive: in bursts, one per fragment of the file."""

    fps: int
    frame_s: float  # recent time to make one frame
    burst_end_s: float  # when the latest burst arrived, or its making began
    burst_frames: int = 12
    made: int = 0  # frames that have arrived
    blocked: bool = False  # making waits for frames to be shown (backpressure)
    shared: bool = False  # other utterances are made at the same time

    def add_burst(self, frames: int, now_s: float, learn: bool = True) -> float:
        """Count a burst; return the time that making it took. learn: nothing but making frames took that time."""
        took_s = min(max(0.0, now_s - self.burst_end_s), STALL_FACTOR * frames * self.frame_s)
        if learn:  # a short burst takes longer per frame and weighs less
            self.frame_s += SMOOTHING * min(1.0, frames / self.burst_frames) * (took_s / frames - self.frame_s)
            self.burst_frames = frames if 2 * frames > self.burst_frames else self.burst_frames
        self.made, self.burst_end_s = self.made + frames, now_s
        return took_s

    def unblock(self, now_s: float) -> None:
        """Making continues after backpressure."""
        self.blocked, self.burst_end_s = False, now_s

    def required_delay_s(self, frame: int, until: int, end: int, now_s: float, begun: bool = True) -> float:
        """How long `frame` must be delayed from now so that each frame from it to `until` arrives before it is due.

        end: of the segment; the burst that ends with it may be shorter than the others. begun: some frames of the
        segment have arrived. If not, the time since the latest burst went into speech synthesis and features, and is
        no measure for frames.
        """
        missing = until - self.made
        if missing <= 0 or self.blocked:
            return 0.0
        elapsed_s = max(0.0, now_s - self.burst_end_s) if begun else 0.0
        left = end - self.made
        burst = min(self.burst_frames, left)
        frame_s, reserve_s = self.frame_s * SAFETY_FACTOR, self._reserve_s()
        if elapsed_s > burst * frame_s:  # an overdue burst: making has become slower
            frame_s = OVERDUE_FACTOR * elapsed_s / burst
        delay_s = 0.0
        for before in range(0, missing, burst):
            arrival_s = min(before + burst, left) * frame_s - elapsed_s
            delay_s = max(delay_s, arrival_s + reserve_s - (self.made + before - frame) / self.fps)
        return delay_s

    def _reserve_s(self) -> float:
        """Playing time to be made ahead: none where frames are made much faster than they are played."""
        low, high = LOAD_LIMITS_SHARED if self.shared else LOAD_LIMITS_ALONE
        return RESERVE_S * min(1.0, max(0.0, (self.frame_s * SAFETY_FACTOR * self.fps - low) / (high - low)))

    def hold_frames(self, delay_s: float, step: int, least: int, most: int) -> int:
        """A delay as a number of frames: a multiple of `step`, from `least` to `most`; 0 for no delay."""
        if delay_s <= 0:
            return 0
        frames = math.ceil(delay_s * self.fps / step) * step
        return min(max(frames, least), most)


@dataclass(slots=True)
class PaceEstimate:
    """How long segments take, learned from earlier ones.

    Mean and deviation of the first fragment's latency as in TCP's retransmission timer (RFC 6298).
    """

    first_s: float = 0.35  # from placing a segment to its first fragment
    deviation_s: float = 0.1
    frame_s: float = 0.02  # to make a frame in a running utterance that has the machine alone
    speakers: int = 1  # utterances that share the machine now

    def add_first_fragment(self, latency_s: float) -> None:
        self.deviation_s += 0.25 * (abs(latency_s - self.first_s) - self.deviation_s)
        self.first_s += 0.25 * (latency_s - self.first_s)

    def add_frames(self, frames: int, took_s: float) -> None:
        self.frame_s += 0.2 * (took_s / frames / max(self.speakers, 1) - self.frame_s)

    @property
    def shared_frame_s(self) -> float:
        """To make a frame beside the other speakers."""
        return self.frame_s * max(self.speakers, 1)

    def lead_s(self, frames: int, fps: int, frame_s: float) -> float:
        """How far ahead to place a segment so that it arrives in time and its playing does not overtake its making.

        frame_s: to make a frame of this utterance now.
        """
        behind_s = max(0.0, frame_s - 1 / fps) * frames
        return self.first_s + 2 * self.deviation_s + RELEASE_LEAD_S + min(behind_s, MAX_DELAY_S)
