"""An avatar that was prepared again with another format: its sessions refuse to go on, or begin again without video."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deployments.common.messages import SpeakRequest
from deployments.stitch.avatar_cache import LoadedAvatar
from deployments.stitch.deployment import Stitch
from models.errors import ResetNeededError
from models.stitch.paste import Paster
from tests.support.stitch import Watcher, grey_avatar, read_video, summary_of, wait_for_frames
from tests.support.virtual_time import event_loop_policy, virtual_time

__all__ = ["event_loop_policy", "virtual_time"]


def prepare_again(monkeypatch, side: int = 96, fps: int = 25) -> None:
    """From now on the avatar `ann` has this format."""
    old = grey_avatar().prepared
    frames = np.stack([np.full((side, side, 3), 20 + 4 * k, np.uint8) for k in range(len(old))])
    prepared = replace(old, version="2", width=side, height=side, fps=fps, frames=frames)
    avatar = LoadedAvatar(prepared, Paster(prepared))
    monkeypatch.setattr(Stitch, "_load_avatar", lambda self, avatar_id: avatar)


async def say(stitch, text: str = "hello", session_id: str = "alice") -> dict:
    return await summary_of(stitch.speak(SpeakRequest(session_id, text, deliver=False)))


@pytest.mark.parametrize(("side", "fps"), [(96, 25), (32, 25), (64, 30)])
async def test_a_session_with_video_says_that_it_must_be_reset(make_stitch, monkeypatch, side, fps):
    stitch, live, _ = await make_stitch()
    await say(stitch)
    video = (await stitch.session("alice"))["size"]
    prepare_again(monkeypatch, side, fps)
    for asked in (say(stitch), live.view("alice")):
        with pytest.raises(ResetNeededError, match=rf"prepared again with {side}×{side} px at {fps} fps; .* 64×64 px"):
            await asked
    assert (await stitch.session("alice"))["size"] == video
    await stitch.reset("alice")
    assert (await say(stitch))["frames"] > 0
    facts = await stitch.session("alice")
    assert len(read_video(Path(facts["video_path"]).read_bytes())[0]) == facts["frames"]


async def test_a_video_whose_parameter_sets_differ_from_the_encoders_must_be_reset(make_stitch):
    stitch, _, _ = await make_stitch()
    await say(stitch)
    meta = Path((await stitch.session("alice"))["video_path"]).with_name("session.json")
    facts = json.loads(meta.read_text())
    init = bytearray.fromhex(facts["init"])
    init[init.index(b"avcC") + 20] ^= 1  # in the SPS
    meta.write_text(json.dumps({**facts, "init": init.hex()}))
    await stitch.reconfigure({**stitch.config.model_dump(), "cached_sessions": 3})  # opens its sessions again
    with pytest.raises(ResetNeededError, match="begun by another version"):
        await say(stitch)
    await stitch.reset("alice")
    assert (await say(stitch))["frames"] > 0


async def test_the_same_format_goes_on_with_the_new_pictures(make_stitch, monkeypatch):
    stitch, _, _ = await make_stitch()
    frames = (await say(stitch))["frames"]
    prepare_again(monkeypatch, 64)
    await say(stitch)
    assert (await stitch.session("alice"))["frames"] == 2 * frames


async def test_a_session_without_video_is_watched_and_speaks_in_the_new_format(make_stitch, monkeypatch):
    stitch, live, _ = await make_stitch()
    prepare_again(monkeypatch)
    viewer = await live.view("alice")
    assert viewer.timeline.spec.width == 96
    watcher = Watcher(viewer)
    assert (await say(stitch))["frames"] > 0
    times, _, mouths = watcher.seen()
    assert len(times) > 10 and mouths.max() > 200, "the viewer sees the speech"


async def test_viewers_stay_and_running_speech_ends_in_its_own_format(make_stitch, monkeypatch):
    stitch, live, _ = await make_stitch(delay_s=0.05)
    watcher = Watcher(await live.view("alice"))
    speaking = asyncio.create_task(say(stitch, "x" * 30))
    await wait_for_frames(stitch, "alice", 10)
    prepare_again(monkeypatch)
    assert (await speaking)["frames"] > 70
    with pytest.raises(ResetNeededError):
        await say(stitch)
    assert not watcher.task.done(), "what they see is not affected"
    watcher.seen()
