"""The Avatars stage without Ray: the manual's `preparation` and `video_path`, closing half-way, listing meanwhile."""

import asyncio
import shlex
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import deployments.avatars
from deployments.avatars import Avatars
from deployments.preparation import SMOOTHING_KEYS, prepare_options
from models.avatar.store import AvatarStore
from models.errors import (
    AvatarNotFound,
    ConfigError,
    ExistsError,
    IdError,
    InputError,
    NoFaceError,
    VideoError,
    WeightsError,
)
from models.weights.vae_files import vae_fingerprint
from tests.support.avatar import astronaut, fake_encoder, moved, swaying, write_clip
from warmtalk.cli import app as cli
from warmtalk.cli import prepare as preparing

VAE = Path(deployments.avatars.__file__).parents[1] / "models" / "embedded" / "vae"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(
        tmp_path_factory.mktemp("clip") / "my face.mp4", [moved(astronaut(), m) for m in swaying(astronaut(), 6)]
    )


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """A VAE of the embedded one's name, so that nothing heavy is loaded; its gate can hold an encoding up."""
    encoder = SimpleNamespace(loads=0, gate=threading.Event(), calls=0)
    encoder.gate.set()

    def encode(crops):
        encoder.calls += 1
        encoder.gate.wait(20)
        return fake_encoder(crops)

    def load(config):
        encoder.loads += 1
        return SimpleNamespace(encode_reference=encode, vae_fingerprint=vae_fingerprint(VAE))

    for module in (deployments.avatars, preparing):
        monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    return encoder


async def started(**config) -> Avatars:
    stage = Avatars()
    await stage.reconfigure(config)
    return stage


async def names(stage: Avatars) -> list[str]:
    return [facts["avatar_id"] for facts in await stage.list()]


async def test_preparation_makes_a_missing_avatar_at_start(encoder, clip, tmp_path):
    stage = await started(avatar_id="me", video_path=str(clip), preparation=True)
    assert "me" in await names(stage) and encoder.loads == 1
    assert (tmp_path / "results" / "avatars" / "me" / "avatar.json").is_file()


async def test_a_current_avatar_is_not_prepared_again(encoder, clip):
    await started(avatar_id="me", video_path=str(clip))
    await started(avatar_id="me", video_path=str(clip))
    await started(avatar_id="me", video_path=str(clip), preparation=False)
    assert encoder.loads == 1


@pytest.mark.parametrize(
    "change",
    [
        *({"bbox_shift": 3}, {"extra_margin": 20}, {"fps": 30}, {"geometry": "musetalk"}, {"geometry": "box"}),
        *({"smoothing": "one_euro"}, {"affine_tracking_enabled": False}, {"scale_lock_warmup_frames": 50}),
    ],
)
async def test_another_setting_makes_a_changed_avatar(encoder, clip, change):
    await started(avatar_id="me", video_path=str(clip))
    with pytest.raises(AvatarNotFound):
        await started(avatar_id="me", video_path=str(clip), preparation=False, **change)
    await started(avatar_id="me", video_path=str(clip), **change)
    assert encoder.loads == 2


async def test_another_video_makes_a_changed_avatar(encoder, clip, tmp_path):
    await started(avatar_id="me", video_path=str(clip))
    other = write_clip(tmp_path / "other.mp4", [astronaut()] * 4)
    stage = await started(avatar_id="me", video_path=str(other))
    assert [facts["frames"] for facts in await stage.list() if facts["avatar_id"] == "me"] == [4]


async def test_another_vae_makes_a_changed_avatar(encoder, clip, monkeypatch):
    await started(avatar_id="me", video_path=str(clip))
    monkeypatch.setattr(deployments.avatars, "vae_fingerprint", lambda folder: "another")
    with pytest.raises(AvatarNotFound):
        await started(avatar_id="me", video_path=str(clip), preparation=False)


async def refused(clip, **config) -> list[str]:
    """The words of the command that a stage names which must not prepare by itself."""
    with pytest.raises(AvatarNotFound, match="'me' is missing or outdated") as caught:
        await started(avatar_id="me", video_path=str(clip), preparation=False, **config)
    return shlex.split(caught.value.remedy.removeprefix("Run: "))


async def test_without_preparation_the_error_names_a_command_with_all_that_is_not_usual(encoder, clip):
    words = await refused(clip, bbox_shift=-4, fps=30)
    expected = ["warmtalk", "prepare", str(clip), "--avatar-id", "me"]
    assert words == [*expected, "--set", "bbox_shift=-4", "--set", "fps=30", "--force"]
    assert encoder.loads == 0


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"geometry": "box", "smoothing": "kalman", "scale_lock_enabled": False, "subpixel_enabled": False},
        {"smoothing": "one_euro", "min_cutoff": 0.5, "beta": 0.2, "d_cutoff": 2.0, "fps": 24},
        {"smooth_s": 0.11, "scale_lock_warmup_frames": 5, "affine_tracking_enabled": False},
        {"geometry": "musetalk", "parsing_mode": "raw", "extra_margin": 0, "parser_weights": None},
    ],
)
async def test_the_command_makes_the_very_avatar_that_the_stage_would(encoder, clip, tmp_path, chosen):
    def made() -> tuple[dict, dict]:
        facts = AvatarStore(tmp_path / "results" / "avatars").describe("me")
        return facts["settings"], facts["sha256"]

    words = await refused(clip, **chosen)
    done = CliRunner().invoke(cli.app, words[1:])
    assert done.exit_code == 0, done.output
    await started(avatar_id="me", video_path=str(clip), preparation=False, **chosen)
    by_command = made()
    shutil.rmtree(tmp_path / "results" / "avatars" / "me")
    await started(avatar_id="me", video_path=str(clip), preparation=True, **chosen)
    assert made() == by_command and encoder.loads == 2


async def test_an_avatar_stored_before_there_was_a_choice_of_smoothing_stays(encoder, clip, monkeypatch):
    await started(avatar_id="me", video_path=str(clip))
    describe = AvatarStore.describe

    def of_old(store, avatar_id):
        facts = describe(store, avatar_id)
        settings = {key: value for key, value in facts["settings"].items() if key not in SMOOTHING_KEYS}
        return {**facts, "settings": settings | {"scale_lock": True}}

    monkeypatch.setattr(AvatarStore, "describe", of_old)
    await started(avatar_id="me", video_path=str(clip), preparation=False)
    assert encoder.loads == 1


async def test_a_missing_video_is_named(encoder):
    with pytest.raises(VideoError, match=r"'gone\.mp4' was not found"):
        await started(video_path="gone.mp4")


async def test_a_preparation_tells_how_far_it_is_and_reports(encoder, clip):
    stage = await started()
    events = [event async for event in stage.prepare(str(clip), "me")]
    assert events[-1]["report"]["frames"] == 6
    assert {(event["step"], event["done"]) for event in events[:-1]} >= {("finding faces", 6), ("encoding faces", 6)}
    with pytest.raises(ExistsError):
        await anext(stage.prepare(str(clip), "me"))
    with pytest.raises(IdError):
        await anext(stage.prepare(str(clip), "../me"))


async def test_an_error_comes_after_the_progress_that_led_to_it(encoder, tmp_path):
    grey = write_clip(tmp_path / "grey.mp4", [astronaut() * 0 + 90] * 4)
    stage, events = await started(), []
    with pytest.raises(NoFaceError):
        async for event in stage.prepare(str(grey), "me"):
            events.append(event)
    assert events and "me" not in await names(stage)


async def test_closing_half_way_ends_the_work_and_leaves_nothing(encoder, clip, tmp_path):
    stage = await started(batch_size=1)
    encoder.gate.clear()
    events = stage.prepare(str(clip), "me")
    async for event in events:
        if event["step"] == "finding faces" and event["done"] == 6:
            break
    await events.aclose()
    encoder.gate.set()
    await stage.worker.run(lambda: None)  # the compute thread is free again
    assert encoder.calls <= 1
    assert "me" not in await names(stage)
    assert [path.name for path in (tmp_path / "results" / "avatars").iterdir()] == []
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_avatars_are_listed_while_one_is_prepared(encoder, clip):
    stage = await started()
    encoder.gate.clear()
    work = asyncio.create_task(anext_report(stage, clip))
    while not encoder.calls:
        await asyncio.sleep(0.01)
    begin_s = time.perf_counter()
    listed = await asyncio.wait_for(names(stage), 2.0)
    assert "presenter" in listed and "me" not in listed and time.perf_counter() - begin_s < 1.0
    encoder.gate.set()
    assert (await work)["frames"] == 6


async def anext_report(stage: Avatars, clip: Path) -> dict:
    return [event async for event in stage.prepare(str(clip), "me")][-1]["report"]


async def test_a_changed_tunable_keeps_the_vae_and_another_vae_does_not(encoder, clip):
    stage = await started()
    await anext_report(stage, clip)
    await stage.reconfigure({"batch_size": 2})
    [event async for event in stage.prepare(str(clip), "me", force=True)]
    assert encoder.loads == 1
    await stage.reconfigure({"batch_size": 2, "dtype": "bfloat16"})
    [event async for event in stage.prepare(str(clip), "me", force=True)]
    assert encoder.loads == 2


async def test_the_masks_settings_count_in_musetalks_geometry_alone(encoder, clip):
    await started(avatar_id="me", video_path=str(clip), geometry="musetalk")
    await started(avatar_id="me", video_path=str(clip), geometry="musetalk", preparation=False)
    with pytest.raises(AvatarNotFound):
        await started(avatar_id="me", video_path=str(clip), geometry="musetalk", parsing_mode="raw", preparation=False)
    await started(avatar_id="you", video_path=str(clip))
    await started(avatar_id="you", video_path=str(clip), parsing_mode="raw", preparation=False)


async def test_a_parser_that_is_not_there_gives_way_to_landmarks(encoder, clip, tmp_path):
    stage = await started(geometry="musetalk")
    events = [event async for event in stage.prepare(str(clip), "me")]
    assert any("mask follows the landmarks" in warning for warning in events[-1]["report"]["warnings"])
    path = tmp_path / "weights" / "face-parse-bisent" / "79999_iter.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    assert prepare_options(stage.config, {}).parser_weights == path
    with pytest.raises(WeightsError, match="79999_iter.pth is not a complete checkpoint"):
        [event async for event in stage.prepare(str(clip), "you")]


async def test_dwpose_without_its_file_names_it(encoder, clip):
    stage = await started(detector="dwpose")
    with pytest.raises(WeightsError, match=r"weights/dwpose/dw-ll_ucoco_384\.onnx is missing"):
        [event async for event in stage.prepare(str(clip), "me")]


def test_options_replace_the_configs_where_they_say_something():
    config = Avatars().config.model_copy(update={"bbox_shift": 7})
    chosen = prepare_options(config, {"bbox_shift": None, "fps": 30})
    assert (chosen.bbox_shift, chosen.fps) == (7, 30)
    with pytest.raises(ConfigError, match="fps is 17"):
        prepare_options(config, {"fps": 17})


async def test_a_poster_is_a_small_picture_of_the_face(monkeypatch, tmp_path):
    monkeypatch.setenv("WARMTALK_HOME", str(tmp_path))
    stage = await started()
    data = await stage.poster("presenter")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (288, 288, 3) and len(data) < 40_000
    skin = picture[130:160, 130:160].reshape(-1, 3).mean(axis=0)
    assert skin[2] > skin[1] > skin[0] and skin[2] > 120  # BGR: the middle of the picture is the face
    assert await stage.poster("presenter") is data  # kept
    with pytest.raises(AvatarNotFound):
        await stage.poster("nobody")


# --- removing


async def test_a_removed_avatar_is_listed_no_more_and_leaves_no_picture(encoder, clip, tmp_path):
    stage = await started()
    await anext_report(stage, clip)
    assert {facts["avatar_id"]: facts["removable"] for facts in await stage.list()} == {"me": True, "presenter": False}
    await stage.poster("me")
    await stage.remove("me", "presenter")
    assert await names(stage) == ["presenter"] and stage._posters == {}
    assert list((tmp_path / "results" / "avatars").iterdir()) == []
    for asked in (stage.poster("me"), stage.remove("me")):
        with pytest.raises(AvatarNotFound, match="no avatar 'me'"):
            await asked


async def test_an_avatar_that_has_to_stay_says_why(encoder, clip):
    stage = await started(avatar_id="me", video_path=str(clip))
    with pytest.raises(InputError, match=r"ships with WarmTalk"):
        await stage.remove("presenter", "presenter")
    with pytest.raises(InputError, match=r"'me' is prepared from video_path at each start"):
        await stage.remove("me")
    [event async for event in stage.prepare(str(clip), "you")]
    with pytest.raises(InputError, match=r"'you' is the default of new sessions.*another avatar_id of Stitch"):
        await stage.remove("you", "you")
    with pytest.raises(IdError):
        await stage.remove("../you")
    assert {facts["avatar_id"]: facts["removable"] for facts in await stage.list()} == {
        "me": False,
        "presenter": False,
        "you": True,
    }


async def test_an_own_presenter_gives_way_to_the_one_that_ships(encoder, clip):
    stage = await started()
    [event async for event in stage.prepare(str(clip), "presenter", force=True)]
    (own,) = await stage.list()
    assert own["removable"] and own["frames"] == 6
    await stage.remove("presenter", "presenter")
    (shipped,) = await stage.list()
    assert not shipped["removable"] and shipped["frames"] > 6
