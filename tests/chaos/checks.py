"""What holds in every case: files are playable and unmixed, and nothing that was accepted is lost in silence."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterable, Mapping

from tests.chaos.engines import expected_frames
from tests.chaos.results import Row
from tests.chaos.viewers import Audience, Spoken

AGAIN = "Here I am again."
Asked = Mapping[str, "concurrent.futures.Future[Spoken]"]  # by session


def finished(asked: Asked, limit_s: float = 120.0) -> dict[str, Spoken]:
    """The answers; an utterance without one after `limit_s` is lost in silence, which fails."""
    end_s = time.monotonic() + limit_s
    answers = {}
    for session_id, future in asked.items():
        try:
            answers[session_id] = future.result(max(0.0, end_s - time.monotonic()))
        except concurrent.futures.TimeoutError:
            raise AssertionError(f"{session_id}: no answer within {limit_s:g} s") from None
    return answers


def record(row: Row, audience: Audience, answers: Mapping[str, Spoken], from_s: float, to_s: float) -> None:
    """Note what the viewers of these utterances saw between two times, what was lost, and what failed.

    Fails for an unplayable file or stream, and for speech in a session that is not its own.
    """
    lost = 0
    for session_id, answer in answers.items():
        frames, wanted = audience.file_frames(session_id), expected_frames(answer.text)
        if answer.status == 200:
            lost += wanted - answer.frames
            assert frames >= answer.frames, (session_id, frames, answer.frames)
        else:
            row.note(f"one utterance ended with status {answer.status}: {_message(answer)}")
        viewer = audience.viewers.get(session_id)
        if viewer is not None:
            viewer.assert_playable()
            heard = viewer.heard(audience.pitches[session_id])
            assert heard.foreign_s == 0, f"{session_id}: {heard.foreign_s:.1f} s of another session's speech"
            row.most(longest_gap_s=viewer.longest_gap_s(from_s, to_s))
            if answer.status == 200:
                row.most(longest_pause_s=heard.longest_pause_s)
                row.most(unheard_s=max(0.0, answer.frames / 25 - heard.own_s))
    row.saw(lost_frames=lost, failed_utterances=sum(answer.status != 200 for answer in answers.values()))


def speaks_again(row: Row, audience: Audience, session_ids: Iterable[str], since_s: float, limit_s: float) -> None:
    """Each session begins another utterance within `limit_s` of `since_s`, and its file grows by it."""
    before = {session_id: audience.file_frames(session_id) for session_id in session_ids}
    refused: list[str] = []

    def again(session_id: str) -> Spoken:
        while (answer := audience.speak(session_id, AGAIN).result(120)).status != 200:
            refused.append(f"refused again with status {answer.status}: {_message(answer)}")
            assert time.monotonic() < since_s + limit_s + 30, refused
            time.sleep(0.1)
        return answer

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        for answer in pool.map(again, before):
            row.most(speaks_again_s=answer.sent_s - since_s)
    for text in sorted(set(refused)):
        row.note(text)
    for session_id, frames in before.items():
        assert audience.file_frames(session_id) == frames + expected_frames(AGAIN)
    assert row.seen.get("speaks_again_s", 0.0) <= limit_s, row.seen


def _message(answer: Spoken) -> str:
    error = answer.body.get("error", "")
    return str(error["message"] if isinstance(error, dict) else error)
