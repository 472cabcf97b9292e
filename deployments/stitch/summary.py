"""What the answer of an utterance says of it: lengths, times, and where they went. Knows no stage."""

from __future__ import annotations

from typing import Any

from deployments.stitch.calls import Call, summarise
from deployments.stitch.utterance import Utterance


def summary_of(utterance: Utterance, calls: list[Call], retries: int, ttff_ms: float, wall_s: float) -> dict[str, Any]:
    """The summary of an utterance of which a frame was made: `ttff_ms` from its request, `wall_s` of its making.

    frames, duration_s: what of it is in the session's video, pauses inside it included; of what was cut before anybody
    saw it, nothing is. made_s, the speed, and the stages are of all that was made.
    """
    assert utterance.session is not None
    fps = utterance.spec.fps
    made_s = utterance.frames / fps
    session_id = utterance.request.session_id
    return {
        "session_id": session_id,
        "avatar_id": utterance.avatar.prepared.avatar_id,
        "video_path": str(utterance.session.path),
        "video_url": f"/sessions/{session_id}/video.mp4",
        "frames": utterance.kept_frames,
        "start_s": round(utterance.start_s, 3),  # in that video
        "duration_s": round(utterance.kept_frames / fps, 3),
        "made_s": round(made_s, 3),
        "ttff_ms": round(ttff_ms, 1),
        "rtf": round(wall_s / made_s, 3),
        "retries": retries,
        "audio_delay_ms": round(utterance.late_s * 1e3, 1),  # of the sound behind the lips, below a frame
        "stages": summarise(calls),
    }
